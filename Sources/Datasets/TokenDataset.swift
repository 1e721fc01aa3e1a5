/// What one step of training takes from a data set.
public protocol TrainingBatch: Sendable {
    /// How many targets count: the weight of this batch in a mean over batches.
    var countedTargets: Int { get }
    /// How many tokens of input there are, padding left out: what speed is counted in.
    var realTokens: Int { get }
}

/// A task that a trainer can drive: shuffled batches without end for training, a fixed pass for evaluation.
public protocol TrainingDataset<Batch>: Sendable {
    associatedtype Batch: TrainingBatch

    /// Training batches of `batchSize` examples, in the order that `seed` gives.
    ///
    /// - Throws: ``DatasetError`` when the training split cannot fill one batch.
    func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<Batch>

    /// Every target of `split` exactly once, in fixed order, the last batch as small as it comes.
    ///
    /// - Throws: ``DatasetError`` when the split has nothing to count.
    func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError) -> EvaluationBatches<Batch>
}

extension TrainingDataset {
    /// ``trainingBatches(batchSize:seed:)`` for callers that do not know the kind of batch.
    public func anyTrainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource {
        try trainingBatches(batchSize: batchSize, seed: seed)
    }

    /// How many batches an evaluation takes.
    ///
    /// - Throws: ``DatasetError`` when the split has nothing to count.
    public func evaluationBatchCount(of split: DatasetSplit, batchSize: Int) throws(DatasetError) -> Int {
        try evaluationBatches(of: split, batchSize: batchSize).count
    }
}

/// Data of token sequences.
public protocol TokenDataset: TrainingDataset where Batch == TokenBatch {
    /// Token ids lie in `0..<vocabularySize`.
    var vocabularySize: Int { get }
    /// The longest sequence in any batch, in tokens.
    var maximumLength: Int { get }
    /// What `targets` of the batches hold.
    var objective: Objective { get }
}

/// Where a source of training batches stands: enough to go on exactly, and small enough for every checkpoint.
public struct BatchPosition: Codable, Hashable, Sendable {
    /// Decides the order of the examples, and the examples themselves where they are generated.
    public var seed: UInt64
    /// Passes through the data that are complete, from 0.
    public var epoch: Int
    /// Batches of this epoch already taken.
    public var index: Int

    public init(seed: UInt64, epoch: Int = 0, index: Int = 0) {
        self.seed = seed
        self.epoch = epoch
        self.index = index
    }
}

/// Training batches without end. Each is a pure function of the data and the ``BatchPosition``, so a source that is
/// resumed at a saved position gives the same batches as one that never stopped.
public protocol BatchSource<Batch>: Sendable {
    associatedtype Batch: TrainingBatch

    /// Where the next batch stands.
    var position: BatchPosition { get }
    /// Batches in each epoch, or `nil` where examples are generated and no epoch ends.
    var batchesPerEpoch: Int? { get }
    /// The next batch. Moves ``position`` on by one, into the next epoch at the end of this one.
    mutating func next() throws -> Batch
    /// Goes on at `position`.
    ///
    /// - Throws: ``DatasetError/invalidPosition(_:)`` when the position does not fit the data.
    mutating func resume(at position: BatchPosition) throws(DatasetError)
}

extension BatchPosition {
    mutating func advance(batchesPerEpoch: Int?) {
        index += 1
        if index == batchesPerEpoch {
            epoch += 1
            index = 0
        }
    }

    func check(batchesPerEpoch: Int?) throws(DatasetError) {
        guard epoch >= 0, index >= 0 else {
            throw .invalidPosition("epoch \(epoch), batch \(index): neither can be negative")
        }
        if let batchesPerEpoch, index >= batchesPerEpoch {
            throw .invalidPosition(
                "batch \(index) lies beyond the \(batchesPerEpoch) batches of an epoch: "
                    + "the data, the length or the batch size is not the one it was saved with")
        }
    }

    /// The generator of what this epoch shares: its order, its offset.
    var epochGenerator: SeededGenerator {
        SeededGenerator(seed: seed, path: UInt64(epoch))
    }

    /// The generator of this batch alone, for tasks that make their examples.
    var batchGenerator: SeededGenerator {
        SeededGenerator(seed: seed, path: UInt64(epoch), UInt64(index))
    }
}

/// The batches of one evaluation pass: a collection that makes each batch when it is asked for.
public struct EvaluationBatches<Batch: TrainingBatch>: RandomAccessCollection, Sendable {
    public let count: Int
    private let makeBatch: @Sendable (Int) -> Batch

    public init(count: Int, makeBatch: @escaping @Sendable (Int) -> Batch) {
        self.count = count
        self.makeBatch = makeBatch
    }

    /// Cuts the rows `0..<rows` into batches of at most `batchSize`.
    init(rows: Int, batchSize: Int, makeBatch: @escaping @Sendable (Range<Int>) -> Batch) {
        self.init(count: (rows + batchSize - 1) / batchSize) { index in
            makeBatch(index * batchSize..<Swift.min(rows, (index + 1) * batchSize))
        }
    }

    public var startIndex: Int { 0 }
    public var endIndex: Int { count }

    public subscript(index: Int) -> Batch {
        precondition(indices.contains(index), "EvaluationBatches: batch \(index) of \(count)")
        return makeBatch(index)
    }
}
