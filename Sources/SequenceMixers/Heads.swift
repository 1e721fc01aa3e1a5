import Torch

extension Tensor {
    /// `[batch, length, heads · width]` → `[batch, heads, length, width]`: a view.
    func splitHeads(_ heads: Int) -> Tensor {
        reshaped(size(0), size(1), heads, size(2) / max(heads, 1)).transposed(1, 2)  // length may be 0
    }

    /// `[batch, heads, length, width]` → `[batch, length, heads · width]`
    func mergedHeads() -> Tensor { transposed(1, 2).flattened(2, 3) }
}
