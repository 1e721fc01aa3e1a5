import Foundation
import Testing

@testable import Datasets

@Suite struct ByteCorpusTests {
    @Test(arguments: [100_000_000, 900_000])
    func enwik8HasItsStandardSplit(count: Int) throws {
        let corpus = try ByteCorpus(Data(count: count), name: "enwik8")
        #expect(corpus[.train].count == count / 10 * 9)
        #expect(corpus[.validation].count == count / 20)
        #expect(corpus[.test].count == count / 20)
        #expect(!corpus.hasOfficialSplits)
    }

    @Test(arguments: [0, 1, 2, 3, 10, 19, 1000, 1001])
    func splitsCoverTheTextInOrder(count: Int) throws {
        let bytes = Data((0..<count).map { UInt8(truncatingIfNeeded: $0) })
        for fractions in [
            SplitFractions.standard, SplitFractions(train: 1, validation: 0, test: 0),
            SplitFractions(train: 0, validation: 0, test: 1), SplitFractions(train: 0.1, validation: 0.2, test: 0.7),
        ] {
            let corpus = try ByteCorpus(bytes, name: "text", fractions: fractions)
            #expect(corpus[.train] + corpus[.validation] + corpus[.test] == bytes)
        }
    }

    @Test(arguments: [(0.9, 0.05, 0.06), (1.1, -0.1, 0), (.nan, 0.5, 0.5), (.infinity, 0, 0), (0, 0, 0)])
    func impossibleFractionsAreErrors(train: Double, validation: Double, test: Double) {
        let fractions = SplitFractions(train: train, validation: validation, test: test)
        #expect(throws: DatasetError.self) { try ByteCorpus(Data(count: 9), name: "text", fractions: fractions) }
    }

    @Test func wikiTextKeepsItsOfficialSplits() throws {
        let folder = try TemporaryFolder()
        try folder.write("training", to: "wiki.train.tokens")
        try folder.write(try folder.gzip(Array("valid".utf8)), to: "wiki.valid.tokens.gz")
        let partial = try ByteCorpus(contentsOf: folder.url)
        #expect(!partial.hasOfficialSplits)

        try folder.write("test", to: "wiki.test.tokens")
        try folder.write("other", to: "README.md")
        let corpus = try ByteCorpus(contentsOf: folder.url)
        #expect(corpus.hasOfficialSplits)
        #expect(
            DatasetSplit.allCases.map { String(decoding: corpus[$0], as: UTF8.self) } == ["training", "valid", "test"])
    }

    @Test func packedTextEqualsPlainText() throws {
        let folder = try TemporaryFolder()
        let bytes = (0..<10_000).map { UInt8(truncatingIfNeeded: $0 % 251) }
        let plain = try ByteCorpus(contentsOf: folder.write(bytes, to: "text"))
        let packed = try ByteCorpus(contentsOf: folder.write(folder.gzip(bytes), to: "text.gz"))
        for split in DatasetSplit.allCases {
            #expect(plain[split] == packed[split])
        }
    }
}
