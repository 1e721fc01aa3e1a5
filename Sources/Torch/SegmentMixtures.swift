import CTorch

/// What the two layer norms of ``segmentMixtures(_:_:logits:paddingMask:norms:segment:rank:heads:)`` have learned.
public struct SegmentNorms {
    public var tokenGain: Tensor
    public var tokenBias: Tensor
    public var mixtureGain: Tensor
    public var mixtureBias: Tensor
    public var epsilon: Double

    public init(tokenGain: Tensor, tokenBias: Tensor, mixtureGain: Tensor, mixtureBias: Tensor, epsilon: Double) {
        self.tokenGain = tokenGain
        self.tokenBias = tokenBias
        self.mixtureGain = mixtureGain
        self.mixtureBias = mixtureBias
        self.epsilon = epsilon
    }
}

/// Normalized keys and values, with `rank` normalized mixtures of every segment behind:
///
///     k'_t = LN(k_t),   k̄' = LN'(k̄),   k̄ = Σ_t P_t k_t,   P = softmax_t(logits_t)
///
/// head by head, and v with the same P, in one pass. Keys and values `[batch, length, heads · width]`, logits
/// `[batch, length, heads · rank]`; `paddingMask` `[batch, length]`: false leaves a token out of its mixtures, which are 0
/// before their norm where none is left. The last segment, whole or not, has no mixtures.
///
/// Time O(length rank heads width) and memory O(length heads width), the backward pass included. A kernel of the CPU.
///
/// - Returns: [k'; k̄'] and [v'; v̄'], `[batch, length + mixtures, heads · width]`, mixtures in the order of the segments.
public func segmentMixtures(
    _ keys: Tensor, _ values: Tensor, logits: Tensor, paddingMask: Tensor? = nil, norms: SegmentNorms, segment: Int,
    rank: Int,
    heads: Int
) -> (keys: Tensor, values: Tensor) {
    let operands = [
        keys, values, logits, paddingMask, norms.tokenGain, norms.tokenBias, norms.mixtureGain, norms.mixtureBias,
    ]
    var second: ctorch_tensor?
    let first = call("segment_mixtures", operands) { pointers, error in
        let norms = ctorch_mixture_norms(
            token_gain: pointers[4], token_bias: pointers[5], mixture_gain: pointers[6], mixture_bias: pointers[7],
            epsilon: norms.epsilon)
        return ctorch_segment_mixtures(
            pointers[0], pointers[1], pointers[2], pointers[3], norms, Int64(segment), Int64(rank), Int64(heads),
            &second, error)
    }
    return (first, second.map(Tensor.init(owning:)) ?? .standIn)
}
