import Foundation
import Torch

/// Standard output, whose failures are errors: a full disk is told, a reader that has gone ends the output quietly.
enum StandardOutput {
    /// Nobody reads any more, as after `| head`: no mistake of anyone.
    struct ReaderGone: Error {}

    static func write(_ data: Data) throws {
        var rest = Array(data)[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Foundation.write(STDOUT_FILENO, $0.baseAddress, $0.count) }
            if written < 0 && errno != EINTR { throw failure(errno) }
            rest = rest.dropFirst(max(0, written))
        }
    }

    /// Returns when everything that was printed is written.
    static func flush() throws {
        guard fflush(nil) == 0 else { throw failure(errno) }
    }

    private static func failure(_ code: Int32) -> any Error {
        code == EPIPE ? ReaderGone() : FileWriteError(operation: "write", path: "standard output", code: code)
    }
}
