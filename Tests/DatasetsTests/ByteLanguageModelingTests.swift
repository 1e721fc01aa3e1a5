import Foundation
import Testing

@testable import Datasets

@Suite struct ByteLanguageModelingTests {
    /// A text in which the pair of bytes at i tells i, for texts of up to 65,536 bytes.
    static func numberedText(_ count: Int) -> Data {
        Data((0..<count).map { UInt8(truncatingIfNeeded: $0.isMultiple(of: 2) ? $0 / 2 : $0 / 512) })
    }

    static func text(_ count: Int, seed: UInt64) -> Data {
        var generator = SeededGenerator(seed: seed)
        return Data((0..<count).map { _ in UInt8(generator.next(below: 256)) })
    }

    @Test(arguments: 0..<60 as Range<UInt64>)
    func evaluationCountsEveryByteOnce(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let length = 1 + generator.next(below: 20)
        let batchSize = 1 + generator.next(below: 5)
        let bytes = Self.text(2 + generator.next(below: 200), seed: seed)
        let all = SplitFractions(train: 0, validation: 0, test: 1)
        let task = try ByteLanguageModeling(ByteCorpus(bytes, name: "text", fractions: all), length: length)
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
        #expect(inputs == bytes.dropLast().map { Int32($0) })
        #expect(targets == bytes.dropFirst().map { Int32($0) })
    }

    @Test(arguments: 0..<40 as Range<UInt64>)
    func epochSharesNoTargetAndMissesFew(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let length = 2 + generator.next(below: 30)
        let batchSize = 1 + generator.next(below: 4)
        let count = batchSize * length + 1 + generator.next(below: 3000)
        let bytes = Self.numberedText(count)
        var source = try ByteWindowBatches(bytes, name: "text", length: length, batchSize: batchSize, seed: seed)
        let batches = try #require(source.batchesPerEpoch)
        var orders: [[Int]] = []
        for _ in 0..<2 {
            var starts: [Int] = []
            for _ in 0..<batches {
                let batch = source.next()
                #expect(batch.batch == batchSize && batch.length == length && batch.paddingMask == nil)
                for row in 0..<batchSize {
                    let window = batch.inputs[row * length..<(row + 1) * length]
                    let next = batch.targets[(row + 1) * length - 1]
                    let start = try #require(Self.start(of: window.map { UInt8($0) }, in: bytes))
                    #expect(Int32(bytes[start + length]) == next)
                    #expect(Array(window.dropFirst()) == Array(batch.targets[row * length..<(row + 1) * length - 1]))
                    starts.append(start)
                }
            }
            #expect(Set(starts.map { $0 / 1 }).count == starts.count)
            #expect(Set(starts.map { $0 % length }).count == 1, "windows of an epoch share one offset")
            #expect(count - 1 - starts.count * length < (batchSize + 1) * length + length)
            orders.append(starts)
        }
        #expect(batches < 5 || orders[0] != orders[1])
        #expect(source.position == BatchPosition(seed: seed, epoch: 2, index: 0))
    }

    private static func start(of window: [UInt8], in bytes: Data) -> Int? {
        let even = window.indices.dropLast().first { index in
            let start = 2 * Int(window[index]) + 512 * Int(window[index + 1]) - index
            return start >= 0 && start + window.count <= bytes.count
                && Array(bytes[start..<start + window.count]) == window
        }
        return even.map { 2 * Int(window[$0]) + 512 * Int(window[$0 + 1]) - $0 }
    }

    @Test func offsetsReachEveryByte() throws {
        let bytes = Self.numberedText(50)
        var source = try ByteWindowBatches(bytes, name: "text", length: 8, batchSize: 2, seed: 3)
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
        var source = try ByteWindowBatches(Data(count: 100), name: "text", length: 8, batchSize: 2, seed: 0)
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
            try ByteWindowBatches(Data(count: 32), name: "text", length: 8, batchSize: 4, seed: 0)
        }
        #expect(error.description == "text: has 32 bytes, needs at least 33")
        var enough = try ByteWindowBatches(Data(count: 33), name: "text", length: 8, batchSize: 4, seed: 0)
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
