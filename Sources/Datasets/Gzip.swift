import CZlib
import Foundation

/// Reads the gzip format (RFC 1952): any number of members, checksums verified.
enum Gzip {
    /// All bytes that `compressed` holds.
    ///
    /// - Throws: ``DatasetError/corruptGzip(path:reason:)``, naming `path`, for a stream that is cut off or damaged.
    static func decompress(_ compressed: Data, path: String) throws(DatasetError) -> Data {
        let result: Result<Data, DatasetError> = compressed.withUnsafeBytes { buffer in
            var member = buffer[...]
            var bytes = Data()
            do throws(DatasetError) {
                repeat {
                    let used = try decompressMember(UnsafeRawBufferPointer(rebasing: member), into: &bytes, path: path)
                    member = member.dropFirst(used)
                    // Tapes and block devices pad the last member with zeros, as gzip itself accepts.
                } while !member.allSatisfy { $0 == 0 }
                return .success(bytes)
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Appends one member to `bytes` and returns how many compressed bytes it took.
    private static func decompressMember(
        _ input: UnsafeRawBufferPointer, into bytes: inout Data, path: String
    ) throws(DatasetError) -> Int {
        var stream = z_stream()
        let gzipWindowBits = MAX_WBITS + 16
        guard inflateInit2_(&stream, gzipWindowBits, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
            throw .corruptGzip(path: path, reason: "the decompressor does not start")
        }
        defer { inflateEnd(&stream) }

        var chunk = [UInt8](repeating: 0, count: 1 << 18)
        var consumed = 0
        while true {
            let available = min(input.count - consumed, 1 << 30)
            let start = input.baseAddress?.advanced(by: consumed).assumingMemoryBound(to: UInt8.self)
            stream.next_in = UnsafeMutablePointer(mutating: start)
            stream.avail_in = UInt32(available)
            let (status, produced) = chunk.withUnsafeMutableBufferPointer { output in
                stream.next_out = output.baseAddress
                stream.avail_out = UInt32(output.count)
                let status = inflate(&stream, Z_NO_FLUSH)
                return (status, output.count - Int(stream.avail_out))
            }
            consumed += available - Int(stream.avail_in)
            bytes.append(contentsOf: chunk[..<produced])
            switch status {
            case Z_STREAM_END:
                return consumed
            case Z_OK:
                continue
            case Z_BUF_ERROR:
                throw .corruptGzip(path: path, reason: "it ends too early, after \(input.count) bytes")
            default:
                let reason = stream.msg.map { String(cString: $0) } ?? "status \(status)"
                throw .corruptGzip(path: path, reason: reason)
            }
        }
    }
}
