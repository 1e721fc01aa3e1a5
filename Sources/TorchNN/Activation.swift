import Torch

/// A function applied to each element, by the name that configurations use.
public enum Activation: String, NamedChoice {
    case identity, relu, gelu, silu, tanh, sigmoid, elu, softplus
    /// gelu through its approximation by tanh.
    case geluTanh = "gelu-tanh"

    /// Element by element, any shape.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        switch self {
        case .tanh: x.tanh()
        case .elu: x.elu()
        case .softplus: x.softplus()
        case .identity, .relu, .gelu, .geluTanh, .silu, .sigmoid: nonlinearity?(x) ?? x
        }
    }

    /// The same function where a product of matrices can apply it to its result.
    public var nonlinearity: Nonlinearity? {
        switch self {
        case .identity: .identity
        case .relu: .relu
        case .gelu: .gelu
        case .geluTanh: .geluTanh
        case .silu: .silu
        case .sigmoid: .sigmoid
        case .tanh, .elu, .softplus: nil
        }
    }
}
