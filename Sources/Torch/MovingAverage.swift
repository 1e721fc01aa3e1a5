import CTorch

/// The parameters of ``movingAverage(_:paddingMask:_:initial:)`` as its layer holds them: `[channels, hidden]`, or in two
/// directions `[2 channels, hidden]` with the one along time first.
public struct MovingAverageParameters {
    /// α = sigmoid(this).
    public var alphaLogit: Tensor
    /// δ = sigmoid(this).
    public var deltaLogit: Tensor
    public var beta: Tensor
    public var eta: Tensor
    /// ω `[channels]`; nil leaves out both it and silu.
    public var omega: Tensor?

    public init(alphaLogit: Tensor, deltaLogit: Tensor, beta: Tensor, eta: Tensor, omega: Tensor?) {
        self.alphaLogit = alphaLogit
        self.deltaLogit = deltaLogit
        self.beta = beta
        self.eta = eta
        self.omega = omega
    }
}

/// Mega's damped moving average of every channel, by a scan on the CPU: with s₀ = 0 or `initial`,
///
///     s_t = α β x_t + (1 - αδ) s_{t-1},  y_t = ⟨η, s_t⟩ / √hidden,  out_t = silu(y_t + ω x_t)
///
/// x `[batch, length, channels]`; `paddingMask` `[batch, length]`: where it is false x counts as 0 in s. In two directions y
/// is the sum of both. Time O(N channels hidden), memory O(N channels), the backward pass included. In one direction
/// `final` is s after the last token, `[batch, channels, hidden]` in at least float32; no gradient flows through it, and
/// after an `initial` there is none at all.
public func movingAverage(
    _ x: Tensor, paddingMask: Tensor? = nil, _ parameters: MovingAverageParameters, initial: Tensor? = nil
) -> (out: Tensor, final: Tensor?) {
    var final: ctorch_tensor?
    let operands = [
        x, paddingMask, parameters.alphaLogit, parameters.deltaLogit, parameters.beta, parameters.eta,
        parameters.omega, initial,
    ]
    let out = call("moving_average", operands) { pointers, error in
        let parameters = ctorch_average_parameters(
            alpha: pointers[2], delta: pointers[3], beta: pointers[4], eta: pointers[5], omega: pointers[6])
        return ctorch_moving_average(pointers[0], pointers[1], parameters, pointers[7], &final, error)
    }
    return (out, final.map(Tensor.init(owning:)))
}
