import Foundation

/// A file that appears under its name only when it is whole: written beside it, synced, then renamed.
struct AtomicFile: ~Copyable {
    private let url: URL
    private let temporary: URL
    private let handle: FileHandle
    private var buffer: [UInt8] = []

    /// Writes what `body` appends to `url`, replacing what stood there. On any error the old file stays.
    static func write(
        to url: URL, _ body: (inout AtomicFile) throws(DatasetError) -> Void
    ) throws(DatasetError) {
        var file = try AtomicFile(url)
        do throws(DatasetError) {
            try body(&file)
            try file.commit()
        } catch {
            file.abandon()
            throw error
        }
    }

    private init(_ url: URL) throws(DatasetError) {
        self.url = url
        temporary = url.deletingLastPathComponent().appending(
            component: ".\(url.lastPathComponent).\(UUID().uuidString).tmp")
        do {
            try Data().write(to: temporary)
            handle = try FileHandle(forWritingTo: temporary)
        } catch {
            throw .unwritable(path: url.path(percentEncoded: false), reason: error.shortReason)
        }
    }

    mutating func append(_ bytes: some Sequence<UInt8>) throws(DatasetError) {
        buffer.append(contentsOf: bytes)
        if buffer.count >= 1 << 20 {
            try flush()
        }
    }

    private mutating func flush() throws(DatasetError) {
        do {
            try handle.write(contentsOf: Data(buffer))
        } catch {
            throw .unwritable(path: url.path(percentEncoded: false), reason: error.shortReason)
        }
        buffer.removeAll(keepingCapacity: true)
    }

    private mutating func commit() throws(DatasetError) {
        try flush()
        let path = url.path(percentEncoded: false)
        do {
            try handle.synchronize()
            try handle.close()
        } catch {
            throw .unwritable(path: path, reason: error.shortReason)
        }
        guard rename(temporary.path(percentEncoded: false), path) == 0 else {
            throw .unwritable(path: path, reason: String(cString: strerror(errno)))
        }
    }

    private func abandon() {
        try? handle.close()
        try? FileManager.default.removeItem(at: temporary)
    }
}
