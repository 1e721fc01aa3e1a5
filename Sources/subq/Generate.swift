import ArgumentParser
import Benchmarking
import Foundation
import Inference
import SequenceModels
import Torch
import Training

struct Generate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Continue a text with a trained model, as it is made, at constant cost a token.",
        usage: "subq generate <run-dir> [--prompt <text>] [--tokens <n>] [options]")

    @Argument(help: ArgumentHelp("The run directory.", valueName: "run-dir"))
    var folder: String

    @Option(help: "The text to continue; - reads it from standard input.")
    var prompt = "\n"

    @Option(parsing: .unconditional, help: "How many tokens to make.")
    var tokens = 200

    @Option(parsing: .unconditional, help: "0 takes the likeliest token, 1 draws as the model says.")
    var temperature = 0.8

    @Option(parsing: .unconditional, help: "Draw only among the likeliest tokens that have this probability together.")
    var topP = 0.95

    @Option(parsing: .unconditional, help: "Seed of the drawing.")
    var seed: Int = 0

    @Flag(help: "Report the time per token along the text on standard error.")
    var timing = false

    @OptionGroup var compute: ComputeOptions

    func run() throws {
        try compute.apply()
        guard tokens >= 0 else { throw UsageError("--tokens must be 0 or above, not \(tokens)") }
        guard seed >= 0 else { throw UsageError("--seed must be 0 or above, not \(seed)") }
        guard temperature >= 0, temperature.isFinite else {
            throw UsageError("--temperature must be 0 or above, not \(temperature)")
        }
        guard topP > 0, topP <= 1 else { throw UsageError("--top-p must be above 0 and at most 1, not \(topP)") }
        let sampler = try TokenSampler(
            SamplingOptions(temperature: temperature, topP: topP), using: RandomGenerator(seed: UInt64(seed)))
        let directory = try RunDirectory.open(at: URL(folder: folder, "the run directory"))
        let (description, model) = try Experiment.load(directory)
        guard case .language(let languageModel) = model, description.vocabulary == 256 else {
            throw UsageError("'\(folder)' is not a language model of bytes: it cannot continue a text")
        }
        let bytes = try promptBytes()
        let room = languageModel.embedding.maximumLength ?? .max
        guard tokens <= room - bytes.count else {
            throw UsageError(
                "the model has learned positions for \(room) tokens, but the prompt's \(bytes.count) and --tokens \(tokens) are more; "
                    + "train with position: sinusoidal, rotary or none for any length")
        }
        if prompt != "-" && prompt != "\n" { try StandardOutput.write(Data(bytes)) }
        let made = try write(languageModel, bytes, sampler)
        try StandardOutput.write(Data("\n".utf8))
        if let made { StandardErrorOutput().write(made + "\n") }
    }

    private func promptBytes() throws -> [UInt8] {
        let bytes = prompt == "-" ? Array(FileHandle.standardInput.readDataToEndOfFile()) : Array(prompt.utf8)
        guard !bytes.isEmpty else { throw UsageError("the prompt is empty; give at least one character") }
        return bytes
    }

    /// Streams the text; returns a report of the timing if asked for.
    private func write(
        _ model: LanguageModel, _ prompt: [UInt8], _ sampler: TokenSampler
    ) throws -> String? {
        var meter = StepTimes()
        var text = UTF8Assembler()
        try withTorchErrors {
            var generator = try TokenGenerator(model, prompt: prompt.map(Int.init), sampler: sampler)
            for _ in 0..<tokens {
                let start = ContinuousClock.now
                guard let token = generator.next() else { break }
                meter.add(ContinuousClock.now - start, position: generator.position)
                try StandardOutput.write(Data(text.append(UInt8(token)).utf8))
            }
        }
        try StandardOutput.write(Data(text.flush().utf8))
        return timing ? meter.report : nil
    }
}

/// Time per token by powers of ten of the position, and what memory is resident there.
private struct StepTimes {
    private var windows: [(position: Int, times: [Double], megabytes: Double)] = []
    private static let marks = [100, 1_000, 10_000, 100_000, 1_000_000]

    /// Keeps the tokens that follow each mark: 2,000 of them, or all up to the next.
    mutating func add(_ time: Duration, position: Int) {
        guard let mark = Self.marks.last(where: { $0 <= position }), position < mark + min(9 * mark, 2_000) else {
            return
        }
        if windows.last?.position != mark { windows.append((mark, [], ProcessMemory.residentMegabytes)) }
        windows[windows.count - 1].times.append(
            Double(time.components.attoseconds) * 1e-12 + Double(time.components.seconds) * 1e6)
    }

    var report: String {
        windows.map { position, times, megabytes in
            let median = times.sorted()[times.count / 2]
            return String(
                format: "position %ld: median %.1f µs a token, %.1f MB resident", position, median, megabytes)
        }.joined(separator: "\n")
            + String(format: "\nresident memory at the end: %.1f MB", ProcessMemory.residentMegabytes)
    }
}
