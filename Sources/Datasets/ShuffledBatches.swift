/// Training batches of examples that are known by a number, put into a new order in each epoch; the few that do not fill a
/// batch wait for another epoch.
///
/// A batch takes the time its examples take, a new epoch that of its order: O(examples) where nothing else is said.
public struct ShuffledBatches<Batch: TrainingBatch>: BatchSource {
    /// The numbers of an epoch's examples in their order, from the epoch's own generator.
    typealias Order = @Sendable (inout SeededGenerator) -> [Int]

    public private(set) var position: BatchPosition
    public var batchesPerEpoch: Int? { count / batchSize }

    private let count: Int
    private let batchSize: Int
    private let makeOrder: Order
    private let makeBatch: @Sendable (ArraySlice<Int>) -> Batch
    private var order: [Int] = []

    /// - Parameters:
    ///   - count: how many examples there are.
    ///   - name: what the data is called in an error.
    ///   - unit: what the examples are called in an error.
    ///   - makeOrder: `0 ..< count` in any order where left out.
    ///   - makeBatch: the batch of the examples of these numbers.
    /// - Throws: ``DatasetError`` when there are fewer than `batchSize` examples, or that is not positive.
    init(
        _ count: Int, name: String, unit: String = "examples", batchSize: Int, seed: UInt64, makeOrder: Order? = nil,
        makeBatch: @escaping @Sendable (ArraySlice<Int>) -> Batch
    ) throws(DatasetError) {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of \(unit)")
        guard count >= batchSize else { throw .tooFewExamples(what: name, examples: count, needed: batchSize) }
        self.count = count
        self.batchSize = batchSize
        self.makeOrder = makeOrder ?? { $0.permutation(of: count) }
        self.makeBatch = makeBatch
        position = BatchPosition(seed: seed)
        beginEpoch()
    }

    public mutating func next() -> Batch {
        let batch = makeBatch(order[position.index * batchSize..<(position.index + 1) * batchSize])
        let epoch = position.epoch
        position.advance(batchesPerEpoch: batchesPerEpoch)
        if position.epoch != epoch { beginEpoch() }
        return batch
    }

    public mutating func resume(at position: BatchPosition) throws(DatasetError) {
        try position.check(batchesPerEpoch: batchesPerEpoch)
        self.position = position
        beginEpoch()
    }

    private mutating func beginEpoch() {
        var generator = position.epochGenerator
        order = makeOrder(&generator)
    }
}
