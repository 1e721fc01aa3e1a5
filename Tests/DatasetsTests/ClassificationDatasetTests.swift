import Foundation
import Testing

@testable import Datasets

@Suite struct ClassificationDatasetTests {
    /// Sequences of random lengths whose first token and label both are their number.
    static func sequences(_ count: Int, seed: UInt64, longest: Int = 40) -> LabeledSequences {
        var generator = SeededGenerator(seed: seed)
        var sequences = LabeledSequences()
        for index in 0..<count {
            let rest = (0..<generator.next(below: longest)).map { _ in UInt16(1 + generator.next(below: 500)) }
            sequences.append([UInt16(index + 1)] + rest, label: index)
        }
        return sequences
    }

    static let groupings: [BatchGrouping] = [
        .random, .similarLengths(pool: 1), .similarLengths(pool: 3), .similarLengths(pool: .max),
    ]

    static func check(_ batch: TokenBatch, against sequences: LabeledSequences, maximumLength: Int) {
        let lengths = batch.targets.map { min(sequences.length(at: Int($0)), maximumLength) }
        #expect(batch.length == lengths.max())
        for (row, label) in batch.targets.enumerated() {
            let inputs = batch.inputs[row * batch.length..<(row + 1) * batch.length]
            let real = sequences.tokens(at: Int(label)).prefix(maximumLength).map { Int32($0) }
            #expect(Array(inputs) == real + [Int32](repeating: 0, count: batch.length - real.count))
            if let mask = batch.paddingMask {
                let expected = (0..<batch.length).map { $0 < real.count }
                #expect(Array(mask[row * batch.length..<(row + 1) * batch.length]) == expected)
            } else {
                #expect(real.count == batch.length)
            }
        }
        #expect(batch.realTokens == lengths.reduce(0, +))
    }

    @Test(arguments: groupings, 0..<10 as Range<UInt64>)
    func epochTakesEachSequenceAtMostOnce(grouping: BatchGrouping, seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let batchSize = 1 + generator.next(below: 7)
        let sequences = Self.sequences(batchSize + generator.next(below: 100), seed: seed)
        let maximumLength = 1 + generator.next(below: 50)
        var source = try ShuffledBatches(
            sequences, name: "set", batchSize: batchSize, maximumLength: maximumLength, grouping: grouping, seed: seed)
        let batches = try #require(source.batchesPerEpoch)
        #expect(batches == sequences.count / batchSize)
        for epoch in 1...3 {
            var taken: [Int32] = []
            for _ in 0..<batches {
                let batch = source.next()
                #expect(batch.batch == batchSize)
                Self.check(batch, against: sequences, maximumLength: maximumLength)
                taken += batch.targets
            }
            #expect(Set(taken).count == batches * batchSize)
            #expect(source.position == BatchPosition(seed: seed, epoch: epoch))
        }
    }

    @Test(arguments: groupings, 0..<8 as Range<UInt64>)
    func resumedSourceGoesOnExactly(grouping: BatchGrouping, seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let sequences = Self.sequences(50, seed: seed)
        let data = try ClassificationDataset(
            name: "set", splits: [.train: sequences], vocabularySize: 600, classes: 50, maximumLength: 30,
            grouping: grouping)
        var source = try data.trainingBatches(batchSize: 4, seed: seed)
        for _ in 0..<generator.next(below: 60) { _ = try source.next() }
        let saved = try JSONEncoder().encode(source.position)
        var resumed = try data.trainingBatches(batchSize: 4, seed: 77)
        try resumed.resume(at: JSONDecoder().decode(BatchPosition.self, from: saved))
        for _ in 0..<40 {
            #expect(try source.next() == resumed.next())
        }
        #expect(throws: DatasetError.self) { try resumed.resume(at: BatchPosition(seed: 0, index: 12)) }
    }

    @Test(arguments: groupings, [1, 7, 50, 64])
    func evaluationTakesEachSequenceOnce(grouping: BatchGrouping, batchSize: Int) throws {
        let sequences = Self.sequences(50, seed: 4)
        let data = try ClassificationDataset(
            name: "set", splits: [.test: sequences], vocabularySize: 600, classes: 50, maximumLength: 30,
            grouping: grouping)
        let batches = try data.evaluationBatches(of: .test, batchSize: batchSize)
        for batch in batches {
            Self.check(batch, against: sequences, maximumLength: 30)
        }
        let order = batches.flatMap(\.targets)
        #expect(order.sorted() == Array(0..<50))
        #expect(batches.count == (50 + batchSize - 1) / batchSize)
        if grouping == .random {
            #expect(order == Array(0..<50))
        }
    }

    @Test func groupingSavesPadding() throws {
        let sequences = Self.sequences(640, seed: 9, longest: 500)
        func tokens(_ grouping: BatchGrouping) throws -> Int {
            var source = try ShuffledBatches(
                sequences, name: "set", batchSize: 16, maximumLength: 500, grouping: grouping, seed: 1)
            return (0..<40).reduce(0) { sum, _ in sum + source.next().inputs.count }
        }
        let real = (0..<640).reduce(0) { $0 + sequences.length(at: $1) }
        #expect(try tokens(.random) > real * 3 / 2)
        #expect(try tokens(.similarLengths(pool: 20)) < real * 6 / 5)
    }

    @Test func tooFewSequencesAreAnError() throws {
        let data = try ClassificationDataset(
            name: "set", splits: [.train: Self.sequences(3, seed: 0)], vocabularySize: 600, classes: 3,
            maximumLength: 30)
        #expect(throws: DatasetError.tooFewExamples(what: "train split of set", examples: 3, needed: 4)) {
            try data.trainingBatches(batchSize: 4, seed: 0)
        }
        #expect(throws: DatasetError.tooFewExamples(what: "test split of set", examples: 0, needed: 1)) {
            try data.evaluationBatches(of: .test, batchSize: 4)
        }
        #expect(throws: DatasetError.self) { try data.trainingBatches(batchSize: 0, seed: 0) }
        #expect(throws: DatasetError.self) {
            try ShuffledBatches(
                data[.train], name: "set", batchSize: 1, maximumLength: 9, grouping: .similarLengths(pool: 0), seed: 0)
        }
    }

    @Test func majorityShareIsThatOfTheLargestClass() {
        var sequences = LabeledSequences()
        #expect(sequences.majorityShare == 0)
        for label in [1, 2, 2, 3] { sequences.append([1], label: label) }
        #expect(sequences.majorityShare == 0.5)
    }
}
