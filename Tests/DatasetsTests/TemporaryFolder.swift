import CZlib
import Foundation

/// A folder that lives as long as one test.
final class TemporaryFolder {
    let url: URL

    init() throws {
        url = FileManager.default.temporaryDirectory.appending(component: "Datasets \(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    }

    deinit {
        try? FileManager.default.removeItem(at: url)
    }

    /// Writes `bytes` at `path` inside the folder, folders on the way included.
    @discardableResult
    func write(_ bytes: some Sequence<UInt8>, to path: String) throws -> URL {
        let file = url.appending(path: path)
        try FileManager.default.createDirectory(
            at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(bytes).write(to: file)
        return file
    }

    @discardableResult
    func write(_ text: String, to path: String) throws -> URL {
        try write(text.utf8, to: path)
    }

    /// `bytes` as zlib's own writer packs them.
    func gzip(_ bytes: [UInt8]) throws -> [UInt8] {
        let file = url.appending(component: ".\(UUID().uuidString)")
        let stream = gzopen(file.path(percentEncoded: false), "wb")
        gzwrite(stream, bytes, UInt32(bytes.count))
        gzclose(stream)
        defer { try? FileManager.default.removeItem(at: file) }
        return try [UInt8](Data(contentsOf: file))
    }
}
