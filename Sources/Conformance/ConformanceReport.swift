import Foundation

/// What came of comparing one golden file.
public struct ConformanceReport: Codable, Sendable {
    public let file: String
    public let system: String
    public let variant: String
    /// How many tensors were compared, over all precisions and forms.
    public let checks: Int
    /// The largest deviation relative to the largest magnitude, by precision.
    public let worst: [String: Double]
    /// What did not agree, or could not be built; empty when the file passed.
    public let failures: [String]

    public var passed: Bool { failures.isEmpty }

    /// One line for a person, and one more for each failure.
    public var text: String {
        let name = "\(system)/\(variant)"
        guard passed else {
            return (["FAILED  \(file) (\(name))"] + failures.map { "        \($0)" }).joined(separator: "\n")
        }
        let deviations = worst.sorted { $0.key < $1.key }.map { "\($0.key) \(String(format: "%.1e", $0.value))" }
        return "ok      \(file) (\(name)): \(checks) tensors, worst \(deviations.joined(separator: ", "))"
    }
}

/// Finding golden files.
public enum GoldenFiles {
    /// The `.safetensors` files that are `path` or lie below it, in order.
    ///
    /// - Throws: ``ConformanceError`` when there is no such file or folder, or none of those files in it.
    public static func find(_ path: String) throws -> [URL] {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
            throw ConformanceError("\(path): no such file or folder", isMissingFile: true)
        }
        let url = URL(fileURLWithPath: path)
        guard isFolder.boolValue else { return [url] }
        let enumerator = FileManager.default.enumerator(at: url, includingPropertiesForKeys: nil)
        let found = (enumerator?.compactMap { $0 as? URL } ?? []).filter { $0.pathExtension == "safetensors" }
        guard !found.isEmpty else {
            throw ConformanceError("\(path): no .safetensors files in this folder", isMissingFile: true)
        }
        return found.sorted { $0.path < $1.path }
    }
}

/// A golden file that cannot be used.
public struct ConformanceError: Error, Sendable, CustomStringConvertible {
    public let description: String

    /// Whether there is nothing to read, rather than something that is wrong.
    public let isMissingFile: Bool

    public init(_ description: String, isMissingFile: Bool = false) {
        self.description = description
        self.isMissingFile = isMissingFile
    }
}
