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
    attention(q, k, v, [IntervalPass(intervals)], keyMask, scale, distances)
}

/// Queries and keys in orders of their own, and the ranges of keys that each query sees in them.
///
/// What is no range where the keys lie may be one in another order: every s-th key, once they are sorted by j mod s.
public struct IntervalPass {
    /// int32 on the CPU, `[K, queries, 2]` for all heads or `[heads, K, queries, 2]`: places in the order of the keys.
    public var intervals: Tensor
    /// int32 on the CPU, `[queries]`: the pass has these queries, each at most once; nil for all as they lie.
    public var queries: Tensor?
    /// int32 on the CPU, `[keys]`: the pass has these keys, each at most once; nil for all as they lie.
    public var keys: Tensor?

    public init(_ intervals: Tensor, queries: Tensor? = nil, keys: Tensor? = nil) {
        self.intervals = intervals
        self.queries = queries
        self.keys = keys
    }
}

/// ``intervalAttention(_:_:_:intervals:keyMask:scale:distances:)`` with one softmax over the keys that a query sees in any of
/// the passes, without distances.
///
/// No query may see a key in two of them, and the first pass must have all queries and all keys.
public func intervalAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, passes: [IntervalPass], keyMask: Tensor? = nil, scale: Double
) -> Tensor {
    attention(q, k, v, passes, keyMask, scale, nil)
}

private func attention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ passes: [IntervalPass], _ keyMask: Tensor?, _ scale: Double,
    _ distances: IntervalDistances?
) -> Tensor {
    guard q.device == .cpu else { return composedIntervalAttention(q, k, v, passes, keyMask, scale, distances) }
    let fixed = [q, k, v, keyMask, distances?.table, distances?.bias, distances?.keyBias]
    let operands = passes.reduce(into: fixed) { $0 += [$1.intervals, $1.queries, $1.keys] }
    return call("interval_attention", operands) { pointers, error in
        func run(_ distances: UnsafePointer<ctorch_interval_distances>?) -> ctorch_tensor? {
            ctorch_interval_attention(
                pointers[0], pointers[1], pointers[2], Array(pointers[fixed.count...]), passes.count, pointers[3],
                scale, distances, error)
        }
        guard let distances else { return run(nil) }
        return distances.counts.withDims { counts, count in
            var given = ctorch_interval_distances(
                table: pointers[4], bias: pointers[5], key_bias: pointers[6], counts: counts, count: count)
            return run(&given)
        }
    }
}

/// The same with all scores in memory. Distances are for a single pass without orders.
func composedIntervalAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ passes: [IntervalPass], _ keyMask: Tensor?, _ scale: Double,
    _ distances: IntervalDistances?
) -> Tensor {
    let none = Tensor.zeros([1, q.size(2), k.size(2)], dtype: .bool, device: q.device)
    var visible = passes.reduce(none) { $0 .|| $1.visible(queries: q.size(2), keys: k.size(2), on: q.device) }
    if let keyMask { visible = (visible .&& keyMask.unsqueezed(1).unsqueezed(1)) }
    let blind = .!visible.any(-1, keepDim: true)
    let hidden = (.!visible .&& .!blind)
    let wide: DType = q.dtype == .float64 ? .float64 : .float32
    let queries = q.to(wide) * scale
    var scores = matmul(queries, k.to(wide).transposed())
    // Without distances nothing is seen.
    if let distances, distances.table.size(1) > 0 {
        let byDistance =
            matmul(queries, distances.table.to(wide).transposed()) + distances.bias.to(wide).unsqueezed(1)
        let places = passes[0].places(of: distances, keys: k.size(2), on: q.device)
        scores += byDistance.gathered(3, places.expanded(to: scores.shape))
        scores += distances.keyBias.to(wide).unsqueezed(2)
    }
    let weights = scores.masked(where: hidden, with: -Double.infinity).softmax().masked(where: blind, with: 0)
    return matmul(weights.to(v.dtype), v)
}

extension IntervalPass {
    /// Int64 `[heads or 1, K, queries, 1, 2]`.
    private func ranges(on device: Device) -> Tensor {
        (intervals.rank == 3 ? intervals.unsqueezed(0) : intervals).to(device).to(.int64).unsqueezed(3)
    }

    /// Which of so many keys are in a range: bool `[heads or 1, K, queries, keys]`.
    private func inside(_ ranges: Tensor, _ keys: Tensor) -> Tensor {
        ((keys .>= ranges.selected(-1, 0)) .&& (keys .< ranges.selected(-1, 1)))
    }

    /// Bool `[heads or 1, queries, keys]`, rows and columns as they lie.
    fileprivate func visible(queries count: Int, keys keyCount: Int, on device: Device) -> Tensor {
        let places = Tensor.arange(0..<(keys?.size(0) ?? keyCount), device: device)
        let seen = inside(ranges(on: device), places).any(1)
        return Self.restored(Self.restored(seen, 1, queries, count), 2, keys, keyCount)
    }

    /// Where the tables have the distance of a query and a key that it sees, otherwise 0: int64 `[heads or 1, queries, keys]`.
    fileprivate func places(of distances: IntervalDistances, keys count: Int, on device: Device) -> Tensor {
        let (ranges, keys) = (ranges(on: device), Tensor.arange(0..<count, device: device))
        let starts = distances.counts.indices.map { distances.counts[..<$0].reduce(0, +) }
        let offsets = Tensor(starts, shape: [1, starts.count, 1, 1], device: device)
        return (ranges.selected(-1, 1) - 1 - keys + offsets).masked(where: .!inside(ranges, keys), with: 0).sum(1)
    }

    /// From the places of an order to where its rows lie; false for rows that it does not have.
    private static func restored(_ x: Tensor, _ dim: Int, _ order: Tensor?, _ count: Int) -> Tensor {
        guard let order = order?.to(x.device).to(.int64) else { return x }
        let places = order.size(0)
        let inverse = Tensor.full([count], places, dtype: .int64, device: x.device)
            .indexAdded(0, order, Tensor.arange(0..<places, device: x.device) - places)
        return x.padded(dim, after: 1).indexed(dim, inverse)
    }
}
