import CTorch

/// What distances add to the scores of ``intervalAttention(_:_:_:intervals:keyMask:scale:distances:)``, as Transformer-XL's
/// relative positions do.
///
/// A key is at distance d from the last key of the range that a query sees it in: where ranges end with the query itself, that
/// is how far it lies behind. Every range has distances of its own, from 0 on.
public struct IntervalDistances {
    /// R `[heads, Σ counts, D]`, the ranges' one after the other.
    public var table: Tensor
    /// c `[heads, Σ counts]`
    public var bias: Tensor
    /// a `[batch, heads, keys]`
    public var keyBias: Tensor
    /// How many distances each range has.
    public var counts: [Int]

    public init(table: Tensor, bias: Tensor, keyBias: Tensor, counts: [Int]) {
        self.table = table
        self.bias = bias
        self.keyBias = keyBias
        self.counts = counts
    }
}

/// Softmax attention in which every query sees a few ranges of keys, computed tile by tile.
///
///     out_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = scale q_i·k_j
///
/// over the keys j of the query's ranges. q `[batch, heads, queries, D]`, k `[batch, heads, keys, D]`, v
/// `[batch, heads, keys, E]`. `intervals`, int32 on the CPU, `[K, queries, 2]` for all heads or `[heads, K, queries, 2]`:
/// each query has K ranges start..<end, which do not overlap; one with start ≥ end is empty, and what lies outside of the
/// keys is left out. `keyMask` `[batch, keys]`, bool: false hides a key. A query that sees nothing gives 0 and takes no gradient.
/// With `distances`, s_ij = scale q_i·(k_j + R_d) + a_j + c_d, where d = end - 1 - j in j's range.
///
/// Time O(visible pairs (D + E)), rounded up to tiles, memory O(queries + keys), the backward pass included. Fused on the
/// CPU; elsewhere composed of LibTorch's operations with all scores in memory.
public func intervalAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, intervals: Tensor, keyMask: Tensor? = nil, scale: Double,
    distances: IntervalDistances? = nil
) -> Tensor {
    guard q.device == .cpu else { return composedIntervalAttention(q, k, v, intervals, keyMask, scale, distances) }
    let operands = [q, k, v, intervals, keyMask, distances?.table, distances?.bias, distances?.keyBias]
    return call("interval_attention", operands) { pointers, error in
        func attention(_ distances: UnsafePointer<ctorch_interval_distances>?) -> ctorch_tensor? {
            ctorch_interval_attention(
                pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], scale, distances, error)
        }
        guard let distances else { return attention(nil) }
        return distances.counts.withDims { counts, count in
            var given = ctorch_interval_distances(
                table: pointers[5], bias: pointers[6], key_bias: pointers[7], counts: counts, count: count)
            return attention(&given)
        }
    }
}

/// The same with all scores in memory.
func composedIntervalAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ intervals: Tensor, _ keyMask: Tensor?, _ scale: Double,
    _ distances: IntervalDistances?
) -> Tensor {
    let ranges = (intervals.rank == 3 ? intervals.unsqueezed(0) : intervals).to(q.device).to(.int64).unsqueezed(3)
    let keys = Tensor.arange(0..<k.size(2), device: q.device)
    // [heads or 1, K, queries, keys]
    let inside = ((keys .>= ranges.selected(-1, 0)) .&& (keys .< ranges.selected(-1, 1)))
    var visible = inside.any(1)
    if let keyMask { visible = (visible .&& keyMask.unsqueezed(1).unsqueezed(1)) }
    let blind = .!visible.any(-1, keepDim: true)
    let hidden = (.!visible .&& .!blind)
    let wide: DType = q.dtype == .float64 ? .float64 : .float32
    let queries = q.to(wide) * scale
    var scores = matmul(queries, k.to(wide).transposed())
    // Without distances nothing is seen.
    if let distances, distances.table.size(1) > 0 {
        let starts = distances.counts.indices.map { distances.counts[..<$0].reduce(0, +) }
        let offsets = Tensor(starts, shape: [1, starts.count, 1, 1], device: q.device)
        let places = (ranges.selected(-1, 1) - 1 - keys + offsets).masked(where: .!inside, with: 0).sum(1)
        let byDistance =
            matmul(queries, distances.table.to(wide).transposed()) + distances.bias.to(wide).unsqueezed(1)
        scores += byDistance.gathered(3, places.expanded(to: scores.shape))
        scores += distances.keyBias.to(wide).unsqueezed(2)
    }
    let weights = scores.masked(where: hidden, with: -Double.infinity).softmax().masked(where: blind, with: 0)
    return matmul(weights.to(v.dtype), v)
}
