// Local attention in chunks, as the Reformer's authors put it between layers of LSH attention (their code; the paper's
// experiments name it only).
//
// Token i of chunk c = ⌊i / m⌋ attends, with softmax and 1/√D, to the tokens of the chunks c - before … c + after, when
// causal to those up to itself. Chunks end where the sequence does, or wrap around: the first then follows on the last.
import Torch
import TorchNN

/// Softmax attention within a chunk of m tokens and the chunks around it.
///
/// Time O(N m D), memory O(N (m + D)); streaming keeps the keys and values of the chunks before and of its own.
public final class LocalChunkCore: Module, StreamingCore {
    public let isCausal: Bool
    /// m
    public let chunk: Int
    /// How many chunks before its own a token sees, and how many after.
    public let chunksBefore: Int
    public let chunksAfter: Int
    /// Whether the first chunk follows on the last.
    public let wraps: Bool
    /// Which chunk is the last of a sequence that is padded.
    public let wrapLength: ReformerLength
    /// Whether to compose LibTorch's operations on the CPU too.
    public var isComposed = false

    public init(
        isCausal: Bool, chunk: Int, chunksBefore: Int = 1, chunksAfter: Int = 0, wraps: Bool = false,
        wrapLength: ReformerLength = .real
    ) {
        torchPrecondition(
            chunk > 0 && chunksBefore >= 0 && chunksAfter >= 0, in: "LocalChunkCore",
            "expected a positive chunk and at least 0 chunks around it; got \(chunk), \(chunksBefore), \(chunksAfter)")
        self.isCausal = isCausal
        self.chunk = max(1, chunk)
        self.chunksBefore = max(0, chunksBefore)
        self.chunksAfter = max(0, chunksAfter)
        self.wraps = wraps
        self.wrapLength = wrapLength
        super.init()
    }

    private var offsets: ClosedRange<Int> { -chunksBefore...chunksAfter }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard fits(q, k, v, paddingMask) else { return v }
        if q.device == .cpu, !isComposed, let ranges = visibleRanges(q.size(2), paddingMask) {
            return intervalAttention(q, k, v, intervals: ranges, keyMask: paddingMask, scale: scale(q))
        }
        return composed(q, k, v, paddingMask)
    }

    /// The ranges of keys that each token sees, int32 `[ranges, n, 2]`; nil where sequences wrap at different lengths, and
    /// where a token sees a chunk more than once.
    private func visibleRanges(_ n: Int, _ paddingMask: Tensor?) -> Tensor? {
        let chunks = (n + chunk - 1) / chunk
        if wraps, offsets.count > chunks || (wrapLength == .real && paddingMask != nil) { return nil }
        let position = Tensor.arange(0..<n)
        let own = position.floorDivided(by: chunk)
        let (first, last) = (Tensor.zeros(like: own), Tensor.full([n], chunks, dtype: .int64))
        // As the sequence is, and as it comes before and after itself.
        let shifts = wraps ? [0, -chunks, chunks] : [0]
        let ranges = shifts.map { shift in
            let start = maximum(own + (shift - chunksBefore), first) * chunk
            let end = minimum(own + (shift + chunksAfter + 1), last) * chunk
            return stack([start, isCausal ? minimum(end, position + 1) : end], dim: 1)
        }
        return stack(ranges).to(.int32)
    }

    private func composed(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let (batch, n) = (q.size(0), q.size(2))
        let chunks = (n + chunk - 1) / chunk
        let seen = ChunkView(chunks, offsets, wraps: wraps, lengths: wrapLengths(paddingMask, n), chunk, q.device)
        // Chunks stand in the batch, [batch · chunks, heads, …], beside those they see.
        func chunked(_ x: Tensor) -> Tensor {
            x.padded(2, after: chunks * chunk - n).transposed(1, 2).reshaped(batch * chunks, chunk, x.size(1), -1)
        }
        let visible = visibility(seen, paddingMask, n, batch)
        let blind = .!visible.any(-1, keepDim: true)
        let out = attend(
            chunked(q).transposed(1, 2), seen.gathered(chunked(k), batch).transposed(1, 2),
            seen.gathered(chunked(v), batch).transposed(1, 2), (visible .|| blind)
        ).masked(where: blind, with: 0)
        return out.transposed(1, 2).reshaped(batch, chunks * chunk, v.size(1), -1).transposed(1, 2).sliced(2, 0..<n)
    }

    /// Which keys each token of a chunk looks at: `[batch · chunks, 1, chunk, window · chunk]`.
    private func visibility(_ seen: ChunkView, _ paddingMask: Tensor?, _ n: Int, _ batch: Int) -> Tensor {
        let within = Tensor.arange(0..<chunk, device: seen.chunks.device)
        let chunks = seen.chunks.size(1)
        // [1 or batch, chunks, 1, window · chunk]
        let keys = (seen.chunks.unsqueezed(3) * chunk + within).flattened(2, 3).unsqueezed(2)
        var visible = (keys .< n)
        if let exists = seen.exists {
            visible = (visible .&& exists.repeated(chunk, dim: 2).unsqueezed(2))
        }
        if isCausal {
            let queries = Tensor.arange(0..<chunks * chunk, device: within.device).reshaped(1, chunks, chunk, 1)
            visible = (visible .&& (keys .<= queries))
        }
        if let paddingMask {
            let zeros = Tensor.zeros([batch, chunks * chunk - n], dtype: .bool, device: within.device)
            let isReal = concatenate([paddingMask, zeros], dim: 1).reshaped(batch * chunks, chunk)
            visible = (visible .&& seen.gathered(isReal, batch).reshaped(batch, chunks, 1, -1))
        }
        let full = [batch, chunks, visible.size(2), visible.size(3)]
        return visible.expanded(to: full).reshaped(batch * chunks, 1, full[2], full[3])
    }

    /// The length that wraps around, for each sequence `[1 or batch]`.
    private func wrapLengths(_ paddingMask: Tensor?, _ n: Int) -> Tensor {
        guard wraps, wrapLength == .real, let paddingMask else { return Tensor([n]) }
        return Tensor(realLengths(paddingMask).map { max(1, $0) })
    }

    /// LibTorch's kernel, which wants queries and values of one width, and a mask of the scores' full shape.
    private func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ visible: Tensor) -> Tensor {
        let (width, valueDim) = (q.size(3), v.size(3))
        let widest = max(width, valueDim)
        let out = scaledDotProductAttention(
            q.padded(3, after: widest - width), k.padded(3, after: widest - width),
            v.padded(3, after: widest - valueDim),
            mask: visible.expanded(to: [q.size(0), 1, q.size(2), k.size(2)]), scale: scale(q))
        return widest == valueDim ? out : out.sliced(3, 0..<valueDim)
    }

    private func scale(_ q: Tensor) -> Double { 1 / Double(max(q.size(-1), 1)).squareRoot() }

    /// Whether the shapes fit; where they do not, that is reported.
    private func fits(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Bool {
        check(q, k, v, paddingMask)
        let (sq, sk, sv) = (q.shape, k.shape, v.shape)
        let areTensors = sq.count == 4 && sv.count == 4 && sq == sk && sv.dropLast() == sk.dropLast()
        torchPrecondition(
            areTensors, in: "LocalChunkCore", "expected as many keys as queries; got q \(sq), k \(sk), v \(sv)")
        return areTensors && !(sq + sv).contains(0) && (paddingMask.map { $0.shape == [sq[0], sq[2]] } ?? true)
    }

    /// The equation over all pairs of tokens, counting how often each sees the other.
    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard fits(q, k, v, paddingMask) else { return v }
        let position = Tensor.arange(0..<q.size(2), device: q.device)
        let own = position.floorDivided(by: chunk)
        let last = (wrapLengths(paddingMask, q.size(2)) + (chunk - 1)).floorDivided(by: chunk).reshaped(-1, 1, 1, 1)
        var times = Tensor.zeros([1, 1, q.size(2), q.size(2)], dtype: .float64)  // how often row i sees column j
        for offset in offsets {
            let target = (own.unsqueezed(1) + offset).reshaped(1, 1, -1, 1)
            times += (own .== (wraps ? target.remainder(dividingBy: last) : target)).to(.float64)
        }
        if isCausal { times = times.lowerTriangle() }
        if let mask = paddingMask { times *= mask.to(.float64).unsqueezed(1).unsqueezed(1) }
        // In double: a logit of some hundreds has too few digits after the point in float32 to be the truth.
        let logits = matmul(q.to(.float64), k.to(.float64).transposed()) * scale(q)
        let blind = (times.sum(-1, keepDim: true) .== 0)
        let scores = (logits + times.log()).masked(where: blind, with: 0)
        return matmul(scores.softmax().masked(where: blind, with: 0).to(v.dtype), v)
    }
}

/// Which chunks each chunk sees.
private struct ChunkView {
    /// int64 `[1 or batch, chunks, window]`
    let chunks: Tensor
    /// Whether there is such a chunk; nil when there always is.
    let exists: Tensor?

    /// - Parameter lengths: of each sequence, or one for all; where it wraps.
    init(_ count: Int, _ offsets: ClosedRange<Int>, wraps: Bool, lengths: Tensor, _ chunk: Int, _ device: Device) {
        let shifts = Tensor.arange(offsets.lowerBound..<offsets.upperBound + 1, device: device)
        let target = (Tensor.arange(0..<count, device: device).unsqueezed(1) + shifts).unsqueezed(0)
        if wraps {
            let last = (lengths.to(device) + (chunk - 1)).floorDivided(by: chunk)
            chunks = target.remainder(dividingBy: last.reshaped(-1, 1, 1))
            exists = nil
        } else {
            chunks = target.remainder(dividingBy: count)
            exists = (target .== chunks)
        }
    }

    /// `[batch · chunks, chunk, …]` → `[batch · chunks, window · chunk, …]`: what each chunk sees.
    func gathered(_ x: Tensor, _ batch: Int) -> Tensor {
        let count = chunks.size(1)
        let first = Tensor.arange(0..<batch, device: chunks.device).reshaped(-1, 1, 1) * count
        let shape = x.shape
        return x.indexed(0, (chunks + first).flattened())
            .reshaped(to: [batch * count, chunks.size(2) * shape[1]] + shape.dropFirst(2))
    }
}

// MARK: - Streaming

extension LocalChunkCore {
    public var canStream: Bool { isCausal && !wraps }

    /// The slots of the state: the chunks before, and the token's own.
    var window: Int { (chunksBefore + 1) * chunk }

    public func initialState(_ shape: CoreShape) -> LocalChunkState {
        let leading = [shape.batch, shape.heads, window]
        return LocalChunkState(
            keys: .zeros(leading + [shape.headDim], dtype: shape.dtype, device: shape.device),
            values: .zeros(leading + [shape.valueDim], dtype: shape.dtype, device: shape.device),
            mask: .zeros([shape.batch, window], dtype: .bool, device: shape.device),
            count: .zeros([shape.batch], dtype: .int64, device: shape.device))
    }

    /// The parallel form on what the first new token's chunk sees, followed by the new tokens: cost O((N + m) m D).
    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout LocalChunkState)
        -> Tensor
    {
        torchPrecondition(
            canStream, in: "LocalChunkCore.prefill", "attention that is not causal, or that wraps, cannot stream")
        guard canStream, fits(q, k, v, paddingMask) else { return v }
        let n = q.size(2)
        let real = paddingMask ?? .ones([q.size(0), n], dtype: .bool, device: q.device)
        // Place p of the whole is position first + p of the sequence; the first `past` places are taken from the state.
        let first = (state.count.floorDivided(by: chunk) - chunksBefore) * chunk  // [batch]
        let past = (state.count - first).unsqueezed(1)
        let place = Tensor.arange(0..<window + n, device: q.device).unsqueezed(0)
        let fresh = place - past
        let isOld = (fresh .< 0)
        let isThere = ((fresh .< n) .&& (place + first.unsqueezed(1) .>= 0))
        let new = select(isOld .|| (fresh .>= n), Tensor.zeros(like: fresh), fresh)
        let slot = select(isOld, (place + first.unsqueezed(1)).remainder(dividingBy: window), new + window)

        let keys = Self.taken(concatenate([state.keys, k], dim: 2), slot)
        let values = Self.taken(concatenate([state.values, v], dim: 2), slot)
        let mask = (concatenate([state.mask, real], dim: 1).gathered(1, slot) .&& isThere)
        let out = self(Self.taken(q, new), keys, values, paddingMask: mask)

        let places = Tensor.arange(1..<n + 1, device: q.device)
        let count = state.count + (real.to(.int64) * places).maximum(1)
        // A slot keeps the last position that belongs there; what lies before `first` nobody will look at again.
        let kept = Self.position(of: window, last: count - 1) - first.unsqueezed(1)
        let source = select(kept .< 0, Tensor.zeros(like: kept), kept)
        state = LocalChunkState(
            keys: Self.taken(keys, source), values: Self.taken(values, source),
            mask: (mask.gathered(1, source) .&& (kept .>= 0)), count: count)
        return Self.taken(out, places - 1 + past)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout LocalChunkState) -> Tensor {
        let position = Self.position(of: window, last: state.count)
        let isNew = (position .== state.count.unsqueezed(1))
        let here = isNew.unsqueezed(1).unsqueezed(3)
        let keys = select(here, k.unsqueezed(2), state.keys)
        let values = select(here, v.unsqueezed(2), state.values)
        let mask = (state.mask .|| isNew)
        let first = (state.count.floorDivided(by: chunk) - chunksBefore) * chunk
        let visible = (mask .&& (position .>= first.unsqueezed(1)))
        state = LocalChunkState(keys: keys, values: values, mask: mask, count: state.count + 1)
        let logits = matmul(q.unsqueezed(2), keys.transposed()) * scale(q)
        let hidden = (.!visible).unsqueezed(1).unsqueezed(1)
        return matmul(logits.masked(where: hidden, with: -Double.infinity).softmax(), values).squeezed(2)
    }

    /// The latest position up to `last` `[batch]` that belongs into each of `window` slots: `[batch, window]`.
    private static func position(of window: Int, last: Tensor) -> Tensor {
        let slot = Tensor.arange(0..<window, device: last.device)
        let last = last.unsqueezed(1)
        return last - (last - slot).remainder(dividingBy: window)
    }

    /// x `[batch, heads, n, width]` at each sequence's places `[batch, m]`: `[batch, heads, m, width]`.
    private static func taken(_ x: Tensor, _ places: Tensor) -> Tensor {
        x.gathered(2, places.unsqueezed(1).unsqueezed(3).expanded(to: [x.size(0), x.size(1), -1, x.size(3)]))
    }
}

/// The keys and values that a token's chunk sees, position p in slot p mod window: of one size, whatever the length.
public struct LocalChunkState: StreamingState {
    var keys: Tensor  // [batch, heads, window, headDim]
    var values: Tensor  // [batch, heads, window, valueDim]
    var mask: Tensor  // [batch, window], true where a real token stands
    var count: Tensor  // [batch], tokens taken up

    public var tensors: [String: Tensor] { ["keys": keys, "values": values, "mask": mask, "count": count] }
}
