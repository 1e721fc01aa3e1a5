import CTorch

/// What the causal linear family carries along the sequence, in at least float32.
public struct CausalLinearState {
    /// Σ φ(k_j) v_jᵀ, weighted: `[batch, heads, features, valueDim]`
    public var s: Tensor
    /// The momentum, for a step that is not plain linear attention; same shape.
    public var p: Tensor?
    /// Σ φ(k_j): `[batch, heads, features]`
    public var z: Tensor

    public init(s: Tensor, p: Tensor?, z: Tensor) {
        self.s = s
        self.p = p
        self.z = z
    }
}

/// The fused kernel of causal linear attention with a fixed momentum, in chunks: with p₀ = s₀ = z₀ = 0 or `initial`,
///
///     p_i = β p_{i-1} - γ k_i v_iᵀ,  s_i = s_{i-1} - p_i,  z_i = z_{i-1} + k_i,  out_i = q_i·s_i / (q_i·z_i + ε)
///
/// q, k `[batch, heads, length, features]` after the feature map, v `[batch, heads, length, valueDim]`. β = 0, γ = 1 is linear
/// attention. Time O(N (C + features) (features + valueDim)) for a chunk of C tokens, memory O(N (features + valueDim)), the
/// backward pass included. No gradient flows through the states.
public func causalLinearAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, momentum: Double = 0, stepSize: Double = 1, epsilon: Double,
    chunk: Int = 128,
    initial: CausalLinearState? = nil
) -> (out: Tensor, final: CausalLinearState) {
    var final = ctorch_linear_state()
    let out = call("causal_linear", [q, k, v, initial?.s, initial?.p, initial?.z]) { pointers, error in
        ctorch_causal_linear(
            pointers[0], pointers[1], pointers[2], momentum, stepSize, epsilon, Int64(chunk),
            ctorch_linear_state(s: pointers[3], p: pointers[4], z: pointers[5]), &final, error)
    }
    guard let s = final.s, let z = final.z else { return (out, CausalLinearState(s: .standIn, p: nil, z: .standIn)) }
    return (out, CausalLinearState(s: Tensor(owning: s), p: final.p.map(Tensor.init(owning:)), z: Tensor(owning: z)))
}
