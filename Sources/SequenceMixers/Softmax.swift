// Scaled dot-product attention. Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762, eq. 1.
//
//   out_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = τ q_i·k_j
//
// over the keys that are real and, when causal, not after i. A row that may look at no key gives 0 and takes no gradient.
import Foundation
import Torch
import TorchNN

/// Exact softmax attention: the baseline that every other mechanism is measured against.
///
/// Time O(N M (D + E)) for N queries and M keys. Memory O(N + M): scores are computed block by block and never kept.
/// Streaming keeps all keys and values, so its state grows with the sequence.
public final class SoftmaxCore: Module, StreamingCore {
    public let isCausal: Bool
    /// τ; nil is 1 / sqrt(headDim).
    public let scale: Double?

    public init(isCausal: Bool, scale: Double? = nil) {
        self.isCausal = isCausal
        self.scale = scale
        super.init()
    }

    private func scale(for q: Tensor) -> Double { scale ?? 1 / Double(q.size(-1)).squareRoot() }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        checkCausal(q, k)
        if q.device == .cpu && q.size(2) >= Self.fewQueries {
            return intervalAttention(
                q, k, v, intervals: intervals(queries: q.size(2), keys: k.size(2)), keyMask: paddingMask,
                scale: scale(for: q))
        }
        guard let mask = paddingMask else { return blocked(q, k, v, causal: isCausal) }
        // Padding enters as one more channel: 1 in every query, a large negative number in a padded key. The score then
        // underflows to a weight of exactly 0, without a mask of N × M entries even when attention is causal too.
        let bias = (.!mask).to(k.dtype) * (k.dtype == .float16 ? -3e4 : -1e30)  // [batch, m]
        let wideQ = concatenate([q, Tensor.ones(like: q.sliced(3, 0..<1))], dim: 3)
        let wideK = concatenate([k, bias.unsqueezed(1).unsqueezed(3).expanded(to: [-1, k.size(1), -1, 1])], dim: 3)
        let out = blocked(wideQ, wideK, v, causal: isCausal, scale: scale(for: q))
        return out.masked(where: blindRows(mask, queries: q.size(2)), with: 0)
    }

    /// Fewer queries than this leave most of a tile empty.
    private static let fewQueries = 8

    /// All keys, or those up to the query's own: int32 `[1, queries, 2]`
    private func intervals(queries: Int, keys: Int) -> Tensor {
        let ends = isCausal ? Tensor.arange(1..<queries + 1) : .full([queries], keys, dtype: .int64)
        return stack([.zeros(like: ends), ends], dim: 1).unsqueezed(0).to(.int32)
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        checkCausal(q, k)
        var visible = Tensor.ones([q.size(2), k.size(2)], dtype: .bool, device: q.device)
        if isCausal { visible = visible.lowerTriangle() }
        if let mask = paddingMask { visible = (visible .&& mask.unsqueezed(1).unsqueezed(1)) }
        // In double: a logit of some hundreds has too few digits after the point in float32 to be the truth.
        let logits = matmul(q.to(.float64), k.to(.float64).transposed()) * scale(for: q)
        let scores = logits.masked(where: .!visible, with: -Double.infinity)
        let blind = .!visible.any(-1, keepDim: true)
        let weights = scores.masked(where: blind, with: 0).softmax().masked(where: blind, with: 0)
        return matmul(weights.to(v.dtype), v)
    }

    /// LibTorch's online-softmax kernel, where there is none of our own: it wants queries and values of one width.
    private func blocked(_ q: Tensor, _ k: Tensor, _ v: Tensor, causal: Bool, scale: Double? = nil, mask: Tensor? = nil)
        -> Tensor
    {
        let scale = scale ?? self.scale(for: q)
        let (width, valueDim) = (q.size(3), v.size(3))
        let widest = max(width, valueDim)
        let out = scaledDotProductAttention(
            q.padded(3, after: widest - width), k.padded(3, after: widest - width),
            v.padded(3, after: widest - valueDim),
            mask: mask, causal: causal, scale: scale)
        return widest == valueDim ? out : out.sliced(3, 0..<valueDim)
    }

    /// `[batch, 1, n or 1, 1]`, true where a query may look at no key.
    private func blindRows(_ mask: Tensor, queries: Int) -> Tensor {
        let seen = isCausal ? mask.to(.int64).cumulativeSum(1) .> 0 : mask.any(1, keepDim: true)
        return (.!seen).unsqueezed(1).unsqueezed(3)
    }

    private func checkCausal(_ q: Tensor, _ k: Tensor) {
        torchPrecondition(
            !isCausal || q.size(2) == k.size(2), in: "SoftmaxCore",
            "causal attention needs as many keys as queries; got q \(q.shape), k \(k.shape)")
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> KeyValueCache { KeyValueCache(shape) }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout KeyValueCache)
        -> Tensor
    {
        check(q, k, v, paddingMask)
        torchPrecondition(isCausal, in: "SoftmaxCore.prefill", "bidirectional attention cannot stream")
        let (past, n) = (state.count, q.size(2))
        state.append(k, v, paddingMask: paddingMask)
        if past == 0 { return self(q, k, v, paddingMask: paddingMask) }
        // Query i of this piece sees the whole past and the piece up to i: a mask of n × (past + n), bounded by the piece.
        var visible = Tensor.ones([n, past + n], dtype: .bool, device: q.device).lowerTriangle(diagonal: past)
        if let mask = state.mask { visible = (visible .&& mask.unsqueezed(1).unsqueezed(1)) }
        return masked(q, state, visible)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout KeyValueCache) -> Tensor {
        state.append(k.unsqueezed(2), v.unsqueezed(2))
        guard let mask = state.mask else {
            return blocked(q.unsqueezed(2), state.keys, state.values, causal: false).squeezed(2)
        }
        return masked(q.unsqueezed(2), state, mask.unsqueezed(1).unsqueezed(1)).squeezed(2)
    }

    private func masked(_ q: Tensor, _ state: KeyValueCache, _ visible: Tensor) -> Tensor {
        let blind = .!visible.any(-1, keepDim: true)
        let full = [q.size(0), 1, q.size(2), state.count]
        let open = (visible .|| blind).expanded(to: full)
        return blocked(q, state.keys, state.values, causal: false, mask: open).masked(where: blind, with: 0)
    }
}

// MARK: - In the catalogue

/// Options of `softmax` in a recipe.
public struct SoftmaxOptions: MixerOptions {
    /// τ; left out, 1 / sqrt(headDim).
    public var scale: Double?

    public init() {}

    public init(scale: Double) { self.scale = scale }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        if let scale, !(scale > 0 && scale.isFinite) {
            throw ConfigurationError("softmax: scale must be above 0, not \(scale)")
        }
        return Attention(
            SoftmaxCore(isCausal: context.isCausal, scale: scale), modelDim: context.modelDim, heads: context.heads,
            rotary: try context.rotaryEmbedding(), using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "softmax", title: "Softmax attention",
        paper: Paper("Attention Is All You Need", authors: "Vaswani et al.", year: 2017, arXiv: "1706.03762"),
        causal: true, bidirectional: true, padding: true, crossAttention: true, streaming: .growing, rotary: true,
        time: "O(N² D)", memory: "O(N D)", options: SoftmaxOptions.self,
        golden: { golden in
            try golden.expect(variants: ["full", "causal", "cross", "layer"])
            _ = try golden.settings.double("dropout", or: 0, expecting: [0])
            return try .core(
                SoftmaxCore(isCausal: golden.settings.bool("causal"), scale: golden.settings.optionalDouble("scale")))
        })
}
