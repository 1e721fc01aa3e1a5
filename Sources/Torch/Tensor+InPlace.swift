import CTorch

// Changes that every copy of the tensor sees, none of them recorded by autograd: for optimizers, for loading weights and for
// the state of a decoder.

extension Tensor {
    /// Takes over the elements of `source`, converted and broadcast to this shape.
    public func copyInPlace(from source: Tensor) { run("copy_", [self, source]) { ctorch_copy_($0[0], $0[1], $1) } }

    /// Sets every element.
    public func fillInPlace(_ value: some TensorScalar) {
        run("fill_", [self]) { ctorch_fill_($0[0], value.scalarValue.forC, $1) }
    }

    /// self += scale · other
    public func addInPlace(_ other: Tensor, scale: Double = 1) {
        run("add_", [self, other]) { ctorch_add_($0[0], $0[1], scale, $1) }
    }

    /// self *= factor
    public func multiplyInPlace(by factor: Double) { run("mul_", [self]) { ctorch_mul_($0[0], factor, $1) } }

    /// self += weight · (other - self)
    public func interpolateInPlace(towards other: Tensor, weight: Double) {
        run("lerp_", [self, other]) { ctorch_lerp_($0[0], $0[1], weight, $1) }
    }

    /// self += scale · a · b
    public func addProductInPlace(_ a: Tensor, _ b: Tensor, scale: Double = 1) {
        run("addcmul_", [self, a, b]) { ctorch_addcmul_($0[0], $0[1], $0[2], scale, $1) }
    }

    /// self += scale · a / b
    public func addQuotientInPlace(_ a: Tensor, _ b: Tensor, scale: Double = 1) {
        run("addcdiv_", [self, a, b]) { ctorch_addcdiv_($0[0], $0[1], $0[2], scale, $1) }
    }

    /// Draws every element evenly from the range.
    public func fillUniformInPlace(_ range: Range<Double>, using generator: RandomGenerator) {
        run("uniform_", [self]) { ctorch_uniform_($0[0], range.lowerBound, range.upperBound, generator.pointer, $1) }
    }

    /// Draws every element from a normal distribution.
    public func fillNormalInPlace(mean: Double = 0, deviation: Double = 1, using generator: RandomGenerator) {
        run("normal_", [self]) { ctorch_normal_($0[0], mean, deviation, generator.pointer, $1) }
    }

    /// Writes `source` to the positions `range` of a dimension.
    public func copyInPlace(_ dim: Int, _ range: Range<Int>, from source: Tensor) {
        torchPrecondition(
            range.lowerBound >= 0 && range.upperBound <= size(dim), in: "copy_",
            "range \(range) of dimension \(dim), size \(size(dim))")
        run("copy_", [self, source]) {
            ctorch_slice_copy_($0[0], Int64(dim), Int64(range.lowerBound), Int64(range.upperBound), $0[1], $1)
        }
    }
}

/// LibTorch's fused AdamW step over many tensors at once.
///
/// `means` and `squares`, the running averages of each gradient and of its square, are changed in place; `steps`, each
/// parameter's number of updates so far as a single float32, are raised by one.
public func fusedAdamW(
    _ parameters: [Tensor], gradients: [Tensor], means: [Tensor], squares: [Tensor], steps: [Tensor],
    learningRate: Double, beta1: Double, beta2: Double, weightDecay: Double, epsilon: Double
) {
    let count = parameters.count
    guard [gradients, means, squares, steps].allSatisfy({ $0.count == count }) else {
        let counts = [parameters, gradients, means, squares, steps].map(\.count)
        fail(TorchError(.invalidArgument, in: "fused_adamw_", "lists of different lengths: \(counts)"))
        return
    }
    run("fused_adamw_", parameters + gradients + means + squares + steps) { pointers, error in
        pointers.withUnsafeBufferPointer { all in
            guard let start = all.baseAddress else { return }
            ctorch_fused_adamw_(
                start, start + count, start + 2 * count, start + 3 * count, start + 4 * count, count, learningRate,
                beta1, beta2,
                weightDecay, epsilon, error)
        }
    }
}

/// The Euclidean norm of all tensors taken as one vector: a single number.
public func globalNorm(_ tensors: [Tensor]) -> Tensor {
    call("global_norm", tensors) { ctorch_global_norm($0, $0.count, $1) }
}
