import Foundation
import Torch

/// Measurements of one step on one split of the data.
public struct MetricsRecord: Equatable, Sendable {
    public var step: Int
    /// `train`, `validation` or `test`.
    public var split: String
    /// Named numbers, such as `loss` and `tokens_per_second`.
    public var values: [String: Double]

    public init(step: Int, split: String, values: [String: Double]) {
        self.step = step
        self.split = split
        self.values = values
    }

    /// One JSON object on one line. JSON has no infinity and no NaN; both are written as `null` and read as NaN.
    public var json: String {
        let numbers = values.sorted { $0.key < $1.key }.map { name, value in
            "\(Self.quoted(name)):\(value.isFinite ? "\(value)" : "null")"
        }
        return "{" + (["\"step\":\(step)", "\"split\":\(Self.quoted(split))"] + numbers).joined(separator: ",") + "}"
    }

    private static func quoted(_ text: String) -> String {
        let data = try? JSONEncoder().encode(text)
        return data.map { String(decoding: $0, as: UTF8.self) } ?? "\"\""
    }
}

extension MetricsRecord: Decodable {
    // By JSONDecoder, since JSONSerialization rounds some numbers in their last bit.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: AnyKey.self)
        step = try values.decode(Int.self, forKey: AnyKey("step"))
        split = try values.decode(String.self, forKey: AnyKey("split"))
        self.values = [:]
        for key in values.allKeys where key.stringValue != "step" && key.stringValue != "split" {
            self.values[key.stringValue] = try values.decodeIfPresent(Double.self, forKey: key) ?? .nan
        }
    }
}

/// `metrics.jsonl` of a run: one JSON object a line, each written whole.
public final class MetricsLog {
    private let file: OutputFile

    /// Opens the log for writing.
    ///
    /// - Parameter step: `nil` begins a new log. Otherwise what an earlier process wrote of later steps is dropped, so
    ///   that a resumed run has each step once.
    /// - Throws: `FileWriteError`; ``RunError`` when a line of the old log is damaged.
    public init(at url: URL, resumingAfter step: Int? = nil) throws {
        var kept: [MetricsRecord] = []
        if let step, FileManager.default.fileExists(atPath: url.path) {
            kept = try Self.read(url).filter { $0.step <= step }
        }
        try AtomicFile.write(Data(kept.map { $0.json + "\n" }.joined().utf8), to: url)
        file = try OutputFile(appendingTo: url.path)
    }

    /// Adds a line. When the disk is full the log stays as it was.
    public func append(_ record: MetricsRecord) throws {
        let count = file.count
        do {
            try file.write(Data((record.json + "\n").utf8))
        } catch {
            try? file.truncate(to: count)
            throw error
        }
    }

    /// Returns when all lines are on the disk.
    public func synchronize() throws { try file.synchronize() }

    /// The records of a log. A last line without its end, which a killed process may leave, does not count.
    ///
    /// - Throws: ``RunError`` with the number of the first line that is no record.
    public static func read(_ url: URL) throws -> [MetricsRecord] {
        guard let data = try? Data(contentsOf: url) else {
            throw RunError.damaged(path: url.relativePath, reason: "it cannot be read")
        }
        let end = data.lastIndex(of: 0x0A) ?? data.startIndex
        let decoder = JSONDecoder()
        return try data[..<end].split(separator: 0x0A, omittingEmptySubsequences: false).enumerated().compactMap {
            guard data.startIndex < end else { return nil }
            guard let record = try? decoder.decode(MetricsRecord.self, from: $1) else {
                throw RunError.damaged(path: url.relativePath, reason: "line \($0 + 1) is no record of metrics")
            }
            return record
        }
    }
}
