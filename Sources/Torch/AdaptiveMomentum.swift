import CTorch

/// What attention with an adaptive momentum carries along the sequence, in at least float32.
public struct AdaptiveMomentumState {
    /// Σ weighted φ(k_j) v_jᵀ, the momentum, and the last φ(k) vᵀ: `[batch, heads, features, valueDim]`
    public var s, p, u: Tensor
    /// Σ φ(k_j): `[batch, heads, features]`
    public var z: Tensor
    /// 1 after a sequence's first step, before it 0: `[batch]`
    public var begun: Tensor

    public init(s: Tensor, p: Tensor, u: Tensor, z: Tensor, begun: Tensor) {
        self.s = s
        self.p = p
        self.u = u
        self.z = z
        self.begun = begun
    }
}

/// The kernel of causal linear attention whose momentum is found at each step: with u_i = k_i v_iᵀ,
///
///     β_i = min((1 - √(γ |u_i - u_{i-1}| / |p_{i-1}|))², maximum)    0 before anything moved
///     p_i = β_i p_{i-1} - γ u_i,  s_i = s_{i-1} - p_i,  z_i = z_{i-1} + k_i,  out_i = q_i·s_i / (q_i·z_i + ε)
///
/// where γ is 1 in the first step. q, k `[batch, heads, length, features]` after the feature map, v `[batch, heads, length,
/// valueDim]`. A token where `paddingMask` `[batch, length]` is false is no step; its output is 0. Token by token: time
/// O(N features · valueDim), memory O(N (1 + features / 64) valueDim), the backward pass included. No gradient flows through the
/// states. On the CPU.
public func adaptiveMomentumAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor? = nil, stepSize: Double, maximumMomentum: Double,
    epsilon: Double, initial: AdaptiveMomentumState? = nil
) -> (out: Tensor, final: AdaptiveMomentumState) {
    var final = ctorch_adaptive_state()
    let operands = [q, k, v, paddingMask, initial?.s, initial?.p, initial?.u, initial?.z, initial?.begun]
    let out = call("adaptive_momentum", operands) { pointers, error in
        ctorch_adaptive_momentum(
            pointers[0], pointers[1], pointers[2], pointers[3], stepSize, maximumMomentum, epsilon,
            ctorch_adaptive_state(s: pointers[4], p: pointers[5], u: pointers[6], z: pointers[7], begun: pointers[8]),
            &final, error)
    }
    let parts = [final.s, final.p, final.u, final.z, final.begun].map { $0.map(Tensor.init(owning:)) ?? .standIn }
    return (
        out, AdaptiveMomentumState(s: parts[0], p: parts[1], u: parts[2], z: parts[3], begun: parts[4])
    )
}
