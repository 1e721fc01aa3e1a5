/// The copy task of the Linear Transformer paper (Katharopoulos et al., 2020, arXiv 2006.16236, section 4.1.1), as
/// the authors' code makes it.
///
/// With n uniform in `length / 4 ..< (length - 1) / 2` and n random symbols w from `1...symbols`, the input is
/// w, 0, w, then zeros up to `length`; 0 is the separator. The target is the input one step further on. It counts
/// from the position that predicts the separator to the one that predicts the last symbol of the second copy:
/// positions n - 1 to 2n - 1, n + 1 in all. The zeros at the end are input, not padding.
public struct CopyTask: TokenDataset {
    /// Tokens in every sequence.
    public let length: Int
    /// Different symbols besides the separator.
    public let symbols: Int
    /// Sequences in the fixed validation set, and as many in the test set.
    public let evaluationCount: Int

    public let objective = Objective.nextToken
    public var vocabularySize: Int { symbols + 1 }
    public var maximumLength: Int { length }

    /// - Throws: ``DatasetError/invalidSetting(name:value:expected:)`` for a length below 5 or counts below 1.
    public init(length: Int = 128, symbols: Int = 10, evaluationCount: Int = 1024) throws(DatasetError) {
        try DatasetError.check(length >= 5, "length", length, expected: "at least 5 tokens")
        try DatasetError.check(
            (1...Int(Int32.max) - 1).contains(symbols), "symbols", symbols, expected: "a positive number")
        try DatasetError.check(evaluationCount > 0, "evaluation count", evaluationCount, expected: "a positive number")
        self.length = length
        self.symbols = symbols
        self.evaluationCount = evaluationCount
    }

    /// New sequences in every batch; ``BatchPosition/epoch`` stays where it is.
    public func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<TokenBatch> {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of sequences")
        return CopyTaskBatches(task: self, batchSize: batchSize, position: BatchPosition(seed: seed))
    }

    /// A fixed set for each split, the same whatever the training seed and the batch size.
    public func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError)
        -> EvaluationBatches<TokenBatch>
    {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of sequences")
        let part: UInt64 =
            switch split {
            case .train: 0
            case .validation: 1
            case .test: 2
            }
        return EvaluationBatches(rows: evaluationCount, batchSize: batchSize) { rows in
            // "copytask" in ASCII: a seed that no one counts up to.
            batch(rows.map { SeededGenerator(seed: 0x636F_7079_7461_736B, path: part, UInt64($0)) })
        }
    }

    /// One sequence from each generator.
    func batch(_ generators: [SeededGenerator]) -> TokenBatch {
        var inputs = [Int32](repeating: 0, count: generators.count * length)
        var targets = [Int32](repeating: TokenBatch.ignoredTarget, count: inputs.count)
        for (row, generator) in generators.enumerated() {
            fill(row, of: &inputs, &targets, using: generator)
        }
        return TokenBatch(inputs: inputs, batch: generators.count, length: length, targets: targets)
    }

    private func fill(
        _ row: Int, of inputs: inout [Int32], _ targets: inout [Int32], using generator: SeededGenerator
    ) {
        var generator = generator
        let n = length / 4 + generator.next(below: (length - 1) / 2 - length / 4)
        let start = row * length
        for i in 0..<n {
            let symbol = Int32(1 + generator.next(below: symbols))
            inputs[start + i] = symbol
            inputs[start + n + 1 + i] = symbol
        }
        for i in n - 1..<2 * n {
            targets[start + i] = inputs[start + i + 1]
        }
    }
}

/// Training batches of the ``CopyTask``, made when they are asked for.
public struct CopyTaskBatches: BatchSource {
    public let task: CopyTask
    public private(set) var position: BatchPosition
    public let batchesPerEpoch: Int? = nil
    private let batchSize: Int

    init(task: CopyTask, batchSize: Int, position: BatchPosition) {
        self.task = task
        self.batchSize = batchSize
        self.position = position
    }

    public mutating func next() -> TokenBatch {
        var source = position.batchGenerator
        let generators = (0..<batchSize).map { _ in SeededGenerator(seed: source.next()) }
        position.advance(batchesPerEpoch: nil)
        return task.batch(generators)
    }

    public mutating func resume(at position: BatchPosition) throws(DatasetError) {
        try position.check(batchesPerEpoch: nil)
        self.position = position
    }
}
