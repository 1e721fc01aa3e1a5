/// Training batches of examples that are known by their number, shuffled anew in each epoch; the few that do not fill a
/// batch wait for another epoch. A new epoch takes O(examples) time.
public struct ShuffledBatches<Batch: TrainingBatch>: BatchSource {
    public private(set) var position: BatchPosition
    public var batchesPerEpoch: Int? { count / batchSize }

    private let count: Int
    private let batchSize: Int
    private let makeBatch: @Sendable (ArraySlice<Int>) -> Batch
    private var order: [Int]

    /// - Parameters:
    ///   - count: the examples are `0 ..< count`.
    ///   - name: what the data is called in an error.
    ///   - makeBatch: the batch of the examples of these numbers.
    /// - Throws: ``DatasetError`` when there are fewer than `batchSize` examples, or that is not positive.
    init(
        _ count: Int, name: String, batchSize: Int, seed: UInt64,
        makeBatch: @escaping @Sendable (ArraySlice<Int>) -> Batch
    ) throws(DatasetError) {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of examples")
        guard count >= batchSize else { throw .tooFewExamples(what: name, examples: count, needed: batchSize) }
        self.count = count
        self.batchSize = batchSize
        self.makeBatch = makeBatch
        position = BatchPosition(seed: seed)
        order = []
        order = makeOrder()
    }

    public mutating func next() -> Batch {
        let batch = makeBatch(order[position.index * batchSize..<(position.index + 1) * batchSize])
        let epoch = position.epoch
        position.advance(batchesPerEpoch: batchesPerEpoch)
        if position.epoch != epoch { order = makeOrder() }
        return batch
    }

    public mutating func resume(at position: BatchPosition) throws(DatasetError) {
        try position.check(batchesPerEpoch: batchesPerEpoch)
        self.position = position
        order = makeOrder()
    }

    private func makeOrder() -> [Int] {
        var generator = position.epochGenerator
        return generator.permutation(of: count)
    }
}
