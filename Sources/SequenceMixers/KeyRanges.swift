// Which keys a query sees, as the ranges that `intervalAttention` takes.
import Torch

/// Ranges of keys for each query, kept until others are wanted: a layer mostly sees one length again and again.
final class KeyRanges {
    private var sizes: [Int] = []
    private var kept: Tensor?

    /// int32 `[ranges, queries, 2]`.
    ///
    /// - Parameters:
    ///   - sizes: what the ranges follow from.
    ///   - make: the start and the end of each range for every query, int64 `[queries]` or numbers for all.
    func callAsFunction(
        _ sizes: [Int], queries: Int, _ make: (_ queries: Tensor) -> [(start: Tensor, end: Tensor)]
    ) -> Tensor {
        if let kept, sizes + [queries] == self.sizes { return kept }
        let ranges = make(Tensor.arange(0..<queries)).map { range in
            stack([range.start, range.end].map { $0.expanded(to: [queries]) }, dim: 1)
        }
        let made = stack(ranges).to(.int32)
        (self.sizes, kept) = (sizes + [queries], made)
        return made
    }
}
