import Foundation
import Torch

/// The tables in which ListOps sets are published: tab-separated, with a header line that names the columns `Source`
/// and `Target`, in either order and among others. `Source` may stand in either notation.
public enum ListOpsFile {
    /// The names of the three files of a set.
    public static func name(of split: DatasetSplit) -> String {
        switch split {
        case .train: "basic_train.tsv"
        case .validation: "basic_val.tsv"
        case .test: "basic_test.tsv"
        }
    }

    /// All examples of a table.
    ///
    /// - Parameters:
    ///   - url: the table; `.gz` is unpacked.
    ///   - verifyingAnswers: whether every answer is computed anew and compared.
    /// - Throws: ``DatasetError`` with the line's number for a line that is not in the format; with the number of
    ///   wrong answers and the line of the first where answers are wrong.
    public static func read(_ url: URL, verifyingAnswers: Bool = true) throws(DatasetError) -> [ListOpsExample] {
        let bytes = try ByteFiles.readFile(url, mapped: true)
        let path = url.path(percentEncoded: false)
        guard !bytes.isEmpty else { throw .empty(path: path) }
        let result: Result<[ListOpsExample], DatasetError> = bytes.withUnsafeBytes { buffer in
            do throws(DatasetError) {
                return .success(try parse(buffer, path: path, verifyingAnswers: verifyingAnswers))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Writes a set as `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`, in the benchmark's format. The folder
    /// is made where it is missing. Every answer is proven by two evaluators before it is written.
    ///
    /// - Throws: ``DatasetError``; a file that was there before stays whole.
    public static func write(_ splits: ListOpsSplits, to folder: URL) throws {
        try makeFolder(folder)
        try write(splits.train, to: folder.appending(component: name(of: .train)))
        try write(splits.validation, to: folder.appending(component: name(of: .validation)))
        try write(splits.test, to: folder.appending(component: name(of: .test)))
    }

    /// Makes the folder, and those above it, where they are missing.
    ///
    /// - Throws: ``DatasetError/unwritable(path:reason:)``.
    public static func makeFolder(_ folder: URL) throws(DatasetError) {
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        } catch {
            throw .unwritable(path: folder.path(percentEncoded: false), reason: error.shortReason)
        }
    }

    /// Writes one table with the columns `Source`, in binary notation, and `Target`.
    ///
    /// - Throws: ``DatasetError/unprovenAnswer(expression:answers:)`` for an answer that is wrong, `FileWriteError`.
    public static func write(_ examples: [ListOpsExample], to url: URL) throws {
        try AtomicFile.write(to: url) { file in
            var buffer = Data("Source\tTarget\n".utf8)
            for example in examples {
                let proven = try example.expression.provenValue()
                guard proven == example.answer else {
                    throw DatasetError.unprovenAnswer(
                        expression: example.expression.description, answers: [example.answer, proven])
                }
                buffer.append(contentsOf: example.expression.binaryBytes)
                buffer.append(contentsOf: "\t\(example.answer)\n".utf8)
                if buffer.count >= 1 << 20 {
                    try file.write(buffer)
                    buffer.removeAll(keepingCapacity: true)
                }
            }
            try file.write(buffer)
        }
    }
}

extension ListOpsFile {
    private struct Columns {
        let source: Int
        let target: Int
        let count: Int
    }

    static func parse(
        _ bytes: UnsafeRawBufferPointer, path: String, verifyingAnswers: Bool
    ) throws(DatasetError) -> [ListOpsExample] {
        var examples: [ListOpsExample] = []
        var columns: Columns?
        var wrong: (count: Int, line: Int, stated: Int, correct: Int)?
        var rest = bytes[...]
        var line = 0
        while !rest.isEmpty {
            line += 1
            let end = rest.firstIndex(of: UInt8(ascii: "\n")) ?? rest.endIndex
            var row = rest[..<end]
            rest = rest[min(end + 1, rest.endIndex)...]
            if row.last == UInt8(ascii: "\r") { row = row.dropLast() }
            let cells = row.split(separator: UInt8(ascii: "\t"), omittingEmptySubsequences: false)
            guard let columns else {
                columns = try header(cells, path: path)
                continue
            }
            let example = try self.example(in: cells, columns, path: path, line: line)
            if verifyingAnswers {
                let correct = try example.expression.provenValue()
                if correct != example.answer {
                    wrong = (
                        (wrong?.count ?? 0) + 1, wrong?.line ?? line, wrong?.stated ?? example.answer,
                        wrong?.correct ?? correct
                    )
                }
            }
            examples.append(example)
        }
        if let wrong {
            throw .wrongAnswers(
                path: path, count: wrong.count, line: wrong.line, stated: wrong.stated, correct: wrong.correct)
        }
        guard !examples.isEmpty else {
            throw .malformedLine(path: path, line: line + 1, reason: "expected an example, found the end of the file")
        }
        return examples
    }

    private static func header(
        _ cells: [Slice<UnsafeRawBufferPointer>], path: String
    ) throws(DatasetError) -> Columns {
        let source = cells.firstIndex { $0.elementsEqual("Source".utf8) }
        let target = cells.firstIndex { $0.elementsEqual("Target".utf8) }
        guard let source, let target else {
            throw .malformedLine(
                path: path, line: 1, reason: "expected a header with the columns `Source` and `Target`, tab-separated")
        }
        return Columns(source: source, target: target, count: cells.count)
    }

    private static func example(
        in cells: [Slice<UnsafeRawBufferPointer>], _ columns: Columns, path: String, line: Int
    ) throws(DatasetError) -> ListOpsExample {
        guard cells.count == columns.count else {
            throw .malformedLine(
                path: path, line: line,
                reason: "expected \(columns.count) columns as in the header, found \(cells.count)")
        }
        guard let answer = ListOpsToken(bytes: cells[columns.target])?.digit else {
            throw .malformedLine(path: path, line: line, reason: "the target is not a digit from 0 to 9")
        }
        do throws(DatasetError) {
            return ListOpsExample(expression: try ListOpsExpression(bytes: cells[columns.source]), answer: answer)
        } catch {
            throw .malformedLine(path: path, line: line, reason: error.description)
        }
    }
}
