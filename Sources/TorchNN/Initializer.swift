import Torch

/// How weights are drawn before training.
///
/// A weight of shape `[out, in, taps…]` has fan-in `in · taps` and fan-out `out · taps`.
public enum Initializer: Equatable, Sendable {
    case zeros
    case ones
    /// Uniform between plus and minus `bound`.
    case uniform(bound: Double)
    case normal(deviation: Double)
    /// Uniform within gain · √(6 / (fan-in + fan-out)) (Glorot and Bengio, 2010).
    case xavierUniform(gain: Double = 1)
    /// Normal with deviation gain · √(2 / (fan-in + fan-out)) (Glorot and Bengio, 2010).
    case xavierNormal(gain: Double = 1)
    /// Uniform within gain · √(3 / fan-in); the default gain √2 is that of relu (He et al., 2015).
    case kaimingUniform(gain: Double = 2.0.squareRoot())
    /// Rows, or columns where there are fewer of them, orthogonal and of length gain (Saxe et al., 2013).
    case orthogonal(gain: Double = 1)

    /// Overwrites the elements.
    public func apply(to tensor: Tensor, using generator: RandomGenerator) {
        switch self {
        case .zeros: tensor.fillInPlace(0)
        case .ones: tensor.fillInPlace(1)
        case .uniform(let bound): tensor.fillUniformInPlace(-bound..<bound, using: generator)
        case .normal(let deviation): tensor.fillNormalInPlace(deviation: deviation, using: generator)
        case .xavierUniform(let gain):
            let (fanIn, fanOut) = fans(tensor)
            let bound = gain * (6 / Double(fanIn + fanOut)).squareRoot()
            tensor.fillUniformInPlace(-bound..<bound, using: generator)
        case .xavierNormal(let gain):
            let (fanIn, fanOut) = fans(tensor)
            tensor.fillNormalInPlace(deviation: gain * (2 / Double(fanIn + fanOut)).squareRoot(), using: generator)
        case .kaimingUniform(let gain):
            let bound = gain * (3 / Double(fans(tensor).fanIn)).squareRoot()
            tensor.fillUniformInPlace(-bound..<bound, using: generator)
        case .orthogonal(let gain): fillOrthogonal(tensor, gain, generator)
        }
    }

    /// Overwrites the parameter's weights.
    public func apply(to parameter: Parameter, using generator: RandomGenerator) {
        apply(to: parameter.value, using: generator)
    }

    private func fans(_ tensor: Tensor) -> (fanIn: Int, fanOut: Int) {
        let shape = tensor.shape
        torchPrecondition(
            shape.count >= 2 && !shape.contains(0), in: "Initializer",
            "expected a tensor of at least two dimensions, none of them empty, got \(shape)")
        guard shape.count >= 2 else { return (1, 1) }
        let taps = shape[2...].reduce(1, *)
        return (max(1, shape[1] * taps), max(1, shape[0] * taps))
    }

    /// Q of a normal matrix, its signs fixed by R's diagonal so that every orthogonal matrix is as likely.
    private func fillOrthogonal(_ tensor: Tensor, _ gain: Double, _ generator: RandomGenerator) {
        let (rows, columns) = (tensor.shape.first ?? 0, tensor.shape.dropFirst().reduce(1, *))
        torchPrecondition(
            tensor.rank >= 2 && rows * columns > 0, in: "Initializer",
            "expected a tensor of at least two dimensions, none of them empty, got \(tensor.shape)")
        let dtype = tensor.dtype == .float64 ? DType.float64 : .float32
        let normal = Tensor.randomNormal([rows, columns], using: generator, dtype: dtype, device: tensor.device)
        let (q, r) = (rows < columns ? normal.transposed() : normal).qr()
        let signed = q * r.diagonal().sign()
        let matrix = rows < columns ? signed.transposed() : signed
        tensor.copyInPlace(from: (matrix * gain).reshaped(to: tensor.shape))
    }
}
