import Torch

/// A vector for each of `count` entries: int64 indices `[…]` → `[…, dim]`.
public final class Embedding: Module {
    /// `[count, dim]`
    public let weight: Parameter
    public let count: Int
    public let dim: Int
    /// The entry that is zero at first and gets no gradient.
    public let paddingIndex: Int?

    /// The vectors are drawn from the normal distribution of deviation 1.
    public init(_ count: Int, _ dim: Int, paddingIndex: Int? = nil, using generator: RandomGenerator) {
        torchPrecondition(
            count > 0 && dim > 0, in: "Embedding", "expected positive sizes, got \(count) entries of size \(dim)")
        torchPrecondition(
            paddingIndex.map { (0..<max(count, 0)).contains($0) } ?? true, in: "Embedding",
            "paddingIndex \(paddingIndex ?? 0) is not one of \(count) entries")
        self.count = count
        self.dim = dim
        self.paddingIndex = paddingIndex
        let table = Tensor.drawn([max(count, 0), max(dim, 0)], .normal(deviation: 1), generator)
        if let paddingIndex { table.selected(0, paddingIndex).fillInPlace(0) }
        weight = Parameter(table)
        super.init()
    }

    /// int64 indices `[…]` → `[…, dim]`; an index out of range traps.
    public func callAsFunction(_ indices: Tensor) -> Tensor {
        torchPrecondition(
            indices.dtype == .int64 || indices.dtype == .int32, in: "Embedding",
            "expected whole numbers as indices, got \(indices.dtype) \(indices.shape)")
        return embedding(weight.value, indices, paddingIndex: paddingIndex)
    }
}
