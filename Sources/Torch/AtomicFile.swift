import Foundation

/// Writes files so that a kill at any moment leaves the old file or the new one, whole.
///
/// The bytes go to a temporary file in the same folder, are synchronized to the disk, and then take the file's name
/// in one step. When anything fails the temporary file is removed and the old file is as it was.
public enum AtomicFile {
    /// Replaces or creates the file with these bytes.
    ///
    /// - Throws: ``FileWriteError``, which names `url` and the reason (full disk, permission, …).
    public static func write(_ data: Data, to url: URL) throws {
        try write(to: url) { try $0.write(data) }
    }

    /// Replaces or creates the file with what `body` writes, for contents too large to hold at once.
    ///
    /// - Throws: ``FileWriteError``, or what `body` throws; the old file is then untouched.
    public static func write<Result>(to url: URL, _ body: (OutputFile) throws -> Result) throws -> Result {
        // A link stays a link: the file that it names is replaced.
        let target = url.resolvingSymlinksInPath()
        let folder = target.deletingLastPathComponent()
        // A short name of its own, since the file's name may already be as long as names can be.
        let temporary = folder.appendingPathComponent(
            temporaryPrefix + String(UInt64.random(in: 0 ... .max), radix: 36))
        do {
            let file = try OutputFile(creating: temporary.path)
            let result = try body(file)
            try file.synchronize()
            try file.close()
            try move(temporary, to: target)
            return result
        } catch var error as FileWriteError {
            unlink(temporary.path)
            // The user knows the file, not the temporary one.
            if error.path == temporary.path { error.path = url.path }
            throw error
        } catch {
            unlink(temporary.path)
            throw error
        }
    }

    /// Gives a finished file or folder its final name in one step that survives a power cut.
    ///
    /// An existing file is replaced; an existing folder must be empty. Both paths must be on one file system.
    public static func move(_ source: URL, to destination: URL) throws(FileWriteError) {
        guard rename(source.path, destination.path) == 0 else {
            throw FileWriteError(operation: "write", path: destination.path, code: errno)
        }
        try synchronizeFolder(destination.deletingLastPathComponent())
    }

    /// Makes the names in a folder (creations, renames, removals) survive a power cut.
    public static func synchronizeFolder(_ folder: URL) throws(FileWriteError) {
        let descriptor = open(folder.path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            // A folder that may be written but not listed cannot be synchronized; that is no reason to fail.
            if errno == EACCES { return }
            throw FileWriteError(operation: "write", path: folder.path, code: errno)
        }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 || errno == EINVAL else {
            throw FileWriteError(operation: "write", path: folder.path, code: errno)
        }
    }

    /// Removes what killed writers left in a folder. Call only where no other process is writing.
    public static func removeTemporaries(in folder: URL) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        for name in names where name.hasPrefix(temporaryPrefix) {
            unlink(folder.appendingPathComponent(name).path)
        }
    }

    static let temporaryPrefix = ".partial-"
}
