import Foundation
import Testing

@testable import Datasets

@Suite struct CopyTaskTests {
    @Test(arguments: [5, 6, 7, 8, 9, 31, 128])
    func sequencesHaveThePublishedForm(length: Int) throws {
        let task = try CopyTask(length: length, symbols: 10, evaluationCount: 4)
        var source = try task.trainingBatches(batchSize: 16, seed: UInt64(length))
        var sizes = Set<Int>()
        for _ in 0..<200 {
            let batch = try source.next()
            #expect(batch.batch == 16 && batch.length == length && batch.paddingMask == nil)
            for row in 0..<16 {
                let inputs = Array(batch.inputs[row * length..<(row + 1) * length])
                let targets = Array(batch.targets[row * length..<(row + 1) * length])
                let n = try #require(inputs.firstIndex(of: 0))
                let word = Array(inputs[..<n])
                sizes.insert(n)
                #expect(word.allSatisfy { (1...10).contains($0) })
                #expect(inputs == word + [0] + word + [Int32](repeating: 0, count: length - 2 * n - 1))
                let counted = [Int32](repeating: TokenBatch.ignoredTarget, count: n - 1) + [0] + word
                #expect(targets == counted + [Int32](repeating: TokenBatch.ignoredTarget, count: length - 2 * n))
            }
            #expect(batch.countedTargets == batch.lossMask.count { $0 })
        }
        #expect(sizes == Set(length / 4..<(length - 1) / 2))
    }

    @Test func resumedSourceGoesOnExactly() throws {
        let task = try CopyTask(length: 32)
        var source = try task.trainingBatches(batchSize: 3, seed: 1)
        for _ in 0..<17 { _ = try source.next() }
        let saved = try JSONEncoder().encode(source.position)
        var resumed = try task.trainingBatches(batchSize: 3, seed: 2)
        try resumed.resume(at: JSONDecoder().decode(BatchPosition.self, from: saved))
        for _ in 0..<20 {
            #expect(try source.next() == resumed.next())
        }
        #expect(throws: DatasetError.self) { try resumed.resume(at: BatchPosition(seed: 1, epoch: 0, index: -3)) }
    }

    @Test func seedsAndStepsDiffer() throws {
        let task = try CopyTask()
        var first = try task.trainingBatches(batchSize: 2, seed: 1)
        var second = try task.trainingBatches(batchSize: 2, seed: 2)
        let batches = try [first.next(), first.next(), second.next(), second.next()]
        #expect(Set(batches).count == 4)
    }

    @Test func evaluationSetsAreFixedAndDiffer() throws {
        let task = try CopyTask(length: 24, evaluationCount: 10)
        func rows(_ split: DatasetSplit, batchSize: Int) throws -> [[Int32]] {
            try task.evaluationBatches(of: split, batchSize: batchSize).flatMap { batch in
                (0..<batch.batch).map { Array(batch.inputs[$0 * 24..<($0 + 1) * 24]) }
            }
        }
        let test = try rows(.test, batchSize: 3)
        #expect(test.count == 10)
        #expect(try test == rows(.test, batchSize: 10))
        #expect(try test != rows(.validation, batchSize: 10))
        #expect(try task.evaluationBatches(of: .test, batchSize: 3).map(\.batch) == [3, 3, 3, 1])
    }

    @Test func impossibleSizesAreErrors() throws {
        #expect(throws: DatasetError.self) { try CopyTask(length: 4) }
        #expect(throws: DatasetError.self) { try CopyTask(symbols: 0) }
        #expect(throws: DatasetError.self) { try CopyTask(evaluationCount: 0) }
        #expect(throws: DatasetError.self) { try CopyTask().trainingBatches(batchSize: 0, seed: 0) }
        #expect(throws: DatasetError.self) { try CopyTask().evaluationBatches(of: .test, batchSize: -1) }
    }
}
