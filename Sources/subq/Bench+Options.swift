import ArgumentParser
import Benchmarking
import Foundation
import SequenceMixers
import Torch
import Training

extension Bench {
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
            let found = try text.split(separator: ",").map {
                guard let length = Int($0), (1...1_000_000_000).contains(length) else {
                    throw UsageError(
                        "--\(option) must be whole numbers from 1 to 1000000000 with commas between, not '\(text)'")
                }
                return length
            }
            guard !found.isEmpty else { throw UsageError("--\(option) names none") }
            return found
        }
    }

    /// A mechanism to measure, and what it is called beside others.
    struct Mechanism {
        let label: String
        /// nil where there is none, as in the sum of two tensors.
        let mixer: MixerConfiguration?
    }

    /// What measurements of mechanisms share.
    struct Options: ParsableArguments {
        @Option(
            help: ArgumentHelp(
                "The mechanisms, by their names in `subq list`, or with options, as a recipe's mixer: has them.",
                valueName: "A[,B…]|{name: A, …}"))
        var mechanism: String
        @Option(parsing: .unconditional, help: "Sequences in a batch.")
        var batch = 1
        @Option(parsing: .unconditional, help: "Heads.")
        var heads = 8
        @Option(parsing: .unconditional, help: "Channels of a head.")
        var headDim = 64
        @Option(help: ArgumentHelp("Draw time and memory over the lengths.", valueName: "FILE.svg"))
        var plot: String?
        @OptionGroup var timing: TimingOptions

        /// Checks the values and sets the threads.
        func mechanisms(causal: Bool) throws -> [Mechanism] {
            for (name, value) in [("batch", batch), ("heads", heads), ("head-dim", headDim)] {
                try TimingOptions.check(value, name)
            }
            try timing.apply()
            let parts = Self.parts(of: mechanism)
            guard !parts.isEmpty else { throw UsageError("--mechanism names none; see 'subq list'") }
            let mixers = try parts.map(mixer)
            for mixer in mixers { try check(mixer, causal: causal) }
            return zip(parts, mixers).map { part, mixer in
                // The options tell forms of one mechanism apart.
                let isAlone = mixers.count { $0.name == mixer.name } == 1
                let text = part.trimmingCharacters(in: CharacterSet(charactersIn: "{} "))
                return Mechanism(
                    label: isAlone ? mixer.name : text.replacingOccurrences(of: "name: ", with: ""), mixer: mixer)
            }
        }

        private func mixer(_ text: String) throws -> MixerConfiguration {
            do {
                guard text.hasPrefix("{") else { return try MixerConfiguration(text) }
                let node = try RecipeNode(yaml: text, name: "--mechanism")
                return try RecipeDecoder.decode(MixerConfiguration.self, from: node)
            } catch let error as RecipeError {
                throw UsageError("\(error)")
            } catch let error as ConfigurationError {
                throw UsageError("--mechanism: \(error)")
            }
        }

        private func check(_ mixer: MixerConfiguration, causal: Bool) throws {
            let entry = try MixerCatalogue.entry(named: mixer.name)
            if causal && !entry.causal {
                let reason = entry.whyNotCausal.map { ": \($0)" } ?? ""
                throw UsageError("--mechanism: mixer '\(mixer.name)' has no causal form\(reason)")
            }
            if !causal && !entry.bidirectional {
                throw UsageError("--mechanism: mixer '\(mixer.name)' has no bidirectional form; give --causal")
            }
        }

        /// What stands between the commas that are in no brackets.
        static func parts(of text: String) -> [String] {
            var (parts, depth) = ([""], 0)
            for character in text {
                if "{[".contains(character) { depth += 1 }
                if "}]".contains(character) { depth -= 1 }
                if character == "," && depth == 0 {
                    parts.append("")
                } else {
                    parts[parts.count - 1].append(character)
                }
            }
            return parts.map { $0.trimmingCharacters(in: .whitespaces) }.filter { !$0.isEmpty }
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

        func run(_ work: BenchmarkTask.Work, _ options: Options, _ comparison: ComparisonOptions) throws {
            guard let benchmarkPass = BenchmarkPass(rawValue: pass) else {
                throw UsageError("--pass must be forward or forward-backward, not '\(pass)'")
            }
            let shape = BenchmarkShape(batch: options.batch, heads: options.heads, headDim: options.headDim)
            let lengths = try options.timing.lengths(length, "length")
            var run = BenchRun(work, try options.mechanisms(causal: causal), lengths, causal: causal, shape)
            run.pass = benchmarkPass
            run.title = "\(work.rawValue), \(causal ? "causal" : "bidirectional"), \(pass)"
            run.timeLabel = "median time, \(pass), ms"
            try run.measure(options.timing, plot: options.plot, comparison)
        }
    }

    /// Beside what a mechanism's figures are set.
    struct ComparisonOptions: ParsableArguments {
        @Flag(help: "Measure the reference form too.")
        var reference = false
        @Flag(help: "Show the share of the rate that products of large matrices reach here.")
        var roofline = false
    }

    /// The sizes of a language model.
    struct ModelOptions: ParsableArguments {
        @Option(parsing: .unconditional, help: "Blocks.")
        var layers = 4
        @Option(parsing: .unconditional, help: "Width of the model; heads times head-dim when left out.")
        var modelDim: Int?

        func shape(_ options: Options) throws -> BenchmarkShape {
            for (name, value) in [("heads", options.heads), ("head-dim", options.headDim), ("layers", layers)] {
                try TimingOptions.check(value, name)
            }
            let width = modelDim ?? options.heads * options.headDim
            try TimingOptions.check(width, "model-dim")
            guard width.isMultiple(of: options.heads) else {
                throw UsageError("--model-dim \(width) is not a multiple of --heads \(options.heads)")
            }
            return BenchmarkShape(
                batch: options.batch, heads: options.heads, headDim: width / options.heads, layers: layers)
        }
    }
}
