import Foundation

/// A file could not be written: what was tried, on which path, and the system's reason.
public struct FileWriteError: Error, CustomStringConvertible, Equatable, Sendable {
    /// What was tried, as a verb: `create`, `write`, `rename`, …
    public var operation: String
    public var path: String
    /// The system's error number, such as `ENOSPC`.
    public var code: Int32

    public init(operation: String, path: String, code: Int32) {
        self.operation = operation
        self.path = path
        self.code = code
    }

    public var description: String {
        "cannot \(operation) '\(path)': \(reason)"
    }

    private var reason: String {
        switch code {
        case ENOSPC: "the disk is full"
        case EDQUOT: "the disk quota is used up"
        case EACCES, EPERM: "permission denied"
        case EROFS: "the file system is read-only"
        case EFBIG: "the file would be larger than the system allows"
        case ENOENT: "no such folder"
        case ENOTDIR: "a part of the path is not a folder"
        case EISDIR: "it is a folder"
        default: String(cString: strerror(code))
        }
    }
}

/// A file open for writing, whose every failure (a full disk, a missing permission) is a ``FileWriteError``.
///
/// Nothing is buffered: what ``write(_:)-(UnsafeRawBufferPointer)`` returned from outlives the process, and what
/// ``synchronize()`` returned from outlives the machine.
public final class OutputFile {
    /// The path that errors name.
    public let path: String
    /// The file's length in bytes.
    public private(set) var count: Int
    private var descriptor: Int32

    /// Creates a file that must not exist yet.
    public convenience init(creating path: String) throws(FileWriteError) {
        try self.init(path: path, flags: O_WRONLY | O_CREAT | O_EXCL, operation: "create")
    }

    /// Opens a file to write at its end, creating it where there is none.
    public convenience init(appendingTo path: String) throws(FileWriteError) {
        try self.init(path: path, flags: O_WRONLY | O_CREAT | O_APPEND, operation: "open")
    }

    private init(path: String, flags: Int32, operation: String) throws(FileWriteError) {
        self.path = path
        count = 0
        descriptor = open(path, flags | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw FileWriteError(operation: operation, path: path, code: errno) }
        let end = lseek(descriptor, 0, SEEK_END)
        count = end > 0 ? Int(end) : 0
    }

    deinit {
        if descriptor >= 0 { _ = Foundation.close(descriptor) }
    }

    /// Writes all the bytes at the end of the file.
    public func write(_ bytes: UnsafeRawBufferPointer) throws(FileWriteError) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let written = Foundation.write(descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count)
            if written > 0 {
                rest = rest.dropFirst(written)
                count += written
            } else if written == 0 || errno != EINTR {
                throw failure("write", code: written == 0 ? ENOSPC : errno)
            }
        }
    }

    /// Writes all the bytes at the end of the file.
    public func write(_ data: Data) throws(FileWriteError) {
        // A typed throw does not pass through `withUnsafeBytes`, hence the detour.
        let result = data.withUnsafeBytes { bytes in
            Result { () throws(FileWriteError) in try write(bytes) }
        }
        try result.get()
    }

    /// Shortens the file to its first `count` bytes.
    public func truncate(to count: Int) throws(FileWriteError) {
        guard ftruncate(descriptor, off_t(count)) == 0, lseek(descriptor, 0, SEEK_END) >= 0 else {
            throw failure("shorten", code: errno)
        }
        self.count = count
    }

    /// Returns when the bytes are on the disk.
    public func synchronize() throws(FileWriteError) {
        // Pipes and devices have nothing to synchronize and say EINVAL.
        guard fsync(descriptor) == 0 || errno == EINVAL else { throw failure("write", code: errno) }
    }

    /// Ends writing. Some file systems report a full disk only here, so a file counts as written after this.
    public func close() throws(FileWriteError) {
        guard descriptor >= 0 else { return }
        let status = Foundation.close(descriptor)
        let code = errno
        descriptor = -1
        guard status == 0 || code == EINTR else { throw failure("write", code: code) }
    }

    private func failure(_ operation: String, code: Int32) -> FileWriteError {
        FileWriteError(operation: operation, path: path, code: code)
    }
}
