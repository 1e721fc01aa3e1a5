import Foundation
import Torch

/// A whole checkpoint: a folder of files that belong to one step.
public struct Checkpoint: Equatable, Sendable {
    /// Steps that were done when it was written.
    public let step: Int
    public let folder: URL

    /// The path of one of its files.
    public func file(_ name: String) -> URL { folder.appendingPathComponent(name) }
}

/// The checkpoints of a run, of which the last good one is always whole.
///
/// Each is a folder `step-00000200` with a manifest of its files' sizes and checksums. It is written under another
/// name, synchronized, and renamed; only then are older ones removed. A kill at any moment leaves the old checkpoints,
/// and damage that happens later is found by the manifest.
public struct CheckpointStore: Sendable {
    public let folder: URL
    /// How many are kept: the newest, and those to fall back to when it is damaged.
    public let count: Int

    public init(folder: URL, keeping count: Int = 2) {
        precondition(count >= 1, "CheckpointStore keeps at least 1 checkpoint, not \(count)")
        self.folder = folder
        self.count = count
    }

    /// Writes a checkpoint.
    ///
    /// - Parameters:
    ///   - step: steps that are done.
    ///   - body: writes the files, without folders of their own, into the folder that it is given.
    /// - Throws: `FileWriteError` (such as a full disk) or what `body` throws; the older checkpoints are then as before.
    @discardableResult
    public func save(step: Int, _ body: (URL) throws -> Void) throws -> Checkpoint {
        precondition(step >= 0, "a checkpoint's step is at least 0, not \(step)")
        try makeFolder(folder)
        removeLeftovers()
        let unfinished = folder.appendingPathComponent(Self.unfinishedPrefix + Self.name(of: step))
        try makeFolder(unfinished)
        do {
            try body(unfinished)
            try Manifest(step: step, describing: unfinished).write(to: unfinished)
            try AtomicFile.synchronizeFolder(unfinished)
            let final = freeFolder(for: step)
            try AtomicFile.move(unfinished, to: final)
            prune(after: step)
            return Checkpoint(step: step, folder: final)
        } catch {
            try? FileManager.default.removeItem(at: unfinished)
            throw error
        }
    }

    /// The newest whole checkpoint, or `nil` when there is none at all. Reads all of its bytes.
    ///
    /// - Parameter warn: is told, in a line each, of damaged checkpoints that were passed over.
    /// - Throws: ``RunError/noWholeCheckpoint(path:reasons:)`` when all are damaged.
    public func newest(warn: (String) -> Void = { _ in }) throws -> Checkpoint? {
        var reasons: [String] = []
        for candidate in saved().reversed() {
            do {
                try Manifest(in: candidate.folder).check(candidate.folder)
                for reason in reasons {
                    warn("passed over a checkpoint: \(reason); using '\(candidate.folder.lastPathComponent)'")
                }
                return candidate
            } catch {
                reasons.append("\(error)")
            }
        }
        guard reasons.isEmpty else { throw RunError.noWholeCheckpoint(path: folder.relativePath, reasons: reasons) }
        return nil
    }

    // MARK: - Names

    private static let unfinishedPrefix = ".partial-"
    private static let prefix = "step-"

    private static func name(of step: Int) -> String {
        let digits = "\(step)"
        return prefix + String(repeating: "0", count: max(0, 8 - digits.count)) + digits
    }

    /// All checkpoints by step; of the same step, the later written last.
    private func saved() -> [Checkpoint] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        let found = names.compactMap { name -> (step: Int, attempt: Int, name: String)? in
            guard name.hasPrefix(Self.prefix) else { return nil }
            let numbers = name.dropFirst(Self.prefix.count).split(separator: "-").map { Int($0) }
            guard let first = numbers.first, let step = first, numbers.count <= 2 else { return nil }
            return (step, numbers.count == 2 ? numbers[1] ?? 0 : 0, name)
        }
        return found.sorted { ($0.step, $0.attempt) < ($1.step, $1.attempt) }
            .map { Checkpoint(step: $0.step, folder: folder.appendingPathComponent($0.name)) }
    }

    /// A step can be written twice, after its first checkpoint was damaged. The second gets a name of its own, since a
    /// folder cannot be replaced in one step.
    private func freeFolder(for step: Int) -> URL {
        let taken = Set(saved().map(\.folder.lastPathComponent))
        var name = Self.name(of: step)
        var attempt = 0
        while taken.contains(name) {
            attempt += 1
            name = "\(Self.name(of: step))-\(attempt)"
        }
        return folder.appendingPathComponent(name)
    }

    // MARK: - Removal

    /// Removes checkpoints of later steps, which a resumed run has left behind as damaged, and the oldest.
    private func prune(after step: Int) {
        let all = saved()
        let kept = all.filter { $0.step <= step }.suffix(count)
        for checkpoint in all where !kept.contains(checkpoint) {
            // Renamed first: a kill while files are removed must not leave what looks like a damaged checkpoint.
            let name = Self.unfinishedPrefix + checkpoint.folder.lastPathComponent
            let doomed = folder.appendingPathComponent(name)
            guard rename(checkpoint.folder.path, doomed.path) == 0 else { continue }
            try? FileManager.default.removeItem(at: doomed)
        }
    }

    /// Removes what killed writers left.
    private func removeLeftovers() {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        for name in names where name.hasPrefix(Self.unfinishedPrefix) {
            try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        }
    }

    private func makeFolder(_ url: URL) throws(FileWriteError) {
        guard mkdir(url.path, 0o777) == 0 || errno == EEXIST else {
            throw FileWriteError(operation: "create", path: url.relativePath, code: errno)
        }
    }
}

/// What a checkpoint consists of: `manifest.json`.
private struct Manifest: Codable {
    struct File: Codable {
        var name: String
        var bytes: Int
        var crc32c: UInt32
    }

    static let fileName = "manifest.json"
    var step: Int
    var files: [File]

    /// Describes the files of a folder, and returns when they are on the disk.
    init(step: Int, describing folder: URL) throws {
        self.step = step
        files = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted().map { name in
            let path = folder.appendingPathComponent(name).path
            try OutputFile(appendingTo: path).synchronize()
            let (bytes, crc) = try Self.measure(folder.appendingPathComponent(name))
            return File(name: name, bytes: bytes, crc32c: crc)
        }
    }

    init(in folder: URL) throws {
        let url = folder.appendingPathComponent(Self.fileName)
        do {
            self = try JSONDecoder().decode(Manifest.self, from: Data(contentsOf: url))
        } catch {
            throw RunError.damaged(path: url.relativePath, reason: "it is missing or no manifest")
        }
    }

    func write(to folder: URL) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try AtomicFile.write(encoder.encode(self), to: folder.appendingPathComponent(Self.fileName))
    }

    /// - Throws: ``RunError/damaged(path:reason:)`` for the first file that is not as described.
    func check(_ folder: URL) throws {
        for file in files {
            // A manifest is a file too, and may have been tampered with.
            guard !file.name.contains("/") else {
                throw RunError.damaged(path: folder.relativePath, reason: "its manifest names '\(file.name)'")
            }
            let url = folder.appendingPathComponent(file.name)
            func damaged(_ reason: String) -> RunError { .damaged(path: url.relativePath, reason: reason) }
            guard let size = try? FileManager.default.attributesOfItem(atPath: url.path)[.size] as? Int else {
                throw damaged("it is missing")
            }
            guard size == file.bytes else { throw damaged("it has \(size) bytes, expected \(file.bytes)") }
            guard let measured = try? Self.measure(url), measured.crc32c == file.crc32c else {
                throw damaged("its checksum is wrong")
            }
        }
    }

    private static func measure(_ url: URL) throws -> (bytes: Int, crc32c: UInt32) {
        let handle = try FileHandle(forReadingFrom: url)
        defer { try? handle.close() }
        var crc = CRC32C()
        var bytes = 0
        while let part = try handle.read(upToCount: 1 << 20), !part.isEmpty {
            part.withUnsafeBytes { crc.update($0) }
            bytes += part.count
        }
        return (bytes, crc.value)
    }
}
