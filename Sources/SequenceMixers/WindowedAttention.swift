import Torch

/// Keys and values that queries may look at, and the position of each in its sequence, -1 for what is none: int64
/// `[batch, m]`.
struct PositionedKeys {
    /// `[batch, heads, m, headDim]`
    let keys: Tensor
    /// `[batch, heads, m, valueDim]`
    let values: Tensor
    let positions: Tensor
}

/// The past of a decoder that looks at positions: each sequence of the batch stands at one of its own.
protocol PositionedCache {
    /// The position of each sequence's next token.
    var next: [Int] { get }

    /// Takes up n tokens, k `[batch, heads, n, headDim]`, v `[batch, heads, n, valueDim]`, of each sequence as many as
    /// `lengths` says; returns what there was before with the new ones. `positions` are the new ones', -1 for padded ones.
    mutating func taking(_ k: Tensor, _ v: Tensor, _ positions: Tensor, lengths: [Int]) -> PositionedKeys
}

extension PositionedCache {
    /// Whether no token has been taken up.
    var isFresh: Bool { next.allSatisfy { $0 == 0 } }

    /// How many new tokens may be taken up at a time without costing more than one by one.
    var piece: Int { 64 }

    /// The positions of the next `count` tokens: int64 `[batch, count]`.
    func following(_ count: Int, device: Device) -> Tensor {
        Tensor(next, shape: [next.count, 1], device: device) + Tensor.arange(0..<count, device: device)
    }

    /// Takes up n tokens and returns all there are; `lengths` counts each sequence's tokens up to its last real one.
    mutating func taking(_ k: Tensor, _ v: Tensor, paddingMask: Tensor?, lengths: [Int]) -> PositionedKeys {
        let (count, device) = (k.size(2), k.device)
        var isPadded =
            (Tensor.arange(0..<count, device: device) .>= Tensor(lengths, shape: [lengths.count, 1], device: device))
        if let paddingMask { isPadded = (isPadded .|| .!paddingMask) }
        let positions = following(count, device: device).masked(where: isPadded, with: -1)
        return taking(k, v, positions, lengths: lengths)
    }

    /// Takes up n tokens without looking at them.
    mutating func takeUp(_ k: Tensor, _ v: Tensor, paddingMask: Tensor?) {
        _ = taking(k, v, paddingMask: paddingMask, lengths: extents(k, paddingMask))
    }

    /// Causal attention of n new tokens to what is kept and to each other; then they are taken up.
    ///
    /// In pieces, so that n tokens cost O(n slots). `visible` is given the queries' positions `[batch, n, 1]` and the keys'
    /// `[batch, 1, m]`, and says which of the earlier keys count: bool `[batch, 1 or heads, n, m]`.
    mutating func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, visible: (_ i: Tensor, _ j: Tensor) -> Tensor
    ) -> Tensor {
        let count = q.size(2)
        let lengths = extents(k, paddingMask)
        let scale = 1 / Double(max(q.size(3), 1)).squareRoot()
        let outs = stride(from: 0, to: count, by: piece).map { start -> Tensor in
            let range = start..<min(start + piece, count)
            let i = following(range.count, device: q.device).unsqueezed(2)
            let all = taking(
                k.sliced(2, range), v.sliced(2, range), paddingMask: paddingMask?.sliced(1, range),
                lengths: lengths.map { min(max($0 - start, 0), range.count) })
            let j = all.positions.unsqueezed(1)
            let past = ((j .>= 0) .&& (j .<= i)).unsqueezed(1)
            let logits = matmul(q.sliced(2, range), all.keys.transposed()) * scale
            return visibleAttention(logits, (past .&& visible(i, j)), all.values)
        }
        return outs.count == 1 ? outs[0] : concatenate(outs, dim: 2)
    }

    private func extents(_ k: Tensor, _ paddingMask: Tensor?) -> [Int] {
        paddingMask.map(realLengths) ?? Array(repeating: k.size(2), count: k.size(0))
    }
}

/// The first tokens, kept for ever, and the last ones in a ring: a state of constant size.
///
/// Position p lies in slot p while it is among the first tokens, and afterwards in the ring, where it takes the place of an
/// older one; the order there does not matter to a softmax.
public struct RingCache: StreamingState, PositionedCache {
    /// `[batch, heads, slots, headDim]`
    private var keys: Tensor
    /// `[batch, heads, slots, valueDim]`
    private var values: Tensor
    /// The position that stands in each slot, -1 for none: int64 `[batch, slots]`.
    private var positions: Tensor
    private(set) var next: [Int]
    /// How many of the first tokens have a slot of their own.
    private let first: Int
    /// How many slots the ring has.
    private let last: Int

    init(_ shape: CoreShape, first: Int, last: Int) {
        let leading = [shape.batch, shape.heads, first + last]
        keys = .zeros(leading + [shape.headDim], dtype: shape.dtype, device: shape.device)
        values = .zeros(leading + [shape.valueDim], dtype: shape.dtype, device: shape.device)
        positions = .full([shape.batch, first + last], -1, dtype: .int64, device: shape.device)
        next = Array(repeating: 0, count: shape.batch)
        (self.first, self.last) = (first, last)
    }

    public var tensors: [String: Tensor] {
        ["keys": keys, "values": values, "positions": positions, "next": Tensor(next)]
    }

    var piece: Int { max(64, last) }

    mutating func taking(_ k: Tensor, _ v: Tensor, _ positions: Tensor, lengths: [Int]) -> PositionedKeys {
        let all = PositionedKeys(
            keys: concatenate([keys, k], dim: 2), values: concatenate([values, v], dim: 2),
            positions: concatenate([self.positions, positions], dim: 1))
        let (slots, ends) = (first + last, zip(next, lengths).map { $0 + $1 })
        // The latest position that belongs in a slot; where it is a new one, it is found after the old slots.
        var sources: [Int] = []
        for (start, end) in zip(next, ends) {
            for slot in 0..<slots {
                let position = latest(in: slot, before: end)
                sources.append(position >= start ? slots + position - start : slot)
            }
        }
        let source = Tensor(sources, shape: [next.count, slots], device: positions.device)
        let wide = source.unsqueezed(1).unsqueezed(3)
        func taken(_ x: Tensor) -> Tensor {
            x.gathered(2, wide.expanded(to: [-1, x.size(1), -1, x.size(3)])).detached()
        }
        (keys, values, next) = (taken(all.keys), taken(all.values), ends)
        self.positions = all.positions.gathered(1, source)
        return all
    }

    /// All slots of one sequence's ring, `[1, heads, slots, …]`, with how they are laid out; nil if a token that belongs in one
    /// is padded.
    var whole: (keys: Tensor, values: Tensor, first: Int, last: Int)? {
        guard next.count == 1 else { return nil }
        let here: [Int64] = positions.flattened().scalars()
        let isWhole = here.enumerated().allSatisfy { $0.element == Int64(latest(in: $0.offset, before: next[0])) }
        return isWhole ? (keys, values, first, last) : nil
    }

    /// -1 when there is none.
    private func latest(in slot: Int, before end: Int) -> Int {
        guard slot < end else { return -1 }
        if slot < first { return slot }
        return end - 1 - (end - 1 - slot) % last  // the ring's slots begin at `first`, and so do its positions
    }
}

/// All tokens there were.
public struct GrowingCache: StreamingState, PositionedCache {
    private var cache: KeyValueCache
    /// int64 `[batch, tokens]`, -1 for padded ones.
    private var positions: Tensor
    private(set) var next: [Int]

    init(_ shape: CoreShape) {
        cache = KeyValueCache(shape)
        positions = .zeros([shape.batch, 0], dtype: .int64, device: shape.device)
        next = Array(repeating: 0, count: shape.batch)
    }

    public var tensors: [String: Tensor] {
        cache.tensors.merging(["positions": positions, "next": Tensor(next)]) { kept, _ in kept }
    }

    /// Keys and values of one sequence, `[1, heads, tokens, …]`; nil if a token is padded.
    var whole: (keys: Tensor, values: Tensor)? {
        guard next.count == 1 else { return nil }
        let here: [Int64] = positions.flattened().scalars()
        return here.elementsEqual((0..<next[0]).map { Int64($0) }) ? (cache.keys, cache.values) : nil
    }

    mutating func taking(_ k: Tensor, _ v: Tensor, _ positions: Tensor, lengths: [Int]) -> PositionedKeys {
        cache.append(k, v)
        self.positions = concatenate([self.positions, positions], dim: 1)
        next = zip(next, lengths).map { $0 + $1 }
        return PositionedKeys(keys: cache.keys, values: cache.values, positions: self.positions)
    }
}

/// softmax over the keys that each query may see, times their values: for pieces so short that all scores fit in memory.
///
/// logits `[batch, heads, n, m]`, `visible` bool broadcast to that, v `[batch, heads, m, e]`. A row that sees nothing gives 0.
func visibleAttention(_ logits: Tensor, _ visible: Tensor, _ v: Tensor) -> Tensor {
    matmul(visibleSoftmax(logits, visible).to(v.dtype), v)
}

/// The weights of ``visibleAttention(_:_:_:)``, in float32 or wider.
func visibleSoftmax(_ logits: Tensor, _ visible: Tensor) -> Tensor {
    let blind = .!visible.any(-1, keepDim: true)
    let hidden = (.!visible .&& .!blind)
    return logits.to(logits.dtype.accumulator).masked(where: hidden, with: -Double.infinity).softmax()
        .masked(where: blind, with: 0)
}
