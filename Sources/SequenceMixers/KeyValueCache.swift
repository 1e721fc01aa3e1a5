import Torch

/// Keys and values seen so far, in memory that grows by doubling: adding a token costs its own size, amortized.
///
/// A value: two copies may go on separately. They share memory until both have written past their common past; the second
/// to do so then copies.
public struct KeyValueCache: StreamingState {
    /// How far the shared memory is filled by whichever copy went furthest.
    private final class FillMark {
        var filled = 0
    }

    private var keyStore: Tensor  // [batch, heads, capacity, headDim]
    private var valueStore: Tensor  // [batch, heads, capacity, valueDim]
    private var maskStore: Tensor?  // [batch, capacity], once a padded token has been taken up
    private var mark = FillMark()
    public private(set) var count = 0

    public init(_ shape: CoreShape, capacity: Int = 64) {
        let leading = [shape.batch, shape.heads, capacity]
        keyStore = .zeros(leading + [shape.headDim], dtype: shape.dtype, device: shape.device)
        valueStore = .zeros(leading + [shape.valueDim], dtype: shape.dtype, device: shape.device)
    }

    /// `[batch, heads, count, headDim]`
    public var keys: Tensor { keyStore.sliced(2, 0..<count) }
    /// `[batch, heads, count, valueDim]`
    public var values: Tensor { valueStore.sliced(2, 0..<count) }
    /// `[batch, count]`, true for a real token; nil while all are.
    public var mask: Tensor? { maskStore?.sliced(1, 0..<count) }

    public var tensors: [String: Tensor] {
        var tensors = ["keys": keys, "values": values]
        tensors["mask"] = mask
        return tensors
    }

    /// Adds k `[batch, heads, n, headDim]` and v `[batch, heads, n, valueDim]`.
    public mutating func append(_ k: Tensor, _ v: Tensor, paddingMask: Tensor? = nil) {
        let end = count + k.size(2)
        if end > keyStore.size(2) || mark.filled != count { reserve(max(end, 2 * count)) }
        withNoGrad {
            keyStore.copyInPlace(2, count..<end, from: k)
            valueStore.copyInPlace(2, count..<end, from: v)
            if paddingMask != nil || maskStore != nil {
                let store = maskStore ?? .ones([k.size(0), keyStore.size(2)], dtype: .bool, device: k.device)
                store.copyInPlace(
                    1, count..<end,
                    from: paddingMask ?? .ones([k.size(0), end - count], dtype: .bool, device: k.device))
                maskStore = store
            }
        }
        mark.filled = end
        count = end
    }

    /// Moves to memory of its own with room for `capacity` tokens.
    private mutating func reserve(_ capacity: Int) {
        let room = max(capacity, 64) - count
        keyStore = keys.padded(2, after: room).contiguous()
        valueStore = values.padded(2, after: room).contiguous()
        maskStore = mask.map { concatenate([$0, .ones([$0.size(0), room], dtype: .bool, device: $0.device)], dim: 1) }
        mark = FillMark()
        mark.filled = count
    }
}
