import ArgumentParser
import Benchmarking
import Foundation
import SequenceMixers
import Torch

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure time and memory.", subcommands: [Attention.self, Layer.self, LM.self, GenerateBench.self])

    /// What all measurements share.
    struct Options: ParsableArguments {
        @Option(help: ArgumentHelp("The mechanisms, by their names in `subq list`.", valueName: "A[,B…]"))
        var mechanism: String
        @Option(help: "Sequences in a batch.")
        var batch = 1
        @Option(help: "Heads.")
        var heads = 8
        @Option(help: "Channels of a head.")
        var headDim = 64
        @Option(help: "Threads; all cores when left out.")
        var threads: Int?
        @Option(help: "Timed repetitions.")
        var repeats = 10
        @Flag(help: "Print JSON, one object a measurement.")
        var json = false

        /// Checks the values and sets the threads.
        func mixers() throws -> [MixerConfiguration] {
            for (name, value) in [("batch", batch), ("heads", heads), ("head-dim", headDim), ("repeats", repeats)]
            where value < 1 {
                throw UsageError("--\(name) must be at least 1, not \(value)")
            }
            var compute = ComputeOptions()
            compute.threads = threads
            compute.device = "cpu"
            try compute.apply()
            return try mechanism.split(separator: ",").map { try MixerConfiguration(String($0)) }
        }

        func lengths(_ text: String, _ option: String) throws -> [Int] {
            try text.split(separator: ",").map {
                guard let length = Int($0), length > 0 else {
                    throw UsageError("--\(option) must be whole numbers above 0 with commas between, not '\(text)'")
                }
                return length
            }
        }

        func show(_ measurement: BenchmarkResult) throws {
            if json {
                let encoder = JSONEncoder()
                encoder.outputFormatting = [.sortedKeys]
                return print(String(decoding: try encoder.encode(measurement), as: UTF8.self))
            }
            let rate = measurement.tokensPerSecond.map { String(format: "  %.0f tokens/s", $0) } ?? ""
            print(
                "\(measurement.mechanism)  \(measurement.pass)  N \(measurement.length)  "
                    + String(
                        format: "median %.2f ms  min %.2f ms  peak %.0f MB", measurement.medianMilliseconds,
                        measurement.minimumMilliseconds, measurement.peakResidentMegabytes) + rate)
        }
    }

    /// What attention and layer share.
    struct PassOptions: ParsableArguments {
        @Flag(help: "The causal form.")
        var causal = false
        @Option(help: "Sequence lengths.")
        var length = "1024"
        @Option(help: "forward or forward-backward.")
        var pass = "forward-backward"
        @Flag(help: "Measure the reference form.")
        var reference = false

        func benchmarkPass() throws -> BenchmarkPass {
            guard let pass = BenchmarkPass(rawValue: pass) else {
                throw UsageError("--pass must be forward or forward-backward, not '\(pass)'")
            }
            return pass
        }

        typealias Measure = (MixerConfiguration, Bool, BenchmarkShape, BenchmarkPass, Int, Bool) throws ->
            BenchmarkResult

        func run(_ options: Options, _ measure: Measure) throws {
            let pass = try benchmarkPass()
            for mixer in try options.mixers() {
                for length in try options.lengths(length, "length") {
                    let shape = BenchmarkShape(
                        batch: options.batch, heads: options.heads, length: length, headDim: options.headDim)
                    try options.show(measure(mixer, causal, shape, pass, options.repeats, reference))
                }
            }
        }
    }

    struct Attention: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "A mechanism alone, on queries, keys and values.")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions

        func run() throws {
            try pass.run(options) {
                try Benchmark.attention($0, causal: $1, $2, pass: $3, repeats: $4, reference: $5)
            }
        }
    }

    struct Layer: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "A mixer with its projections.")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions

        func run() throws {
            try pass.run(options) { try Benchmark.layer($0, causal: $1, $2, pass: $3, repeats: $4, reference: $5) }
        }
    }

    struct LM: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "lm", abstract: "A training step of a byte language model.")
        @OptionGroup var options: Options
        @Option(help: "Sequence lengths.")
        var length = "1024"
        @Option(help: "Blocks.")
        var layers = 4
        @Option(help: "Width of the model; heads times head-dim when left out.")
        var modelDim: Int?

        func run() throws {
            for mixer in try options.mixers() {
                for length in try options.lengths(length, "length") {
                    let shape = try options.shape(length: length, layers: layers, modelDim: modelDim)
                    try options.show(Benchmark.languageModel(mixer, shape, repeats: options.repeats))
                }
            }
        }
    }

    struct GenerateBench: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "generate", abstract: "A language model making tokens one by one, after a context.")
        @OptionGroup var options: Options
        @Option(help: "Tokens that come before.")
        var context = "1000"
        @Option(help: "Tokens that are made and timed.")
        var tokens = 64
        @Option(help: "Blocks.")
        var layers = 4
        @Option(help: "Width of the model; heads times head-dim when left out.")
        var modelDim: Int?

        func run() throws {
            guard tokens > 0 else { throw UsageError("--tokens must be at least 1, not \(tokens)") }
            for mixer in try options.mixers() {
                for length in try options.lengths(context, "context") {
                    let shape = try options.shape(length: length, layers: layers, modelDim: modelDim)
                    try options.show(Benchmark.generation(mixer, shape, tokens: tokens))
                }
            }
        }
    }
}

extension Bench.Options {
    func shape(length: Int, layers: Int, modelDim: Int?) throws -> BenchmarkShape {
        guard layers > 0 else { throw UsageError("--layers must be at least 1, not \(layers)") }
        let width = modelDim ?? heads * headDim
        guard width > 0, width.isMultiple(of: heads) else {
            throw UsageError("--model-dim \(width) is not a multiple of --heads \(heads)")
        }
        return BenchmarkShape(batch: batch, heads: heads, length: length, headDim: width / heads, layers: layers)
    }
}
