import Foundation

/// Predict the next byte of a text: token id = byte, vocabulary 256.
public struct ByteLanguageModeling: TokenDataset {
    public let corpus: ByteCorpus
    /// Bytes that the model reads in one window; it predicts as many, one further on.
    public let length: Int

    public let vocabularySize = 256
    public let objective = Objective.nextToken
    public var maximumLength: Int { length }

    /// - Throws: ``DatasetError/invalidSetting(name:value:expected:)`` when `length` is not positive.
    public init(_ corpus: ByteCorpus, length: Int) throws(DatasetError) {
        try DatasetError.check(length > 0, "length", length, expected: "a positive number of bytes")
        self.corpus = corpus
        self.length = length
    }

    public func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<TokenBatch> {
        try ShuffledBatches(
            corpus[.train], name: "train split of \(corpus.name)", length: length, batchSize: batchSize, seed: seed)
    }

    /// Consecutive windows. Every byte of the split but its first is the target of exactly one window;
    /// the last window may be shorter, its padding is masked and not counted.
    public func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError)
        -> EvaluationBatches<TokenBatch>
    {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of windows")
        let bytes = corpus[split]
        guard bytes.count >= 2 else {
            throw .tooShort(what: "\(split) split of \(corpus.name)", bytes: bytes.count, needed: 2)
        }
        let length = self.length
        let windows = (bytes.count - 1 + length - 1) / length
        return EvaluationBatches(rows: windows, batchSize: batchSize) { rows in
            bytes.windows(at: rows.map { $0 * length }, length: length)
        }
    }
}

extension ShuffledBatches<TokenBatch> {
    /// Windows of a text in random order. Each epoch cuts the text anew, from a random offset, into windows that share no
    /// target. A batch takes O(batch · length) time; a new epoch O(windows).
    ///
    /// - Parameters:
    ///   - bytes: the text.
    ///   - name: what the text is called in an error.
    /// - Throws: ``DatasetError/tooShort(what:bytes:needed:)`` below `batchSize * length + 1` bytes.
    public init(_ bytes: Data, name: String, length: Int, batchSize: Int, seed: UInt64) throws(DatasetError) {
        try DatasetError.check(length > 0, "length", length, expected: "a positive number of bytes")
        let (product, overflow) = batchSize.multipliedReportingOverflow(by: length)
        let needed = overflow ? Int.max : product + 1
        guard bytes.count >= needed else {
            throw .tooShort(what: name, bytes: bytes.count, needed: needed)
        }
        // One window fewer than fits, where there are enough: room for every offset.
        let windows = max(batchSize, (bytes.count - 1) / length - 1)
        try self.init(
            windows, name: name, unit: "windows", batchSize: batchSize, seed: seed,
            makeOrder: { generator in
                let offset = generator.next(below: bytes.count - windows * length)
                return generator.permutation(of: windows).map { offset + $0 * length }
            },
            makeBatch: { bytes.windows(at: Array($0), length: length) })
    }
}

extension Data {
    /// A batch of the windows that begin at `starts`: as long as `length`, or as the longest that still has targets.
    fileprivate func windows(at starts: [Int], length: Int) -> TokenBatch {
        let lengths = starts.map { Swift.min(length, count - 1 - $0) }
        let width = lengths.max() ?? 0
        var inputs = [Int32](repeating: 0, count: starts.count * width)
        var targets = [Int32](repeating: TokenBatch.ignoredTarget, count: inputs.count)
        withUnsafeBytes { bytes in
            for (row, (start, length)) in zip(starts, lengths).enumerated() {
                for column in 0..<length {
                    inputs[row * width + column] = Int32(bytes[start + column])
                    targets[row * width + column] = Int32(bytes[start + column + 1])
                }
            }
        }
        let mask: [Bool]? =
            lengths.allSatisfy { $0 == width }
            ? nil : lengths.flatMap { length in (0..<width).map { $0 < length } }
        return TokenBatch(inputs: inputs, batch: starts.count, length: width, targets: targets, paddingMask: mask)
    }
}
