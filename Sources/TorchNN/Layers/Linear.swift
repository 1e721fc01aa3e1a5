import Torch

/// x Wᵀ + b over the last dimension: `[…, inputs]` → `[…, outputs]`.
public final class Linear: Module {
    /// `[outputs, inputs]`
    public let weight: Parameter
    /// `[outputs]`
    public let bias: Parameter?
    public let inputs: Int
    public let outputs: Int

    /// Weight and bias are drawn uniformly between ±1/√inputs, the weight first.
    public init(_ inputs: Int, _ outputs: Int, bias: Bool = true, using generator: RandomGenerator) {
        torchPrecondition(
            inputs > 0 && outputs > 0, in: "Linear", "expected positive sizes, got \(inputs) inputs, \(outputs) outputs"
        )
        self.inputs = inputs
        self.outputs = outputs
        let initial = Initializer.uniform(bound: 1 / Double(max(inputs, 1)).squareRoot())
        weight = Parameter(.drawn([max(outputs, 0), max(inputs, 0)], initial, generator))
        self.bias = bias ? Parameter(.drawn([max(outputs, 0)], initial, generator)) : nil
        super.init()
    }

    /// x `[…, inputs]` → `[…, outputs]`.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        checkLastDimension(x, inputs, in: "Linear")
        return linear(x, weight.value, bias?.value)
    }

    /// What functions of weights take.
    public var values: (weight: Tensor, bias: Tensor?) { (weight.value, bias?.value) }
}

/// Three layers of one input x `[…, inputs]`: their outputs, as each by itself would give them.
public func projections(_ x: Tensor, _ a: Linear, _ b: Linear, _ c: Linear) -> (Tensor, Tensor, Tensor) {
    for layer in [a, b, c] { checkLastDimension(x, layer.inputs, in: "Linear") }
    let outputs = projections(x, [a.values, b.values, c.values])
    return (outputs[0], outputs[1], outputs[2])
}

extension Tensor {
    static func drawn(_ shape: [Int], _ initializer: Initializer, _ generator: RandomGenerator) -> Tensor {
        let result = Tensor.uninitialized(shape)
        initializer.apply(to: result, using: generator)
        return result
    }
}

/// Traps, naming the layer, unless x is `[…, expected]`.
func checkLastDimension(_ x: Tensor, _ expected: Int, in layer: String) {
    let shape = x.shape
    torchPrecondition(shape.last == expected, in: layer, "expected an input [..., \(expected)], got \(shape)")
}
