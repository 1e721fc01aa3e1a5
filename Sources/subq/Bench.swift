import ArgumentParser
import Benchmarking
import Foundation
import SequenceMixers
import Torch
import Training

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure time and memory of mechanisms, layers and models.",
        subcommands: [Attention.self, Layer.self, LM.self, GenerateBench.self, Addition.self])

    /// How often work is timed and how the figures are shown.
    struct TimingOptions: ParsableArguments {
        @Option(parsing: .unconditional, help: "Threads; all cores when left out.")
        var threads: Int?
        @Option(parsing: .unconditional, help: "Timed repetitions.")
        var repeats = 10
        @Flag(help: "Print JSON, one object a measurement.")
        var json = false

        /// Checks the values and sets the threads.
        func apply() throws {
            try Self.check(repeats, "repeats")
            var compute = ComputeOptions()
            compute.threads = threads
            compute.device = "cpu"
            try compute.apply()
        }

        /// Far above every machine, and low enough that products of sizes stay numbers.
        static func check(_ value: Int, _ name: String) throws {
            guard (1...1_000_000).contains(value) else {
                throw UsageError("--\(name) must be from 1 to 1000000, not \(value)")
            }
        }

        func lengths(_ text: String, _ option: String) throws -> [Int] {
            try text.split(separator: ",").map {
                guard let length = Int($0), (1...1_000_000_000).contains(length) else {
                    throw UsageError(
                        "--\(option) must be whole numbers from 1 to 1000000000 with commas between, not '\(text)'")
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

    /// What measurements of mechanisms share.
    struct Options: ParsableArguments {
        @Option(
            help: ArgumentHelp(
                "The mechanisms, by their names in `subq list`; or one with its options, as a recipe's mixer: has them.",
                valueName: "A[,B…]|{name: A, …}"))
        var mechanism: String
        @Option(parsing: .unconditional, help: "Sequences in a batch.")
        var batch = 1
        @Option(parsing: .unconditional, help: "Heads.")
        var heads = 8
        @Option(parsing: .unconditional, help: "Channels of a head.")
        var headDim = 64
        @OptionGroup var timing: TimingOptions

        /// Checks the values and sets the threads.
        func mixers() throws -> [MixerConfiguration] {
            for (name, value) in [("batch", batch), ("heads", heads), ("head-dim", headDim)] {
                try TimingOptions.check(value, name)
            }
            try timing.apply()
            if mechanism.hasPrefix("{") {
                let node = try RecipeNode(yaml: mechanism, name: "--mechanism")
                return [try RecipeDecoder.decode(MixerConfiguration.self, from: node)]
            }
            let names = mechanism.split(separator: ",")
            guard !names.isEmpty else { throw UsageError("--mechanism names none; see 'subq list'") }
            do {
                return try names.map { try MixerConfiguration(String($0)) }
            } catch let error as ConfigurationError {
                throw UsageError("--mechanism: \(error)")
            }
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
                for length in try options.timing.lengths(length, "length") {
                    let shape = BenchmarkShape(
                        batch: options.batch, heads: options.heads, length: length, headDim: options.headDim)
                    try options.timing.show(
                        withTorchErrors { try measure(mixer, causal, shape, pass, options.timing.repeats, reference) })
                }
            }
        }
    }

    struct Attention: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A mechanism alone, on queries, keys and values.",
            usage: "subq bench attention --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions

        func run() throws {
            try pass.run(options) {
                try Benchmark.attention($0, causal: $1, $2, pass: $3, repeats: $4, reference: $5)
            }
        }
    }

    struct Layer: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A mixer with its projections.",
            usage: "subq bench layer --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions

        func run() throws {
            try pass.run(options) { try Benchmark.layer($0, causal: $1, $2, pass: $3, repeats: $4, reference: $5) }
        }
    }

    struct Addition: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "The sum of two tensors into new memory: what the allocator is worth.",
            usage: "subq bench addition [--megabytes <M[,M…]>] [options]",
            discussion: "Compare with the environment's SUBQ_ALLOCATOR=system, which turns the caching allocator off.")
        @OptionGroup var timing: TimingOptions
        @Option(help: "Sizes of each tensor, in units of 10⁶ bytes.")
        var megabytes = "1,32,128"

        func run() throws {
            try timing.apply()
            for size in try timing.lengths(megabytes, "megabytes") {
                guard size <= 100_000 else { throw UsageError("--megabytes must be at most 100000, not \(size)") }
                try timing.show(withTorchErrors { Benchmark.addition(megabytes: size, repeats: timing.repeats) })
            }
        }
    }

    struct LM: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "lm", abstract: "A training step of a byte language model.",
            usage: "subq bench lm --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @Option(help: "Sequence lengths.")
        var length = "1024"
        @Option(parsing: .unconditional, help: "Blocks.")
        var layers = 4
        @Option(parsing: .unconditional, help: "Width of the model; heads times head-dim when left out.")
        var modelDim: Int?

        func run() throws {
            for mixer in try options.mixers() {
                for length in try options.timing.lengths(length, "length") {
                    let shape = try options.shape(length: length, layers: layers, modelDim: modelDim)
                    try options.timing.show(
                        withTorchErrors { try Benchmark.languageModel(mixer, shape, repeats: options.timing.repeats) })
                }
            }
        }
    }

    struct GenerateBench: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "generate", abstract: "A language model making tokens one by one, after a context.",
            usage: "subq bench generate --mechanism <A[,B…]> [--context <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @Option(help: "Tokens that come before.")
        var context = "1000"
        @Option(parsing: .unconditional, help: "Tokens that are made and timed.")
        var tokens = 64
        @Option(parsing: .unconditional, help: "Blocks.")
        var layers = 4
        @Option(parsing: .unconditional, help: "Width of the model; heads times head-dim when left out.")
        var modelDim: Int?

        func run() throws {
            try Bench.TimingOptions.check(tokens, "tokens")
            for mixer in try options.mixers() {
                for length in try options.timing.lengths(context, "context") {
                    let shape = try options.shape(length: length, layers: layers, modelDim: modelDim)
                    try options.timing.show(withTorchErrors { try Benchmark.generation(mixer, shape, tokens: tokens) })
                }
            }
        }
    }
}

extension Bench.Options {
    func shape(length: Int, layers: Int, modelDim: Int?) throws -> BenchmarkShape {
        try Bench.TimingOptions.check(layers, "layers")
        let width = modelDim ?? heads * headDim
        try Bench.TimingOptions.check(width, "model-dim")
        guard width.isMultiple(of: heads) else {
            throw UsageError("--model-dim \(width) is not a multiple of --heads \(heads)")
        }
        return BenchmarkShape(batch: batch, heads: heads, length: length, headDim: width / heads, layers: layers)
    }
}
