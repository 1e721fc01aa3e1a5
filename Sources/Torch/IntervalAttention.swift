import CTorch

/// Softmax attention in which every query sees a few ranges of keys, computed tile by tile.
///
///     out_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = scale q_i·k_j
///
/// over the keys j of the query's ranges. q `[batch, heads, queries, D]`, k `[batch, heads, keys, D]`, v
/// `[batch, heads, keys, E]`. `intervals`, int32 on the CPU, `[K, queries, 2]` for all heads or `[heads, K, queries, 2]`:
/// each query has K ranges start..<end, which do not overlap; one with start ≥ end is empty, and what lies outside of the
/// keys is left out. `keyMask` `[batch, keys]`, bool: false hides a key. A query that sees nothing gives 0 and takes no gradient.
///
/// Time O(visible pairs (D + E)), rounded up to tiles, memory O(queries + keys), the backward pass included. Fused on the
/// CPU; elsewhere composed of LibTorch's operations with all scores in memory.
public func intervalAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, intervals: Tensor, keyMask: Tensor? = nil, scale: Double
) -> Tensor {
    guard q.device == .cpu else { return composed(q, k, v, intervals, keyMask, scale) }
    return call("interval_attention", [q, k, v, intervals, keyMask]) { pointers, error in
        ctorch_interval_attention(pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], scale, error)
    }
}

private func composed(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ intervals: Tensor, _ keyMask: Tensor?, _ scale: Double
) -> Tensor {
    let ranges = (intervals.rank == 3 ? intervals.unsqueezed(0) : intervals).to(q.device).unsqueezed(3)
    let keys = Tensor.arange(0..<k.size(2), device: q.device)
    // [heads or 1, K, queries, keys]
    let inside = ((keys .>= ranges.selected(-1, 0)) .&& (keys .< ranges.selected(-1, 1)))
    var visible = inside.any(1)
    if let keyMask { visible = (visible .&& keyMask.unsqueezed(1).unsqueezed(1)) }
    let blind = .!visible.any(-1, keepDim: true)
    let hidden = (.!visible .&& .!blind)
    let wide: DType = q.dtype == .float64 ? .float64 : .float32
    let scores = (matmul(q.to(wide), k.to(wide).transposed()) * scale).masked(where: hidden, with: -Double.infinity)
    return matmul(scores.softmax().masked(where: blind, with: 0).to(v.dtype), v)
}
