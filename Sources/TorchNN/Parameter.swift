import Torch

/// A tensor that training changes: a leaf of the graph whose gradient is kept.
///
/// A parameter has identity. Two modules that hold the same one share its weights; it is then counted, saved and updated
/// once.
public final class Parameter {
    private var leaf: Tensor

    /// Starts as a copy of `tensor`, which must be of a floating-point type.
    public init(_ tensor: Tensor) {
        torchPrecondition(
            tensor.dtype.isFloatingPoint, in: "Parameter", "expected a floating-point tensor, got \(tensor.dtype)")
        leaf = Self.copied(tensor).requiringGrad(tensor.dtype.isFloatingPoint)
    }

    /// The weights. Setting them copies, and drops the gradient.
    public var value: Tensor {
        get { leaf }
        set { replace(with: Self.copied(newValue)) }
    }

    /// Whether gradients are computed for it. A change drops the gradient.
    public var isTrainable: Bool {
        get { leaf.requiresGrad }
        set { if newValue != leaf.requiresGrad { leaf = leaf.requiringGrad(newValue) } }
    }

    /// What backward passes have summed up since the last ``Module/zeroGradients()``; nil if there was none.
    public var grad: Tensor? {
        get { leaf.grad }
        set { leaf.grad = newValue }
    }

    /// Takes over the memory of `tensor`.
    func replace(with tensor: Tensor) { leaf = tensor.requiringGrad(leaf.requiresGrad) }

    /// Row by row in memory, as the optimizers' fused kernels need it.
    private static func copied(_ tensor: Tensor) -> Tensor {
        let source = tensor.detached()
        return source.isContiguous ? source.cloned() : source.contiguous()
    }
}

/// A tensor that belongs to a module's definition but is not trained: random features drawn once, running averages.
public final class Buffer {
    public var value: Tensor
    /// Whether it is saved and loaded with the parameters.
    public let isPersistent: Bool

    public init(_ value: Tensor, isPersistent: Bool = true) {
        self.value = value
        self.isPersistent = isPersistent
    }
}
