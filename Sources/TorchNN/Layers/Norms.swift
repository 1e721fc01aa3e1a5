import Torch

/// A layer that brings the vectors of the last dimension to one scale: x `[…, dim]` to the same shape.
public protocol Normalizing: Module {
    func callAsFunction(_ x: Tensor) -> Tensor

    /// x + y, and the norm of that: the end of one residual connection and the beginning of what follows.
    func added(_ x: Tensor, _ y: Tensor) -> (sum: Tensor, normalized: Tensor)
}

extension Normalizing {
    public func added(_ x: Tensor, _ y: Tensor) -> (sum: Tensor, normalized: Tensor) {
        let sum = x + y
        return (sum, self(sum))
    }
}

/// (x - mean) / √(variance + ε) over the last dimension, times weight plus bias (Ba et al., 2016, arXiv 1607.06450).
public final class LayerNorm: Module, Normalizing {
    /// `[dim]`, ones at first.
    public let weight: Parameter
    /// `[dim]`, zeros at first.
    public let bias: Parameter?
    public let dim: Int
    public let epsilon: Double

    public init(_ dim: Int, epsilon: Double = 1e-5, bias: Bool = true) {
        checkNorm(dim, epsilon, in: "LayerNorm")
        self.dim = dim
        self.epsilon = epsilon
        weight = Parameter(.ones([max(dim, 0)]))
        self.bias = bias ? Parameter(.zeros([max(dim, 0)])) : nil
        super.init()
    }

    /// x `[…, dim]` → the same shape.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        checkLastDimension(x, dim, in: "LayerNorm")
        return addedNorm(x, nil, .layer, weight: weight.value, bias: bias?.value, epsilon: epsilon).normalized
    }

    public func added(_ x: Tensor, _ y: Tensor) -> (sum: Tensor, normalized: Tensor) {
        checkLastDimension(x, dim, in: "LayerNorm")
        return addedNorm(x, y, .layer, weight: weight.value, bias: bias?.value, epsilon: epsilon)
    }
}

/// x / √(mean(x²) + ε) over the last dimension, times weight (Zhang and Sennrich, 2019, arXiv 1910.07467).
public final class RMSNorm: Module, Normalizing {
    /// `[dim]`, ones at first.
    public let weight: Parameter
    public let dim: Int
    public let epsilon: Double

    public init(_ dim: Int, epsilon: Double = 1e-6) {
        checkNorm(dim, epsilon, in: "RMSNorm")
        self.dim = dim
        self.epsilon = epsilon
        weight = Parameter(.ones([max(dim, 0)]))
        super.init()
    }

    /// x `[…, dim]` → the same shape.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        checkLastDimension(x, dim, in: "RMSNorm")
        return addedNorm(x, nil, .rootMeanSquare, weight: weight.value, epsilon: epsilon).normalized
    }

    public func added(_ x: Tensor, _ y: Tensor) -> (sum: Tensor, normalized: Tensor) {
        checkLastDimension(x, dim, in: "RMSNorm")
        return addedNorm(x, y, .rootMeanSquare, weight: weight.value, epsilon: epsilon)
    }
}

/// x / (|x| / √dim + ε) over the last dimension, without weights: ε stands outside the root (Qin et al., 2022,
/// arXiv 2210.10340).
public final class SimpleRMSNorm: Module, Normalizing {
    public let dim: Int
    public let epsilon: Double

    public init(_ dim: Int, epsilon: Double = 1e-8) {
        checkNorm(dim, epsilon, in: "SimpleRMSNorm")
        self.dim = dim
        self.epsilon = epsilon
        super.init()
    }

    /// x `[…, dim]` → the same shape. A vector of zeros stays so, and takes the gradient 1 / ε.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        checkLastDimension(x, dim, in: "SimpleRMSNorm")
        return addedNorm(x, nil, .simple, weight: nil, epsilon: epsilon).normalized
    }

    public func added(_ x: Tensor, _ y: Tensor) -> (sum: Tensor, normalized: Tensor) {
        checkLastDimension(x, dim, in: "SimpleRMSNorm")
        return addedNorm(x, y, .simple, weight: nil, epsilon: epsilon)
    }
}

private func checkNorm(_ dim: Int, _ epsilon: Double, in layer: String) {
    torchPrecondition(dim > 0, in: layer, "expected a positive size, got \(dim)")
    torchPrecondition(
        epsilon >= 0 && epsilon.isFinite, in: layer, "expected an epsilon of at least 0, got \(epsilon)")
}
