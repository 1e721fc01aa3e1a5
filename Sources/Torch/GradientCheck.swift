/// Compares autograd with central differences: the largest deviation of any input's gradient, as a fraction of the largest
/// magnitude in the gradients of all inputs.
///
/// `f` is called with float64 copies of the inputs as leaves. Its output of any shape is weighed with fixed numbers, so that
/// errors that cancel in a plain sum show. Exact gradients give about 1e-9; take 1e-6 as the bound. `f` must be smooth at the
/// inputs and a function of them alone. Costs two calls of `f` for each element of the inputs.
///
/// ```swift
/// #expect(gradientCheck([x, y]) { matmul($0[0], $0[1]).tanh() } < 1e-6)
/// ```
///
/// - Parameters:
///   - inputs: tensors of a floating-point type.
///   - step: how far each element is moved, times its magnitude where that is above 1.
public func gradientCheck(_ inputs: [Tensor], step: Double = 1e-5, _ f: ([Tensor]) -> Tensor) -> Double {
    let values = inputs.map { $0.detached().to(.float64).cloned().contiguous() }
    let leaves = values.map { $0.requiringGrad() }
    let output = withGrad { f(leaves) }
    // Numbers without a pattern that a mistaken gradient could share.
    let positions = Tensor.arange(0..<output.count, dtype: .float64).reshaped(to: output.shape)
    let weights = (positions * 1.7 + 0.3).sin() + 0.1
    let found = gradients(of: [output], weightedBy: [weights.to(output.dtype)], withRespectTo: leaves)

    var deviation = 0.0
    var scale = 0.0
    for (index, value) in values.enumerated() {
        let analytic = found[index]?.scalars(as: Double.self) ?? [Double](repeating: 0, count: value.count)
        let start = value.scalars(as: Double.self)
        for element in start.indices {
            let distance = step * max(1, start[element].magnitude)
            func weighed(at moved: Double) -> Double {
                var shifted = start
                shifted[element] = moved
                var arguments = values
                arguments[index] = Tensor(shifted, shape: value.shape)
                return withNoGrad { (f(arguments).to(.float64) * weights).sum().item() }
            }
            let numeric =
                (weighed(at: start[element] + distance) - weighed(at: start[element] - distance)) / (2 * distance)
            let difference = (numeric - analytic[element]).magnitude
            // A NaN anywhere must not pass for agreement, as it would through `max`.
            if !difference.isFinite { return .infinity }
            deviation = max(deviation, difference)
            scale = max(scale, numeric.magnitude, analytic[element].magnitude)
        }
    }
    return scale > 0 ? deviation / scale : deviation
}
