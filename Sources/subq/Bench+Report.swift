import Benchmarking
import Foundation

/// The figures on standard output: a line of JSON for each measurement, or a table whose rows come as they are measured.
struct BenchReport {
    private let json: Bool
    private let hasReference: Bool
    private let productRate: Double?
    private let columns: [Column]

    private struct Column {
        let title: String
        var isText = false
        let width: Int
        /// Of the fast form's measurement and, where there is one, the reference form's.
        let cell: (BenchmarkResult, BenchmarkResult?) -> String
    }

    init(labels: [String], json: Bool, hasTokens: Bool, hasReference: Bool, productRate: Double?) {
        self.json = json
        self.hasReference = hasReference
        self.productRate = productRate
        func column(_ title: String, _ cell: @escaping (BenchmarkResult, BenchmarkResult?) -> String) -> Column {
            Column(title: title, width: max(title.count, 9), cell: cell)
        }
        var columns = [
            column("N") { result, _ in "\(result.length)" },
            column("median ms") { result, _ in Self.number(result.medianMilliseconds) },
            column("min ms") { result, _ in Self.number(result.minimumMilliseconds) },
            column("peak MB") { result, _ in String(format: "%.0f", result.peakResidentMegabytes) },
        ]
        if hasTokens {
            columns.append(
                column("tokens/s") { result, _ in result.tokensPerSecond.map { String(format: "%.0f", $0) } ?? "-" })
        }
        if hasReference {
            columns += [
                column("reference ms") { _, other in other.map { Self.number($0.medianMilliseconds) } ?? "-" },
                column("reference MB") { _, other in
                    other.map { String(format: "%.0f", $0.peakResidentMegabytes) } ?? "-"
                },
                column("ratio") { _, other in other?.timesFast.map { String(format: "%.2f", $0) } ?? "-" },
            ]
        }
        if productRate != nil {
            columns += [
                column("GFLOP") { result, _ in result.gigaOperations.map(Self.number) ?? "-" },
                column("of sgemm") { result, _ in
                    result.productShare.map { String(format: "%.1f %%", $0 * 100) } ?? "-"
                },
            ]
        }
        let names = Column(
            title: "mechanism", isText: true, width: max(9, labels.map(\.count).max() ?? 0), cell: { _, _ in "" })
        self.columns = [names] + columns
    }

    func begin(_ subtitle: String) {
        guard !json else { return }
        print(subtitle)
        if let productRate {
            let size = BenchRun.productSize
            print("sgemm of \(size) × \(size) matrices in this run: \(String(format: "%.0f", productRate)) GFLOP/s")
        }
        print()
        row(columns.map(\.title))
    }

    /// One length: the fast form's measurement, and the reference form's after it.
    func show(_ results: [BenchmarkResult], label: String) throws {
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys]
            for result in results { print(String(decoding: try encoder.encode(result), as: UTF8.self)) }
        } else if let fast = results.first {
            row([label] + columns.dropFirst().map { $0.cell(fast, results.dropFirst().first) })
        }
        try StandardOutput.flush()
    }

    /// Under a mechanism's rows: how its cost grows.
    func showExponents(_ series: [BenchmarkSeries]) {
        guard !json, let fast = series.first, fast.timeExponent != nil else { return }
        let reference = series.dropFirst().first
        let cells = [
            "N": "fit", "median ms": Self.power(fast.timeExponent), "peak MB": Self.power(fast.memoryExponent),
            "reference ms": Self.power(reference?.timeExponent), "reference MB": Self.power(reference?.memoryExponent),
        ]
        row(columns.map { $0.isText ? fast.name : cells[$0.title] ?? "" })
    }

    func end() {
        guard !json, productRate != nil else { return }
        print(
            """

            GFLOP: multiplications and additions of the matrix products over the pairs that may be seen, twice as many for the
            backward pass; without masked halves, what is computed again, softmax, norms. Causal linear attention in chunks of \
            \(OperationCount.chunk).
            -: not defined for this mechanism. Shares are of minimal times.
            """)
    }

    private func row(_ cells: [String]) {
        let padded = zip(cells, columns).map { cell, column in
            let space = String(repeating: " ", count: max(0, column.width - cell.count))
            return column.isText ? cell + space : space + cell
        }
        print(padded.joined(separator: "  ").replacing(#/ +$/#, with: ""))
    }

    private static func power(_ exponent: Double?) -> String { exponent.map { String(format: "N^%.2f", $0) } ?? "-" }

    /// Three digits or more.
    private static func number(_ value: Double) -> String {
        switch value {
        case 100...: String(format: "%.1f", value)
        case 1...: String(format: "%.2f", value)
        default: String(format: "%.4f", value)
        }
    }
}
