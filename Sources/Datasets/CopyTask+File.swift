import Foundation
import Torch

extension CopyTask {
    /// Writes sequences for others to read: one a line, its `length` token ids with blanks between, 0 the separator.
    ///
    /// - Throws: `FileWriteError`; a file that was there before stays whole.
    public func write(count: Int, seed: UInt64, to url: URL) throws {
        try AtomicFile.write(to: url) { file in
            let piece = 1024
            for start in stride(from: 0, to: count, by: piece) {
                let rows = start..<min(start + piece, count)
                let sequences = batch(rows.map { SeededGenerator(seed: seed, path: UInt64($0)) })
                let lines = rows.indices.map { index in
                    let first = (index - rows.lowerBound) * length
                    return sequences.inputs[first..<first + length].map(String.init).joined(separator: " ") + "\n"
                }
                try file.write(Data(lines.joined().utf8))
            }
        }
    }
}
