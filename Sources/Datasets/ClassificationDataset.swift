/// Which sequences share a batch.
public enum BatchGrouping: Codable, Hashable, Sendable {
    /// Any with any.
    case random
    /// Those of similar length, so that little is padding: the shuffled examples are taken in pools of so many
    /// batches, each pool is sorted by length and cut into batches, and the batches are shuffled.
    case similarLengths(pool: Int)
}

/// Sequences with one class each, in three splits.
public struct ClassificationDataset: TokenDataset {
    public let vocabularySize: Int
    public let classes: Int
    /// Longer sequences are cut to their first tokens.
    public let maximumLength: Int
    public let grouping: BatchGrouping
    /// What the data is called in messages.
    public let name: String
    private let splits: [DatasetSplit: LabeledSequences]

    public var objective: Objective { .classification(classes: classes) }

    /// - Throws: ``DatasetError/invalidSetting(name:value:expected:)`` for sizes that are not positive.
    public init(
        name: String, splits: [DatasetSplit: LabeledSequences], vocabularySize: Int, classes: Int,
        maximumLength: Int, grouping: BatchGrouping = .random
    ) throws(DatasetError) {
        try DatasetError.check(vocabularySize > 0, "vocabulary size", vocabularySize, expected: "a positive number")
        try DatasetError.check(classes > 0, "classes", classes, expected: "a positive number")
        try DatasetError.check(maximumLength > 0, "maximum length", maximumLength, expected: "a positive number")
        self.name = name
        self.splits = splits
        self.vocabularySize = vocabularySize
        self.classes = classes
        self.maximumLength = maximumLength
        self.grouping = grouping
    }

    /// The sequences of one split.
    public subscript(split: DatasetSplit) -> LabeledSequences {
        splits[split] ?? LabeledSequences()
    }

    public func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<TokenBatch> {
        try ShuffledBatches(
            self[.train], name: "train split of \(name)", batchSize: batchSize, maximumLength: maximumLength,
            grouping: grouping, seed: seed)
    }

    /// In the order of the split, or sorted by length when batches group similar lengths.
    public func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError)
        -> EvaluationBatches<TokenBatch>
    {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of sequences")
        let sequences = self[split]
        let maximumLength = self.maximumLength
        guard sequences.count > 0 else {
            throw .tooFewExamples(what: "\(split) split of \(name)", examples: 0, needed: 1)
        }
        var order = Array(0..<sequences.count)
        if grouping != .random {
            order.sortByLength(in: sequences)
        }
        return EvaluationBatches(rows: order.count, batchSize: batchSize) { [order] rows in
            sequences.batch(of: order[rows], maximumLength: maximumLength)
        }
    }
}

extension ShuffledBatches<TokenBatch> {
    /// Batches of labeled sequences. A batch takes O(tokens) time; a new epoch O(n log n) where lengths are grouped.
    ///
    /// - Parameter name: what the data is called in an error.
    /// - Throws: ``DatasetError`` when there are fewer than `batchSize` sequences, or a size is not positive.
    public init(
        _ sequences: LabeledSequences, name: String, batchSize: Int, maximumLength: Int,
        grouping: BatchGrouping = .random, seed: UInt64
    ) throws(DatasetError) {
        try DatasetError.check(maximumLength > 0, "maximum length", maximumLength, expected: "a positive number")
        if case .similarLengths(let pool) = grouping {
            try DatasetError.check(pool > 0, "pool", pool, expected: "a positive number of batches")
        }
        try self.init(
            sequences.count, name: name, unit: "sequences", batchSize: batchSize, seed: seed,
            makeOrder: { grouping.order(of: sequences, batchSize: batchSize, using: &$0) },
            makeBatch: { sequences.batch(of: $0, maximumLength: maximumLength) })
    }
}

extension BatchGrouping {
    /// The sequences of an epoch, each batch a run of `batchSize`.
    fileprivate func order(
        of sequences: LabeledSequences, batchSize: Int, using generator: inout SeededGenerator
    ) -> [Int] {
        let shuffled = generator.permutation(of: sequences.count)
        guard case .similarLengths(let pool) = self else { return shuffled }

        let batches = sequences.count / batchSize
        var grouped: [[Int]] = []
        for first in stride(from: 0, to: batches, by: pool) {
            let last = min(batches, first + min(pool, batches))
            var members = Array(shuffled[first * batchSize..<last * batchSize])
            members.sortByLength(in: sequences)
            grouped += stride(from: 0, to: members.count, by: batchSize).map { Array(members[$0..<$0 + batchSize]) }
        }
        generator.shuffle(&grouped)
        return grouped.flatMap { $0 }
    }
}

extension [Int] {
    /// Shortest first; equal lengths keep their order, which Swift's `sort` does not promise.
    fileprivate mutating func sortByLength(in sequences: LabeledSequences) {
        let keyed = enumerated().map { (length: sequences.length(at: $0.element), rank: $0.offset, index: $0.element) }
        self = keyed.sorted { ($0.length, $0.rank) < ($1.length, $1.rank) }.map(\.index)
    }
}
