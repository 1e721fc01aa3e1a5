// What Mega remembers of a sequence taken piece by piece: the average's state, and the keys and values that later
// queries still look at, which with chunks are those of the present chunk only.
import Torch
import TorchNN

/// What a causal Mega layer remembers. With chunks its size is bounded; without, keys and values grow with the length.
public struct MegaState: StreamingState {
    /// Of ``MegaEMA/initialState(batch:)``.
    var average: Tensor
    var cache: MegaCache

    public var tensors: [String: Tensor] {
        var tensors = [
            "average": average, "keys": cache.keys, "values": cache.values, "positions": Tensor(cache.positions),
        ]
        tensors["mask"] = cache.mask
        return tensors
    }
}

/// The keys and values that are still to be looked at, each sequence's from the start of its present chunk.
struct MegaCache {
    var keys: Tensor  // [batch, the most that any sequence has, z]
    var values: Tensor  // [batch, the same, e]
    var mask: Tensor?  // [batch, the same], true for a real token, once a padding mask has been seen
    var positions: [Int]  // of each sequence's next token
}

extension MegaAttention {
    func initialCache(batch: Int, queryDim: Int, valueDim: Int, like weight: Tensor) -> MegaCache {
        MegaCache(
            keys: .zeros([batch, 0, queryDim], dtype: weight.dtype, device: weight.device),
            values: .zeros([batch, 0, valueDim], dtype: weight.dtype, device: weight.device), mask: nil,
            positions: Array(repeating: 0, count: batch))
    }

    /// The next tokens, of which the first `lengths[b]` of each sequence count for the cache.
    func continued(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, _ lengths: [Int], _ cache: inout MegaCache
    ) -> Tensor {
        let (n, held) = (q.size(1), cache.keys.size(1))
        let positions = zip(cache.positions, lengths).map { $0 + $1 }
        checkLength(positions.max() ?? 0)
        let fills = cache.positions.map(filled)
        let join = Join(fills, held: held, new: n)
        let (keys, values) = (join(cache.keys, k), join(cache.values, v))
        let mask = join(cache.mask, paddingMask, like: k)
        // Queries stand in line with their keys; the outputs of those that stand for cached tokens are not needed.
        let queries = join(Tensor.zeros([q.size(0), held, q.size(2)], dtype: q.dtype, device: q.device), q)
        // Where all lies in one chunk, only rows from the first new one on are computed.
        let isOneChunk = chunk.map { held + n <= $0 } ?? true
        let first = isOneChunk ? fills.min() ?? 0 : 0
        let out =
            isOneChunk
            ? attend(queries.sliced(1, first..<held + n), keys, values, keys: mask)
            : self(queries, keys, values, paddingMask: mask)

        let ends = positions.map(filled)
        let kept = Cut(starts: fills.indices.map { fills[$0] + lengths[$0] - ends[$0] }, counts: ends)
        cache = MegaCache(
            keys: kept(keys), values: kept(values), mask: mask.map { kept(mask: $0) }, positions: positions)
        return Cut(starts: fills.map { $0 - first }, counts: fills.map { _ in n })(out)
    }

    /// How many tokens of a sequence's last, unfinished chunk there are after so many tokens.
    private func filled(_ position: Int) -> Int { chunk.map { position % $0 } ?? position }
}

/// Puts each sequence's new tokens right after those that it has in the cache.
private struct Join {
    private let held: Int
    private let new: Int
    private let sources: [[Int]]?

    /// - Parameter fills: how many cached tokens each sequence has, `held` at most.
    init(_ fills: [Int], held: Int, new: Int) {
        (self.held, self.new) = (held, new)
        func source(_ place: Int, _ fill: Int) -> Int {
            if place < fill { return place }
            return place < fill + new ? held + place - fill : -1
        }
        let isEven = fills.allSatisfy { $0 == held }
        sources = isEven ? nil : fills.map { fill in (0..<held + new).map { source($0, fill) } }
    }

    func callAsFunction(_ past: Tensor, _ next: Tensor) -> Tensor {
        let whole = concatenate([past, next], dim: 1)
        return sources.map { whole.rearranged($0) } ?? whole
    }

    /// Masks, of which nil is all true.
    func callAsFunction(_ past: Tensor?, _ next: Tensor?, like x: Tensor) -> Tensor? {
        if past == nil && next == nil { return nil }
        func numbers(_ mask: Tensor?, _ count: Int) -> Tensor {
            (mask ?? .ones([x.size(0), count], dtype: .bool, device: x.device)).to(.int64).unsqueezed(2)
        }
        return self(numbers(past, held), numbers(next, new)).squeezed(2) .!= 0
    }
}

/// Some positions in a row of each sequence, zeros after those of the shorter ones.
private struct Cut {
    let starts: [Int]
    let counts: [Int]

    func callAsFunction(_ x: Tensor) -> Tensor {
        let (start, count) = (starts.first ?? 0, counts.max() ?? 0)
        if starts.allSatisfy({ $0 == start }) && counts.allSatisfy({ $0 == count }) {
            // A view would keep the whole in memory.
            return count == x.size(1) ? x : x.sliced(1, start..<start + count).cloned()
        }
        return x.rearranged(
            zip(starts, counts).map { start, own in (0..<count).map { $0 < own ? start + $0 : -1 } })
    }

    func callAsFunction(mask: Tensor) -> Tensor { self(mask.to(.int64).unsqueezed(2)).squeezed(2) .!= 0 }
}
