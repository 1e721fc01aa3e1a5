import ArgumentParser
import Benchmarking
import Foundation
import SequenceMixers
import Torch

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure time and memory of mechanisms, layers and models.",
        discussion: """
            Each measurement has a process of its own: two untimed runs, then the timed ones, of which the median and the \
            minimum are told, and the most memory that was resident during them. With several lengths, the exponent e of \
            time and of memory in N^e is fitted; of memory, what is needed beyond an idle process.
            """,
        subcommands: [
            Attention.self, Layer.self, LM.self, GenerateBench.self, Addition.self, Measure.self,
        ])

    struct Attention: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A mechanism alone, between its projections.",
            usage: "subq bench attention --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions
        @OptionGroup var comparison: ComparisonOptions

        func run() throws { try pass.run(.attention, options, comparison) }
    }

    struct Layer: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A mixer with its projections.",
            usage: "subq bench layer --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var pass: PassOptions
        @OptionGroup var comparison: ComparisonOptions
        @Flag(help: "In a block, with norms, sums and a feed-forward layer of four times the width.")
        var block = false

        func run() throws { try pass.run(block ? .block : .layer, options, comparison) }
    }

    struct LM: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "lm", abstract: "A training step of a byte language model.",
            usage: "subq bench lm --mechanism <A[,B…]> [--length <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var model: ModelOptions
        @OptionGroup var comparison: ComparisonOptions
        @Option(help: "Sequence lengths.")
        var length = "1024"

        func run() throws {
            let lengths = try options.timing.lengths(length, "length")
            let shape = try model.shape(options)
            var run = BenchRun(.languageModel, try options.mechanisms(causal: true), lengths, causal: true, shape)
            let width = shape.heads * shape.headDim
            run.title = "training step of a language model, \(shape.layers) layers of width \(width)"
            run.timeLabel = "median time of a training step, ms"
            try run.measure(options.timing, plot: options.plot, comparison)
        }
    }

    struct GenerateBench: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "generate", abstract: "A language model making tokens one by one, after a context.",
            usage: "subq bench generate --mechanism <A[,B…]> [--context <N[,N…]>] [options]")
        @OptionGroup var options: Options
        @OptionGroup var model: ModelOptions
        @Option(help: "Tokens that come before.")
        var context = "1000"
        @Option(parsing: .unconditional, help: "Tokens that are made and timed; they stand for repetitions.")
        var tokens = 64

        func run() throws {
            try TimingOptions.check(tokens, "tokens")
            guard options.batch == 1 else {
                throw UsageError("--batch \(options.batch): generation is measured on one sequence")
            }
            let lengths = try options.timing.lengths(context, "context")
            let shape = try model.shape(options)
            var run = BenchRun(.generation, try options.mechanisms(causal: true), lengths, causal: true, shape)
            run.repeats = tokens
            run.title = "generation, \(shape.layers) layers of width \(shape.heads * shape.headDim)"
            run.timeLabel = "median time of a token, ms"
            try run.measure(options.timing, plot: options.plot, nil)
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
            let sizes = try timing.lengths(megabytes, "megabytes")
            for size in sizes where size > 100_000 {
                throw UsageError("--megabytes must be at most 100000, not \(size)")
            }
            var run = BenchRun(
                .addition, [Mechanism(label: "addition", mixer: nil)], sizes.map { $0 * 250_000 }, causal: false,
                BenchmarkShape(batch: 1, heads: 1, headDim: 1))
            run.title = "sum of two tensors of N numbers"
            try run.measure(timing, plot: nil, nil)
        }
    }

    /// What the other subcommands call: one measurement in this process.
    struct Measure: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "One measurement, described as JSON.", shouldDisplay: false)
        @Argument(help: "The measurement.")
        var task: String

        func run() throws {
            guard let task = try? JSONDecoder().decode(BenchmarkTask.self, from: Data(task.utf8)) else {
                throw UsageError("'\(task)' describes no measurement")
            }
            MeasuringProcess.endWithParent()
            do {
                print(String(decoding: try JSONEncoder().encode(task.measure()), as: UTF8.self))
            } catch let error as ConfigurationError {
                throw UsageError("--mechanism: \(error)")
            }
        }
    }
}
