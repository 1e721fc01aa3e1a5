/// One of the three parts of a data set.
public enum DatasetSplit: String, Codable, CaseIterable, Sendable {
    case train, validation, test
}

/// What a model has to say about its input.
public enum Objective: Hashable, Sendable {
    /// The next token, at every position: `targets` is `[batch, length]`.
    case nextToken
    /// One of so many classes for the whole sequence: `targets` is `[batch]`.
    case classification(classes: Int)
}

/// Token sequences of one length, with what a model should say about them, as plain values.
///
/// Arrays are row-major. Padding stands on the right and holds the id 0.
public struct TokenBatch: TrainingBatch, Hashable {
    /// The target that is not counted in the loss nor in any metric.
    public static let ignoredTarget: Int32 = -100

    /// Token ids, `[batch, length]`.
    public let inputs: [Int32]
    /// Number of sequences.
    public let batch: Int
    /// Tokens in each sequence, padding included.
    public let length: Int
    /// Target ids, `[batch, length]` or `[batch]` as the data set's ``Objective`` says;
    /// ``ignoredTarget`` where nothing is to be counted.
    public let targets: [Int32]
    /// True = a real token, `[batch, length]`; `nil` when no token is padding.
    public let paddingMask: [Bool]?

    /// - Precondition: the sizes of the arrays agree with `batch` and `length`.
    public init(inputs: [Int32], batch: Int, length: Int, targets: [Int32], paddingMask: [Bool]? = nil) {
        precondition(inputs.count == batch * length, "TokenBatch: inputs do not fill [\(batch), \(length)]")
        precondition(
            targets.count == batch * length || targets.count == batch,
            "TokenBatch: \(targets.count) targets fit neither [\(batch), \(length)] nor [\(batch)]")
        precondition(paddingMask.map { $0.count == batch * length } ?? true, "TokenBatch: mask is of another shape")
        self.inputs = inputs
        self.batch = batch
        self.length = length
        self.targets = targets
        self.paddingMask = paddingMask
    }

    /// True where the target counts; of the shape of `targets`. O(targets).
    public var lossMask: [Bool] {
        targets.map { $0 != Self.ignoredTarget }
    }

    /// How many targets count: the weight of this batch in a mean over batches. O(targets).
    public var countedTargets: Int {
        targets.reduce(0) { $1 == Self.ignoredTarget ? $0 : $0 + 1 }
    }

    /// How many input tokens are real, padding left out. O(tokens).
    public var realTokens: Int {
        paddingMask?.reduce(0) { $1 ? $0 + 1 : $0 } ?? inputs.count
    }
}
