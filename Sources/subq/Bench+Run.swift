import ArgumentParser
import Benchmarking
import Foundation
import SequenceMixers
import Torch

/// Measurements of several mechanisms at several lengths, one process after the other, shown as they come.
struct BenchRun {
    let work: BenchmarkTask.Work
    let mechanisms: [Bench.Mechanism]
    let lengths: [Int]
    let causal: Bool
    let shape: BenchmarkShape
    var pass = BenchmarkPass.forward
    /// In place of `--repeats`.
    var repeats: Int?
    var title = ""
    var timeLabel = "median time, ms"

    /// The side of the matrices whose product stands for what the machine can do.
    static let productSize = 2048

    init(
        _ work: BenchmarkTask.Work, _ mechanisms: [Bench.Mechanism], _ lengths: [Int], causal: Bool,
        _ shape: BenchmarkShape
    ) {
        self.work = work
        self.mechanisms = mechanisms
        self.lengths = lengths
        self.causal = causal
        self.shape = shape
    }

    func measure(_ timing: Bench.TimingOptions, plot: String?, _ comparison: Bench.ComparisonOptions?) throws {
        let picture = try plot.map { try PlotFile($0, lengths: lengths) }
        let forms = comparison?.reference == true ? [false, true] : [false]
        let threads = TorchRuntime.threadCount
        let sizes = "batch \(shape.batch), \(shape.heads) heads of \(shape.headDim)"
        let subtitle = "\(title), \(sizes), \(threads == 1 ? "1 thread" : "\(threads) threads")"
        let rate = comparison?.roofline == true ? try productRate(timing) : nil
        let report = BenchReport(
            labels: mechanisms.map(\.label), json: timing.json,
            hasTokens: work == .languageModel || work == .generation, hasReference: forms.count > 1, productRate: rate)
        var all: [BenchmarkSeries] = []
        for mechanism in mechanisms {
            var series = forms.map { BenchmarkSeries(name: mechanism.label, isReference: $0) }
            for (place, length) in lengths.enumerated() {
                let results = try measured(mechanism, length, forms, rate, timing)
                // Not before: a mistake leaves standard output empty.
                if all.isEmpty && place == 0 { report.begin(subtitle) }
                for (index, result) in results.enumerated() { series[index].results.append(result) }
                if place == lengths.count - 1 { for index in series.indices { series[index].addExponents() } }
                try report.show(series.compactMap(\.results.last), label: mechanism.label)
            }
            report.showExponents(series)
            all += series
        }
        report.end()
        try picture?.write(CostPlot(title: "Cost over length", subtitle: subtitle, timeLabel: timeLabel, series: all))
    }

    /// The fast form, and after it the reference form where it is asked for.
    private func measured(
        _ mechanism: Bench.Mechanism, _ length: Int, _ forms: [Bool], _ rate: Double?, _ timing: Bench.TimingOptions
    ) throws -> [BenchmarkResult] {
        var results: [BenchmarkResult] = []
        for isReference in forms {
            var task = BenchmarkTask(
                work, mechanism.mixer, causal: causal, shape, pass: pass, repeats: repeats ?? timing.repeats,
                threads: timing.threads)
            task.shape.length = length
            task.reference = isReference
            var result = try MeasuringProcess.run(task)
            if forms.count > 1 { result.form = isReference ? "reference" : "fast" }
            if isReference, let fast = results.first {
                result.timesFast = result.medianMilliseconds / fast.medianMilliseconds
            }
            if let rate {
                result.productRate = rate
                result.gigaOperations = OperationCount.of(task).map { $0 * 1e-9 }
                result.productShare = result.gigaOperations.map { $0 / result.minimumMilliseconds * 1e3 / rate }
            }
            results.append(result)
        }
        return results
    }

    /// In 10⁹ operations a second, at best, as the shares are.
    private func productRate(_ timing: Bench.TimingOptions) throws -> Double {
        let size = Self.productSize
        let task = BenchmarkTask(
            .product, nil, BenchmarkShape(batch: 1, heads: 1, length: size, headDim: size), repeats: 10,
            threads: timing.threads)
        return 2e-6 * Double(size * size * size) / (try MeasuringProcess.run(task)).minimumMilliseconds
    }
}

extension BenchmarkSeries {
    fileprivate mutating func addExponents() {
        guard !results.isEmpty else { return }
        results[results.count - 1].timeExponent = timeExponent
        results[results.count - 1].memoryExponent = memoryExponent
    }
}

/// A process that makes one measurement.
enum MeasuringProcess {
    /// - Throws: `ExitCode` when the process has told what is wrong, ``Ended`` when it could not.
    static func run(_ task: BenchmarkTask) throws -> BenchmarkResult {
        let process = Process()
        process.executableURL = Bundle.main.executableURL ?? URL(fileURLWithPath: CommandLine.arguments[0])
        let description = String(decoding: try JSONEncoder().encode(task), as: UTF8.self)
        process.arguments = ["bench", "measure", description]
        let (input, output) = (Pipe(), Pipe())
        process.standardInput = input  // stays open as long as this process lives
        process.standardOutput = output
        try process.run()
        let json = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationReason == .exit else {
            let name = task.mixer?.name ?? "sgemm"
            throw Ended(signal: process.terminationStatus, work: "\(name) at length \(task.shape.length)")
        }
        guard process.terminationStatus == 0 else { throw ExitCode(process.terminationStatus) }
        return try JSONDecoder().decode(BenchmarkResult.self, from: json)
    }

    /// In the measuring process: ends it when the one that waits for it is gone, however that ended.
    static func endWithParent() {
        Thread.detachNewThread {
            var byte: UInt8 = 0
            while read(STDIN_FILENO, &byte, 1) > 0 {}
            _exit(EX_UNAVAILABLE)
        }
    }

    /// The system ended it, which it does when memory runs out.
    struct Ended: Error, CustomStringConvertible {
        let signal: Int32
        let work: String
        var description: String {
            "the process that measured \(work) was ended by signal \(signal)"
                + (signal == SIGKILL ? ", as happens when memory runs out" : "")
        }
    }
}

/// Where a plot goes: tried before anything is measured.
struct PlotFile {
    private let url: URL

    /// - Throws: ``UsageError`` for what cannot be drawn, `FileWriteError` for what cannot be written.
    init(_ path: String, lengths: [Int]) throws {
        guard path.hasSuffix(".svg") else { throw UsageError("--plot writes SVG: '\(path)' must end in .svg") }
        guard Set(lengths).count > 1 else {
            throw UsageError("--plot draws cost over the length: give at least two lengths, not \(lengths[0]) alone")
        }
        url = URL(fileURLWithPath: path)
        var isFolder: ObjCBool = false
        if FileManager.default.fileExists(atPath: path, isDirectory: &isFolder), isFolder.boolValue {
            throw FileWriteError(operation: "create", path: path, code: EISDIR)
        }
        let probe = url.deletingLastPathComponent().appendingPathComponent(".\(UUID().uuidString)").path
        do {
            _ = try OutputFile(creating: probe)
            unlink(probe)
        } catch {
            throw FileWriteError(operation: "create", path: path, code: error.code)
        }
    }

    func write(_ plot: CostPlot) throws { try AtomicFile.write(Data(plot.svg.utf8), to: url) }
}
