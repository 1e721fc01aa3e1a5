import CTorch

// Products, transforms and the functions of neural networks.

/// The matrix product over the last two dimensions, the others broadcast.
public func matmul(_ a: Tensor, _ b: Tensor) -> Tensor { call("matmul", a, b, ctorch_matmul) }

/// The sum of products that `equation` names, as `"bhnd,bhmd->bhnm"`.
public func einsum(_ equation: String, _ tensors: Tensor...) -> Tensor {
    call("einsum", tensors) { ctorch_einsum(equation, $0, $0.count, $1) }
}

/// x Wᵀ + b: x `[…, in]`, weight `[out, in]`, bias `[out]`.
public func linear(_ x: Tensor, _ weight: Tensor, _ bias: Tensor? = nil) -> Tensor {
    call("linear", [x, weight, bias]) { ctorch_linear($0[0], $0[1], $0[2], $1) }
}

/// exp(x) / Σ exp(x) along a dimension, with the maximum taken out first.
public func softmax(_ x: Tensor, dim: Int = -1) -> Tensor { x.softmax(dim) }

extension Tensor {
    /// exp(x) / Σ exp(x) along a dimension, with the maximum taken out first.
    public func softmax(_ dim: Int = -1) -> Tensor { call("softmax", self) { ctorch_softmax($0, Int64(dim), $1) } }
    /// log softmax along a dimension, without the loss of digits of taking both in turn.
    public func logSoftmax(_ dim: Int = -1) -> Tensor {
        call("log_softmax", self) { ctorch_log_softmax($0, Int64(dim), $1) }
    }

    /// The discrete Fourier transform of real numbers: n → n/2 + 1 complex ones. `count` cuts or pads first.
    public func rfft(_ dim: Int = -1, count: Int? = nil, orthonormal: Bool = false) -> Tensor {
        torchPrecondition(count ?? 1 > 0, in: "rfft", "\(count ?? 0) points, expected at least one")
        return call("rfft", self) { ctorch_rfft($0, Int64(count ?? 0), Int64(dim), orthonormal, $1) }
    }

    /// The inverse of ``rfft(_:count:orthonormal:)``; give `count` for an odd length.
    public func irfft(_ dim: Int = -1, count: Int? = nil, orthonormal: Bool = false) -> Tensor {
        torchPrecondition(count ?? 1 > 0, in: "irfft", "\(count ?? 0) points, expected at least one")
        return call("irfft", self) { ctorch_irfft($0, Int64(count ?? 0), Int64(dim), orthonormal, $1) }
    }

    /// Complex numbers as a last dimension of two, and back.
    public func complexAsReal() -> Tensor { call("view_as_real", self, ctorch_view_as_real) }
    /// The inverse of ``complexAsReal()``.
    public func realAsComplex() -> Tensor { call("view_as_complex", self, ctorch_view_as_complex) }

    /// The matrices' orthogonal and upper triangular factors.
    public func qr() -> (q: Tensor, r: Tensor) {
        var r: ctorch_tensor?
        let q = call("qr", self) { ctorch_qr($0, &r, $1) }
        return (q, r.map(Tensor.init(owning:)) ?? .standIn)
    }
}

/// (x - mean) / sqrt(variance + ε) over the last dimensions of the given shape, times weight plus bias.
public func layerNorm(
    _ x: Tensor, shape: [Int], weight: Tensor? = nil, bias: Tensor? = nil, epsilon: Double = 1e-5
) -> Tensor {
    call("layer_norm", [x, weight, bias]) { pointers, error in
        shape.withDims { ctorch_layer_norm(pointers[0], $0, $1, pointers[1], pointers[2], epsilon, error) }
    }
}

/// x / sqrt(mean(x²) + ε) over the last dimensions of the given shape, times weight.
public func rmsNorm(_ x: Tensor, shape: [Int], weight: Tensor? = nil, epsilon: Double = 1e-6) -> Tensor {
    call("rms_norm", [x, weight]) { pointers, error in
        shape.withDims { ctorch_rms_norm(pointers[0], $0, $1, pointers[1], epsilon, error) }
    }
}

/// x `[batch, in, length]`, weight `[out, in / groups, taps]` → `[batch, out, length']`.
public func conv1d(
    _ x: Tensor, _ weight: Tensor, _ bias: Tensor? = nil, stride: Int = 1, padding: Int = 0, dilation: Int = 1,
    groups: Int = 1
) -> Tensor {
    call("conv1d", [x, weight, bias]) {
        ctorch_conv1d($0[0], $0[1], $0[2], Int64(stride), Int64(padding), Int64(dilation), Int64(groups), $1)
    }
}

/// Rows of `weight` `[entries, dim]` by int64 indices `[…]` → `[…, dim]`; `paddingIndex`'s row gets no gradient.
public func embedding(_ weight: Tensor, _ indices: Tensor, paddingIndex: Int? = nil) -> Tensor {
    call("embedding", weight, indices) { ctorch_embedding($0, $1, Int64(paddingIndex ?? -1), $2) }
}

/// How the losses of single targets become one.
public enum LossReduction: Int64, Sendable {
    case none = 0
    case mean = 1
    case sum = 2
}

/// -log softmax(logits)[target]: logits `[n, classes]`, int64 targets `[n]`; targets equal to `ignored` do not count.
public func crossEntropy(
    _ logits: Tensor, _ targets: Tensor, reduction: LossReduction = .mean, ignored: Int = -100, smoothing: Double = 0
) -> Tensor {
    call("cross_entropy", logits, targets) {
        ctorch_cross_entropy($0, $1, reduction.rawValue, Int64(ignored), smoothing, $2)
    }
}

/// softmax(scale q kᵀ + mask) v without a matrix of scores in memory, through LibTorch's kernel.
///
/// q `[batch, heads, n, d]`, k `[batch, heads, m, d]`, v `[batch, heads, m, e]` → `[batch, heads, n, e]`. `mask` is bool
/// (true: looked at) or added to the scores. Time O(n m (d + e)), memory O(n + m) where LibTorch has a kernel for the shapes.
public func scaledDotProductAttention(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, mask: Tensor? = nil, causal: Bool = false, scale: Double
) -> Tensor {
    call("scaled_dot_product_attention", [q, k, v, mask]) {
        ctorch_attention($0[0], $0[1], $0[2], $0[3], 0, causal, scale, $1)
    }
}
