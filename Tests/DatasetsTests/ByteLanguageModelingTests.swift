import Foundation
import Testing

@testable import Datasets

@Suite struct ByteLanguageModelingTests {
    static func text(_ count: Int, seed: UInt64) -> Data {
        var generator = SeededGenerator(seed: seed)
        return Data((0..<count).map { _ in UInt8(generator.next(below: 256)) })
    }

    @Test(arguments: 0..<60 as Range<UInt64>)
    func evaluationCountsEveryByteOnce(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let length = 1 + generator.next(below: 20)
        let batchSize = 1 + generator.next(below: 5)
        let bytes = Self.text(3 + generator.next(below: 200), seed: seed)
        let fractions = SplitFractions(train: 0.25, validation: 0, test: 0.75)
        let corpus = try ByteCorpus(bytes, name: "text", fractions: fractions)
        let task = try ByteLanguageModeling(corpus, length: length)
        var inputs: [Int32] = []
        var targets: [Int32] = []
        for batch in try task.evaluationBatches(of: .test, batchSize: batchSize) {
            #expect(batch.length <= length && batch.batch <= batchSize)
            for index in batch.inputs.indices {
                let isReal = batch.paddingMask?[index] ?? true
                #expect(isReal == batch.lossMask[index])
                if isReal {
                    inputs.append(batch.inputs[index])
                    targets.append(batch.targets[index])
                } else {
                    #expect(batch.inputs[index] == 0)
                }
            }
        }
        #expect(inputs == corpus[.test].dropLast().map { Int32($0) })
        #expect(targets == corpus[.test].dropFirst().map { Int32($0) })
    }

    @Test(arguments: 0..<40 as Range<UInt64>)
    func epochSharesNoTargetAndMissesFew(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let length = 5 + generator.next(below: 30)
        let batchSize = 1 + generator.next(below: 4)
        let count = batchSize * length + 1 + generator.next(below: 3000)
        let bytes = Self.text(count, seed: seed)
        let places = Dictionary(
            uniqueKeysWithValues: (0..<count - length).map { (bytes[$0...$0 + length].map { Int32($0) }, $0) })
        var source = try ShuffledBatches(bytes, name: "text", length: length, batchSize: batchSize, seed: seed)
        let batches = try #require(source.batchesPerEpoch)
        var orders: [[Int]] = []
        for _ in 0..<2 {
            var starts: [Int] = []
            for _ in 0..<batches {
                let batch = source.next()
                #expect(batch.batch == batchSize && batch.length == length && batch.paddingMask == nil)
                for row in 0..<batchSize {
                    let inputs = Array(batch.inputs[row * length..<(row + 1) * length])
                    let targets = Array(batch.targets[row * length..<(row + 1) * length])
                    #expect(inputs.dropFirst().elementsEqual(targets.dropLast()))
                    starts.append(try #require(places[inputs + targets.suffix(1)]))
                }
            }
            #expect(Set(starts).count == starts.count)
            #expect(Set(starts.map { $0 % length }).count == 1, "windows of an epoch share one offset")
            // Left out: what fills no batch, and the window that makes room for the offset.
            #expect(count - 1 - starts.count * length < (batchSize + 1) * length)
            orders.append(starts)
        }
        #expect(batches < 5 || orders[0] != orders[1])
        #expect(source.position == BatchPosition(seed: seed, epoch: 2, index: 0))
    }

    @Test func offsetsReachEveryByte() throws {
        let bytes = Data(0..<50)
        var source = try ShuffledBatches(bytes, name: "text", length: 8, batchSize: 2, seed: 3)
        var seen = Set<Int32>()
        for _ in 0..<400 { seen.formUnion(source.next().targets) }
        #expect(seen == Set(bytes.dropFirst().map { Int32($0) }))
    }

    @Test(arguments: 0..<30 as Range<UInt64>)
    func resumedSourceGoesOnExactly(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let bytes = Self.text(100 + generator.next(below: 400), seed: seed)
        let corpus = try ByteCorpus(bytes, name: "text")
        let task = try ByteLanguageModeling(corpus, length: 1 + generator.next(below: 20))
        var source = try task.trainingBatches(batchSize: 1 + generator.next(below: 4), seed: seed)
        for _ in 0..<generator.next(below: 100) { _ = try source.next() }
        let saved = try JSONEncoder().encode(source.position)

        var resumed = try task.trainingBatches(batchSize: try source.next().batch, seed: 999)
        try source.resume(at: JSONDecoder().decode(BatchPosition.self, from: saved))
        try resumed.resume(at: JSONDecoder().decode(BatchPosition.self, from: saved))
        for _ in 0..<100 {
            #expect(try source.next() == resumed.next())
            #expect(source.position == resumed.position)
        }
    }

    @Test func positionsBeyondTheDataAreErrors() throws {
        var source = try ShuffledBatches(Data(count: 100), name: "text", length: 8, batchSize: 2, seed: 0)
        let batches = try #require(source.batchesPerEpoch)
        for position in [
            BatchPosition(seed: 0, epoch: -1), BatchPosition(seed: 0, index: -1),
            BatchPosition(seed: 0, index: batches),
        ] {
            #expect(throws: DatasetError.self) { try source.resume(at: position) }
        }
        #expect(source.position == BatchPosition(seed: 0))
    }

    @Test func shortTextsSayHowManyBytesTheyNeed() throws {
        let error = DatasetError.tooShort(what: "text", bytes: 32, needed: 33)
        #expect(throws: error) {
            try ShuffledBatches(Data(count: 32), name: "text", length: 8, batchSize: 4, seed: 0)
        }
        #expect(error.description == "text: has 32 bytes, needs at least 33")
        var enough = try ShuffledBatches(Data(count: 33), name: "text", length: 8, batchSize: 4, seed: 0)
        #expect(enough.next().inputs.count == 32)

        let corpus = try ByteCorpus(Data(count: 20), name: "text")
        let task = try ByteLanguageModeling(corpus, length: 8)
        #expect(throws: DatasetError.tooShort(what: "test split of text", bytes: 1, needed: 2)) {
            try task.evaluationBatches(of: .test, batchSize: 1)
        }
        #expect(throws: DatasetError.self) { try task.trainingBatches(batchSize: .max, seed: 0) }
        #expect(throws: DatasetError.self) { try task.trainingBatches(batchSize: 0, seed: 0) }
        #expect(throws: DatasetError.self) { try ByteLanguageModeling(corpus, length: 0) }
    }
}
