import Foundation

/// A safetensors file that cannot be read, or tensors that cannot be written as one: which file and tensor, and why.
public struct SafetensorsError: Error, Equatable, Sendable, CustomStringConvertible {
    public let file: String
    /// The tensor concerned; nil when it is the file as a whole.
    public let tensor: String?
    public let reason: String

    init(_ file: String, tensor: String? = nil, _ reason: String) {
        self.file = file
        self.tensor = tensor
        self.reason = reason
    }

    public var description: String {
        let subject = tensor.map { ": tensor '\(SafetensorsHeader.shortened($0))'" } ?? ""
        return "\(file)\(subject): \(reason)"
    }
}

/// A safetensors file opened for reading.
///
/// The file is mapped into memory: opening reads and checks the header only, and each ``tensor(_:)`` copies its own
/// bytes. Whatever the format forbids (overlaps, holes, trailing bytes, sizes that do not match) is refused.
public struct SafetensorsFile: Sendable {
    /// One tensor of the file.
    public struct Entry: Equatable, Sendable {
        public let dtype: DType
        public let shape: [Int]
        /// Where its bytes lie, counted from the end of the header.
        public let bytes: Range<Int>
    }

    /// The file's own words about itself.
    public let metadata: [String: String]
    /// Every tensor by name.
    public let entries: [String: Entry]
    private let file: MappedFile
    private let dataStart: Int

    /// - Throws: ``SafetensorsError``
    public init(_ path: String) throws {
        file = try MappedFile(path)
        let header = try SafetensorsHeader(file.bytes, file: path)
        metadata = header.metadata
        entries = header.entries
        dataStart = header.dataStart
    }

    /// - Throws: ``SafetensorsError``
    public init(_ url: URL) throws { try self.init(url.path) }

    /// The names of all tensors, sorted.
    public var names: [String] { entries.keys.sorted() }

    /// A copy of one tensor, on the CPU.
    ///
    /// - Throws: ``SafetensorsError`` when there is no tensor of this name, or no memory for it.
    public func tensor(_ name: String) throws -> Tensor {
        guard let entry = entries[name] else {
            throw SafetensorsError(file.path, tensor: name, "is not in the file, which has \(entries.count) tensors")
        }
        let bytes = UnsafeRawBufferPointer(
            rebasing: file.bytes[dataStart + entry.bytes.lowerBound..<dataStart + entry.bytes.upperBound])
        do {
            return try withTorchErrors {
                // A byte other than 0 and 1 is no bool to a C++ program, and a file may hold any.
                entry.dtype == .bool
                    ? Tensor(bytes: bytes, shape: entry.shape, dtype: .uint8) .!= 0
                    : Tensor(bytes: bytes, shape: entry.shape, dtype: entry.dtype)
            }
        } catch let error as TorchError {
            throw SafetensorsError(file.path, tensor: name, "\(error)")
        }
    }

    /// Copies of all tensors, on the CPU.
    ///
    /// - Throws: ``SafetensorsError``
    public func tensors() throws -> [String: Tensor] {
        try Dictionary(uniqueKeysWithValues: entries.keys.map { ($0, try tensor($0)) })
    }
}

/// Writes safetensors files.
public enum Safetensors {
    /// Writes the tensors, replacing the file in one step; a failure leaves the old file as it was.
    ///
    /// The same tensors give the same bytes: wider types come first, so that every tensor is aligned, then names in order.
    /// Copies at most one tensor at a time, and none that is contiguous and on the CPU.
    ///
    /// - Throws: ``FileWriteError`` when the file cannot be written (a full disk, …); ``SafetensorsError`` when the format
    ///   has no place for a tensor's type or name.
    public static func write(_ tensors: [String: Tensor], metadata: [String: String] = [:], to url: URL) throws {
        let ordered = tensors.sorted { ($1.value.dtype.size, $0.key) < ($0.value.dtype.size, $1.key) }
        let header = try SafetensorsHeader.encoded(ordered, metadata, file: url.path)
        try AtomicFile.write(to: url) { file in
            try file.write(header)
            for (_, tensor) in ordered { try tensor.detached().withBytes { try file.write($0) } }
        }
    }
}

/// A file's bytes, mapped into memory for reading.
private final class MappedFile: @unchecked Sendable {
    // Unchecked: the mapping is private, never written, and lives as long as this object.
    let path: String
    let bytes: UnsafeRawBufferPointer

    init(_ path: String) throws {
        self.path = path
        // Without O_NONBLOCK a pipe without a writer would wait for ever.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw SafetensorsError(path, "cannot be opened: \(Self.reason(errno))") }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw SafetensorsError(path, Self.reason(errno)) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw SafetensorsError(path, "is not a regular file") }
        let count = Int(status.st_size)
        guard count > 0 else {
            bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            return
        }
        guard let start = mmap(nil, count, PROT_READ, MAP_PRIVATE, descriptor, 0), start != MAP_FAILED else {
            throw SafetensorsError(path, "cannot be mapped into memory: \(Self.reason(errno))")
        }
        bytes = UnsafeRawBufferPointer(start: start, count: count)
    }

    deinit {
        if let start = bytes.baseAddress { munmap(UnsafeMutableRawPointer(mutating: start), bytes.count) }
    }

    private static func reason(_ code: Int32) -> String { String(cString: strerror(code)) }
}
