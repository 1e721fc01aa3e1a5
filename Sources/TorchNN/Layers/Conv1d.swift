import Torch

/// Sums over `taps` neighboring positions: x `[batch, inputs, length]` → `[batch, outputs, length']`.
///
/// As everywhere in this field, the kernel is not flipped: out_n = Σ_t weight_t · x_(n · stride + t · dilation - padding).
public final class Conv1d: Module {
    /// What is put around the sequence: zeros.
    public enum Padding: Equatable, Sendable {
        /// As many on both sides.
        case symmetric(Int)
        /// As many before the first position as make output n depend on no input after n · stride.
        case causal
    }

    /// `[outputs, inputs / groups, taps]`
    public let weight: Parameter
    /// `[outputs]`
    public let bias: Parameter?
    public let inputs: Int
    public let outputs: Int
    public let taps: Int
    public let stride: Int
    public let padding: Padding
    public let dilation: Int
    public let groups: Int

    /// Weight and bias are drawn uniformly between ±1/√(inputs / groups · taps), the weight first.
    public init(
        _ inputs: Int, _ outputs: Int, taps: Int, stride: Int = 1, padding: Padding = .symmetric(0), dilation: Int = 1,
        groups: Int = 1, bias: Bool = true, using generator: RandomGenerator
    ) {
        let sizes = [inputs, outputs, taps, stride, dilation, groups]
        torchPrecondition(
            sizes.allSatisfy { $0 > 0 }, in: "Conv1d",
            "expected positive inputs, outputs, taps, stride, dilation and groups, got \(sizes)")
        let divisor = max(groups, 1)
        torchPrecondition(
            inputs.isMultiple(of: divisor) && outputs.isMultiple(of: divisor), in: "Conv1d",
            "\(groups) groups do not divide \(inputs) inputs and \(outputs) outputs")
        if case .symmetric(let amount) = padding {
            torchPrecondition(amount >= 0, in: "Conv1d", "expected a padding of at least 0, got \(amount)")
        }
        self.inputs = inputs
        self.outputs = outputs
        self.taps = taps
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        let shape = [outputs, inputs / divisor, taps].map { max($0, 0) }
        let initial = Initializer.uniform(bound: 1 / Double(max(shape[1] * shape[2], 1)).squareRoot())
        weight = Parameter(.drawn(shape, initial, generator))
        self.bias = bias ? Parameter(.drawn([shape[0]], initial, generator)) : nil
        super.init()
    }

    public func callAsFunction(_ x: Tensor) -> Tensor {
        let shape = x.shape
        torchPrecondition(
            shape.count == 3 && shape[1] == inputs, in: "Conv1d",
            "expected an input [batch, \(inputs), length], got \(shape)")
        switch padding {
        case .symmetric(let amount):
            return conv1d(
                x, weight.value, bias?.value, stride: stride, padding: amount, dilation: dilation, groups: groups)
        case .causal:
            return conv1d(
                x.padded(-1, before: (taps - 1) * dilation), weight.value, bias?.value, stride: stride,
                dilation: dilation, groups: groups)
        }
    }
}
