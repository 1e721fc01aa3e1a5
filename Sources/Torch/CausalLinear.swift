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

/// An elementwise function that a kernel applies while it reads its input.
public enum ElementwiseMap: Int32, Sendable, CaseIterable {
    case none, eluPlusOne, relu, sigmoid, exponential, elu, silu
}

/// What distinguishes the members of the causal linear family.
public struct CausalLinearOptions: Sendable {
    /// By what the sum over the keys is divided.
    public enum Normalization: Sendable {
        case none
        /// φq_i·z_i + ε
        case sum(epsilon: Double)
        /// |φq_i·s_i| / √valueDim + ε
        case rootMeanSquare(epsilon: Double)
    }

    /// φ of queries and keys.
    public var featureMap: ElementwiseMap
    public var normalization: Normalization
    /// β, from 0 to below 1.
    public var momentum: Double
    /// γ
    public var stepSize: Double

    public init(
        featureMap: ElementwiseMap = .none, normalization: Normalization, momentum: Double = 0, stepSize: Double = 1
    ) {
        self.featureMap = featureMap
        self.normalization = normalization
        self.momentum = momentum
        self.stepSize = stepSize
    }

    fileprivate var forC: ctorch_linear_options {
        let (kind, epsilon): (Int32, Double) =
            switch normalization {
            case .none: (0, 0)
            case .sum(let epsilon): (1, epsilon)
            case .rootMeanSquare(let epsilon): (2, epsilon)
            }
        return ctorch_linear_options(
            feature_map: featureMap.rawValue, normalization: kind, momentum: momentum, step_size: stepSize,
            epsilon: epsilon)
    }
}

/// The kernel of the causal linear family with a fixed momentum, in chunks: with p₀ = s₀ = z₀ = 0 or `initial`,
///
///     p_i = β p_{i-1} - γ φk_i v_iᵀ,  s_i = s_{i-1} - p_i,  z_i = z_{i-1} + φk_i,  out_i = φq_i·s_i / norm_i
///
/// q, k `[batch, heads, length, features]`, v `[batch, heads, length, valueDim]`, `paddingMask` `[batch, length]`: a key
/// where it is false counts for nothing. β = 0, γ = 1 is linear attention. Time O(N (64 + features) (features + valueDim)),
/// memory O(N (features + valueDim)), the backward pass included. No gradient flows through the states. Fused on the CPU;
/// elsewhere composed of LibTorch's operations.
public func causalLinearAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor? = nil, _ options: CausalLinearOptions,
    initial: CausalLinearState? = nil
) -> (out: Tensor, final: CausalLinearState) {
    var final = ctorch_linear_state()
    let out = call("causal_linear", [q, k, v, paddingMask, initial?.s, initial?.p, initial?.z]) { pointers, error in
        ctorch_causal_linear(
            pointers[0], pointers[1], pointers[2], pointers[3], options.forC,
            ctorch_linear_state(s: pointers[4], p: pointers[5], z: pointers[6]), &final, error)
    }
    guard let s = final.s, let z = final.z else { return (out, CausalLinearState(s: .standIn, p: nil, z: .standIn)) }
    return (out, CausalLinearState(s: Tensor(owning: s), p: final.p.map(Tensor.init(owning:)), z: Tensor(owning: z)))
}
