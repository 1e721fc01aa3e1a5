import ArgumentParser
import SequenceMixers

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the catalogue of mechanisms.")

    @Flag(help: "Print JSON.")
    var json = false

    private struct Row: Encodable {
        let name, title: String
        let paper: Paper
        let causal, bidirectional, padding, crossAttention, rotary: Bool
        let streaming: StreamingSupport
        let time, memory: String
        let remark: String?
    }

    func run() throws {
        let rows = MixerCatalogue.entries.map {
            Row(
                name: $0.name, title: $0.title, paper: $0.paper, causal: $0.causal, bidirectional: $0.bidirectional,
                padding: $0.padding, crossAttention: $0.crossAttention, rotary: $0.rotary, streaming: $0.streaming,
                time: $0.time, memory: $0.memory, remark: $0.remark)
        }
        if json { return try rows.printJSON() }
        let header = ["name", "causal", "bidirectional", "streaming", "time", "memory", "paper"]
        let cells = rows.map {
            [
                $0.name, $0.causal ? "yes" : "no", $0.bidirectional ? "yes" : "no", $0.streaming.rawValue, $0.time,
                $0.memory,
                "\($0.paper.authors) \($0.paper.year), arXiv \($0.paper.arXiv)",
            ]
        }
        print(TextTable(header, cells).text)
        for row in rows { if let remark = row.remark { print("\n\(row.name): \(remark)") } }
    }
}

/// Rows in columns as wide as their widest cell.
struct TextTable {
    let text: String

    init(_ header: [String], _ rows: [[String]]) {
        let all = [header] + rows
        let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        text = all.map { row in
            zip(row, widths).map { $0 + String(repeating: " ", count: $1 - $0.count) }.joined(separator: "  ")
                .replacing(#/ +$/#, with: "")
        }.joined(separator: "\n")
    }
}
