import Foundation
import Torch

/// The folder of one training run, and the names of what it holds.
///
/// ```
/// recipe.yaml         the recipe with all defaults and overrides
/// config.json         the model's configuration
/// model.safetensors   the best weights so far
/// metrics.jsonl       measurements, one JSON object a line
/// events.out.…        the same for TensorBoard
/// checkpoint/         what a resumed run needs
/// ```
///
/// One from ``create(at:)`` or ``resume(at:)`` is locked against other trainers while it, or a copy of it, lives; the
/// lock ends with the process, however that ends.
public struct RunDirectory: Sendable {
    public let url: URL
    /// Whether the folder holds a recipe: false for a new run, and for one that was killed before it had written it.
    public let isBegun: Bool
    private let lock: RunLock?

    public var recipe: URL { url.appendingPathComponent("recipe.yaml") }
    public var configuration: URL { url.appendingPathComponent("config.json") }
    public var model: URL { url.appendingPathComponent("model.safetensors") }
    public var metrics: URL { url.appendingPathComponent("metrics.jsonl") }
    public var checkpoints: CheckpointStore { CheckpointStore(folder: url.appendingPathComponent("checkpoint")) }

    /// Makes the folder of a new run. It may exist if it is empty.
    ///
    /// - Throws: ``RunError`` when it holds a run or something else, or is being trained in; `FileWriteError`.
    public static func create(at url: URL) throws -> RunDirectory {
        try makeFolder(url)
        do {
            try checkContents(of: url)
        } catch RunError.notARun(let path, let reason) {
            throw RunError.cannotBegin(path: path, reason: reason)
        }
        let run = try RunDirectory(locking: url)
        guard !run.isBegun else { throw RunError.exists(path: url.relativePath) }
        return run
    }

    /// Removes the folder of a run that could not begin, so that a mistake in a recipe leaves nothing behind. Does nothing
    /// where there is more in it than the lock.
    public func discardIfEmpty() {
        let lockFile = url.appendingPathComponent(RunLock.fileName)
        let names = try? FileManager.default.contentsOfDirectory(atPath: url.path)
        guard lock != nil, names == [RunLock.fileName] else { return }
        unlink(lockFile.path)
        rmdir(url.path)
    }

    /// Opens the folder of a run to continue it.
    ///
    /// - Throws: ``RunError`` when there is no run, or another process is training in it; `FileWriteError`.
    public static func resume(at url: URL) throws -> RunDirectory {
        try checkContents(of: url)
        return try RunDirectory(locking: url)
    }

    /// Opens the folder of a run to read from it, while it is trained or later.
    ///
    /// - Throws: ``RunError`` when it holds no run.
    public static func open(at url: URL) throws -> RunDirectory {
        try checkContents(of: url)
        let run = RunDirectory(url: url, lock: nil)
        guard run.isBegun else { throw RunError.notARun(path: url.relativePath, reason: "it has no recipe.yaml") }
        return run
    }

    private init(locking url: URL) throws {
        let lock = try RunLock(folder: url)
        AtomicFile.removeTemporaries(in: url)
        self.init(url: url, lock: lock)
    }

    private init(url: URL, lock: RunLock?) {
        self.url = url
        self.lock = lock
        isBegun = FileManager.default.fileExists(atPath: url.appendingPathComponent("recipe.yaml").path)
    }

    /// Refuses a folder that holds things but no run: nobody wants a run spread over a home folder.
    private static func checkContents(of url: URL) throws {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: url.path, isDirectory: &isFolder) else {
            throw RunError.notARun(path: url.relativePath, reason: "no such folder")
        }
        guard isFolder.boolValue else { throw RunError.notARun(path: url.relativePath, reason: "it is a file") }
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: url.path) else {
            throw RunError.notARun(path: url.relativePath, reason: "it cannot be listed")
        }
        let marks = ["recipe.yaml", RunLock.fileName]
        guard names.isEmpty || names.contains(where: marks.contains) else {
            throw RunError.notARun(path: url.relativePath, reason: "it holds other files and no run")
        }
    }

    /// `mkdir -p`, with the system's reason when it fails.
    private static func makeFolder(_ url: URL) throws(FileWriteError) {
        guard mkdir(url.path, 0o777) != 0, errno != EEXIST else { return }
        let parent = url.deletingLastPathComponent()
        guard errno == ENOENT, parent.path != url.path else {
            throw FileWriteError(operation: "create", path: url.relativePath, code: errno)
        }
        try makeFolder(parent)
        guard mkdir(url.path, 0o777) == 0 || errno == EEXIST else {
            throw FileWriteError(operation: "create", path: url.relativePath, code: errno)
        }
    }
}

/// Keeps a second trainer out of a run directory. The system drops the lock when the process ends, even by a kill.
private final class RunLock: Sendable {
    static let fileName = ".lock"
    private let descriptor: Int32

    init(folder: URL) throws {
        let path = folder.appendingPathComponent(Self.fileName).path
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw FileWriteError(operation: "create", path: path, code: errno) }
        // Some network file systems know no locks; training there goes unguarded.
        if !Self.takes(descriptor) {
            let text = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
            close(descriptor)
            let process = Int(text.trimmingCharacters(in: .whitespacesAndNewlines))
            throw RunError.locked(path: folder.relativePath, process: process)
        }
        let text = "\(ProcessInfo.processInfo.processIdentifier)\n"
        _ = ftruncate(descriptor, 0)
        _ = write(descriptor, text, text.utf8.count)
    }

    deinit { close(descriptor) }

    /// Waits a moment before giving up: a killed process holds its lock until the system has cleared it away.
    private static func takes(_ descriptor: Int32) -> Bool {
        for attempt in 0..<40 {
            if attempt > 0 { usleep(50_000) }
            if flock(descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK { return true }
        }
        return false
    }
}
