import CTorch

/// How a span of queries or keys becomes one.
public enum SpanPooling: Int32, Sendable, CaseIterable {
    case max, mean, sum
}

/// Keys and values with one summary of every `span` tokens behind:
///
///     q̄_s = pool_{j∈s} a_j,   k̄_s = pool_{j∈s} b_j,   v̄_s = Σ_{j∈s} w_j v_j,   w = softmax_{j∈s}(scale q̄_s·k_j)
///
/// in one pass. `queries` a, `pooledKeys` b (left out, the keys) and keys `[batch, heads, length, D]`, values
/// `[batch, heads, length, E]`; `paddingMask` `[batch, length]`: false leaves a token out, and a span of none gives 0.
///
/// Time and memory O(length (D + E)), the backward pass included. A kernel of the CPU.
///
/// - Returns: [k; k̄] and [v; v̄], `[batch, heads, length + spans, ·]`.
public func spanSummaries(
    queries a: Tensor, pooledKeys b: Tensor? = nil, _ keys: Tensor, _ values: Tensor, paddingMask: Tensor? = nil,
    span: Int,
    pooling: SpanPooling, scale: Double
) -> (keys: Tensor, values: Tensor) {
    var second: ctorch_tensor?
    let first = call("span_summaries", [a, b, keys, values, paddingMask]) { pointers, error in
        ctorch_span_summaries(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], Int64(span), pooling.rawValue, scale,
            &second, error)
    }
    return (first, second.map(Tensor.init(owning:)) ?? .standIn)
}
