import CTorch

/// A function that products of matrices and gates apply to their numbers before these leave the cache.
public enum Nonlinearity: Int32, Sendable, CaseIterable {
    case identity, relu, gelu, geluTanh, silu, sigmoid

    /// Element by element, any shape, by LibTorch's operations.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        switch self {
        case .identity: x
        case .relu: x.relu()
        case .gelu: x.gelu()
        case .geluTanh: x.gelu(approximate: true)
        case .silu: x.silu()
        case .sigmoid: x.sigmoid()
        }
    }
}

/// x Wᵀ + b for up to three weights of one x `[…, in]`, weights `[out, in]`, biases `[out]`.
///
/// The same numbers as ``linear(_:_:_:)`` for each; the gradient of x is summed up where it is computed.
public func projections(_ x: Tensor, _ layers: [(weight: Tensor, bias: Tensor?)]) -> [Tensor] {
    torchPrecondition((1...3).contains(layers.count), in: "projections", "expected 1 to 3 layers, got \(layers.count)")
    var others = [ctorch_tensor?](repeating: nil, count: max(0, layers.count - 1))
    let first = call("linear", [x] + layers.map(\.weight) + layers.map(\.bias)) { pointers, error in
        ctorch_projections(
            pointers[0], Array(pointers[1..<1 + layers.count]), Array(pointers[(1 + layers.count)...]), layers.count,
            &others, error)
    }
    return [first] + others.map { $0.map(Tensor.init(owning:)) ?? .standIn }
}

/// residual + f(x upᵀ + up bias) downᵀ + down bias: x `[…, in]`, up `[hidden, in]`, down `[out, hidden]`, residual `[…, out]`.
///
/// Keeps one tensor of the hidden width for the backward pass, which computes f again beside its slope.
public func feedForward(
    _ x: Tensor, up: (weight: Tensor, bias: Tensor?), _ nonlinearity: Nonlinearity,
    down: (weight: Tensor, bias: Tensor?), residual: Tensor? = nil
) -> Tensor {
    call("feed_forward", [x, up.weight, up.bias, down.weight, down.bias, residual]) {
        ctorch_feed_forward($0[0], $0[1], $0[2], $0[3], $0[4], $0[5], nonlinearity.rawValue, $1)
    }
}

/// residual + (f(x gateᵀ + gate bias) ∘ (x upᵀ + up bias)) downᵀ + down bias: x `[…, in]`, gate and up `[hidden, in]`, down
/// `[out, hidden]`, residual `[…, out]`. With identity, sigmoid, relu, gelu and silu for f the layers Bilinear, GLU, ReGLU,
/// GEGLU and SwiGLU of Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202.
///
/// Keeps two tensors of the hidden width for the backward pass, those of gate and up; their product is never whole in memory.
public func gatedFeedForward(
    _ x: Tensor, gate: (weight: Tensor, bias: Tensor?), _ nonlinearity: Nonlinearity,
    up: (weight: Tensor, bias: Tensor?), down: (weight: Tensor, bias: Tensor?), residual: Tensor? = nil
) -> Tensor {
    let operands = [x, gate.weight, gate.bias, up.weight, up.bias, down.weight, down.bias, residual]
    return call("gated_feed_forward", operands) {
        ctorch_gated_feed_forward($0[0], $0[1], $0[2], $0[3], $0[4], $0[5], $0[6], $0[7], nonlinearity.rawValue, $1)
    }
}
