/// Token sequences of any length, each with a class, packed into one buffer: 2 bytes a token.
public struct LabeledSequences: Sendable {
    private var tokens: [UInt16] = []
    private var ends: [Int] = []
    /// The class of each sequence.
    public private(set) var labels: [Int32] = []

    public init() {}

    /// Number of sequences.
    public var count: Int { labels.count }

    /// Adds one sequence.
    ///
    /// - Precondition: the sequence is not empty and the label not negative.
    public mutating func append(_ sequence: some Sequence<UInt16>, label: Int) {
        let start = tokens.count
        tokens.append(contentsOf: sequence)
        precondition(tokens.count > start && label >= 0, "LabeledSequences: an empty sequence or a negative label")
        ends.append(tokens.count)
        labels.append(Int32(label))
    }

    /// Tokens of the sequence at `index`. O(1).
    public func tokens(at index: Int) -> ArraySlice<UInt16> {
        tokens[(index == 0 ? 0 : ends[index - 1])..<ends[index]]
    }

    /// Number of tokens of the sequence at `index`. O(1).
    public func length(at index: Int) -> Int {
        ends[index] - (index == 0 ? 0 : ends[index - 1])
    }

    /// The share of the most frequent class: what guessing without looking gets right. O(count).
    public var majorityShare: Double {
        let largest = Dictionary(grouping: labels) { $0 }.values.map(\.count).max() ?? 0
        return count == 0 ? 0 : Double(largest) / Double(count)
    }

    /// The sequences at `indices` as one batch: cut to `maximumLength`, padded on the right to the longest of them.
    func batch(of indices: some Collection<Int>, maximumLength: Int) -> TokenBatch {
        let lengths = indices.map { min(length(at: $0), maximumLength) }
        let width = lengths.max() ?? 0
        var inputs: [Int32] = []
        var mask: [Bool] = []
        inputs.reserveCapacity(indices.count * width)
        mask.reserveCapacity(indices.count * width)
        for (index, length) in zip(indices, lengths) {
            inputs.append(contentsOf: tokens(at: index).prefix(length).lazy.map { Int32($0) })
            inputs.append(contentsOf: repeatElement(0, count: width - length))
            mask.append(contentsOf: repeatElement(true, count: length))
            mask.append(contentsOf: repeatElement(false, count: width - length))
        }
        return TokenBatch(
            inputs: inputs, batch: indices.count, length: width, targets: indices.map { labels[$0] },
            paddingMask: lengths.allSatisfy { $0 == width } ? nil : mask)
    }
}
