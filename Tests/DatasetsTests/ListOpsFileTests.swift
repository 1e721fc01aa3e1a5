import Foundation
import Testing
import Torch

@testable import Datasets

@Suite struct ListOpsFileTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    private func read(_ text: String, verifyingAnswers: Bool = true) throws -> [ListOpsExample] {
        try ListOpsFile.read(folder.write(text, to: "set.tsv"), verifyingAnswers: verifyingAnswers)
    }

    @Test func goldenTableReads() throws {
        let url = try #require(Bundle.module.url(forResource: "listops", withExtension: "tsv"))
        #expect(try ListOpsFile.read(url).count == 20)
    }

    @Test func setComesBack() throws {
        let splits = try ListOpsSplits(generating: ListOpsGeneratorTests.small)
        let target = folder.url.appending(path: "new/set")
        try ListOpsFile.write(splits, to: target)
        try ListOpsFile.write(splits, to: target)
        let names = try FileManager.default.contentsOfDirectory(atPath: target.path(percentEncoded: false))
        #expect(names.sorted() == ["basic_test.tsv", "basic_train.tsv", "basic_val.tsv"])
        #expect(try ListOpsFile.read(target.appending(component: "basic_val.tsv")) == splits.validation)

        let data = try ClassificationDataset.listOps(contentsOf: target, maximumLength: 100)
        #expect(DatasetSplit.allCases.map { data[$0].count } == [400, 50, 60])
        #expect(data.vocabularySize == 17 && data.objective == .classification(classes: 10))
        #expect(data[.test].labels == splits.test.map { Int32($0.answer) })
        for batch in try data.evaluationBatches(of: .test, batchSize: 16) {
            #expect(batch.length <= 100)
            #expect(batch.inputs.allSatisfy { (0...15).contains($0) })
        }
        let generated = try ClassificationDataset.listOps(generating: ListOpsGeneratorTests.small)
        #expect(generated[.train].labels == data[.train].labels)
        #expect(generated.maximumLength == 128)
    }

    @Test func bothHeaderOrdersAndLineEndsRead() throws {
        let expected = ListOpsExample(expression: try ListOpsExpression("[MAX 2 9 ]"), answer: 9)
        for text in [
            "Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n", "Target\tSource\n9\t( ( ( [MAX 2 ) 9 ) ] )",
            "Source\tTarget\r\n[MAX 2 9 ]\t9\r\n", "Note\tTarget\tSource\n\t9\t[MAX 2 9 ]\n",
        ] {
            #expect(try read(text) == [expected])
        }
    }

    @Test(
        arguments: [
            ("", nil), ("\n", 1), ("Source,Target\n1,1\n", 1), ("Source\tAnswer\n1\t1\n", 1), ("Source\tTarget\n", 2),
            ("Source\tTarget\n1\t1\n\n2\t2\n", 3), ("Source\tTarget\n1\t1\n2\n", 3), ("Source\tTarget\n1\t1\t1\n", 2),
            ("Source\tTarget\n1\t10\n", 2), ("Source\tTarget\n1\t\n", 2), ("Source\tTarget\n1\t1\n[MAX\t1\n", 3),
            ("Source\tTarget\n\t1\n", 2), ("Source\tTarget\n1\t]\n", 2),
        ] as [(String, Int?)])
    func malformedLinesAreNumbered(text: String, line: Int?) throws {
        let path = folder.url.appending(component: "set.tsv").path(percentEncoded: false)
        let error = #expect(throws: DatasetError.self) { try read(text) }
        if let line, case .malformedLine(path, let found, _) = error {
            #expect(found == line)
        } else {
            #expect(line == nil && error == .empty(path: path))
        }
    }

    @Test func wrongAnswersAreCounted() throws {
        let text = "Source\tTarget\n1\t1\n[MAX 2 9 ]\t2\n3\t3\n[SM 9 9 ]\t0\n"
        let path = folder.url.appending(component: "set.tsv").path(percentEncoded: false)
        #expect(throws: DatasetError.wrongAnswers(path: path, count: 2, line: 3, stated: 2, correct: 9)) {
            try read(text)
        }
        #expect(try read(text, verifyingAnswers: false).map(\.answer) == [1, 2, 3, 0])
    }

    @Test func wrongAnswerIsNeverWritten() throws {
        let file = try folder.write("old", to: "set.tsv")
        let wrong = ListOpsExample(expression: try ListOpsExpression("[MAX 2 9 ]"), answer: 2)
        #expect(throws: DatasetError.self) { try ListOpsFile.write([wrong], to: file) }
        #expect(try String(contentsOf: file, encoding: .utf8) == "old")
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.url.path(percentEncoded: false))
        #expect(names == ["set.tsv"], "no temporary file is left")
    }

    @Test func unwritablePlaceIsAnError() throws {
        let file = try folder.write("a file", to: "file")
        let splits = ListOpsSplits(train: [], validation: [], test: [])
        #expect(throws: DatasetError.self) { try ListOpsFile.write(splits, to: file) }
        #expect(throws: FileWriteError.self) { try ListOpsFile.write([], to: file.appending(component: "x.tsv")) }
        #expect(throws: FileWriteError.self) { try ListOpsFile.write([], to: folder.url) }
        #expect(throws: DatasetError.self) { try ClassificationDataset.listOps(contentsOf: folder.url) }
    }

    @Test(arguments: 0..<100 as Range<UInt64>)
    func mutatedTablesReadOrAreRefusedInOneLine(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let examples = try ListOpsExpressionTests.randomExpressions(6, seed: seed, lengthBelow: 40)
        let rows = examples.map { "\($0.expression.binaryDescription)\t\($0.answer)\n" }
        let alphabet = Array("0123456789[]MINAXEDS()\t\n\r \u{0}\u{FF}".utf8)
        for _ in 0..<10 {
            var bytes = Array(("Source\tTarget\n" + rows.joined()).utf8)
            for _ in 0...generator.next(below: 4) where !bytes.isEmpty {
                let index = generator.next(below: bytes.count)
                switch generator.next(below: 4) {
                case 0: bytes[index] = alphabet[generator.next(below: alphabet.count)]
                case 1: bytes.insert(alphabet[generator.next(below: alphabet.count)], at: index)
                case 2: bytes.remove(at: index)
                default: bytes.removeSubrange((index + 1)...)
                }
            }
            do throws(DatasetError) {
                let read = try bytes.withUnsafeBytes { buffer in
                    Result { () throws(DatasetError) in
                        try ListOpsFile.parse(buffer, path: "set.tsv", verifyingAnswers: true)
                    }
                }.get()
                #expect(read.allSatisfy { $0.expression.value == $0.answer })
            } catch {
                #expect(!error.description.contains { $0.isNewline })
            }
        }
    }
}
