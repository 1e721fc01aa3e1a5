import Torch
import TorchNN

/// Gradient descent with momentum, as PyTorch's `torch.optim.SGD` without dampening.
///
///     g ← g + weightDecay · x
///     b ← momentum · b + g            (b ← g at the first update)
///     x ← x - learningRate · b        (with nesterov: x - learningRate · (g + momentum · b))
public final class SGD: Optimizer {
    public var learningRate: Double
    public let momentum: Double
    public let nesterov: Bool
    public let weightDecay: Double
    private var table: StateTable

    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double, momentum: Double = 0,
        nesterov: Bool = false, weightDecay: Double = 0
    ) {
        checkSettings("SGD", learningRate: learningRate, weightDecay: weightDecay)
        torchPrecondition(
            (0..<1).contains(momentum), in: "SGD", "expected momentum of at least 0 and below 1, got \(momentum)")
        torchPrecondition(!nesterov || momentum > 0, in: "SGD", "nesterov needs a momentum above 0")
        self.learningRate = learningRate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weightDecay = weightDecay
        table = StateTable("SGD", slots: momentum > 0 ? ["momentum"] : [], parameters)
    }

    public func step() {
        withNoGrad {
            table.update { entry, gradient in
                let x = entry.parameter.value
                let g = weightDecay > 0 ? gradient + x * weightDecay : gradient
                x.addInPlace(direction(g, &entry), scale: -learningRate)
            }
        }
    }

    private func direction(_ g: Tensor, _ entry: inout StateTable.Entry) -> Tensor {
        guard momentum > 0 else { return g }
        if let b = entry.slots.first {
            b.multiplyInPlace(by: momentum)
            b.addInPlace(g)
        } else {
            entry.slots = [g.detached().cloned()]
        }
        return nesterov ? g + entry.slots[0] * momentum : entry.slots[0]
    }

    public func zeroGradients() { table.zeroGradients() }

    public var state: [String: Tensor] { table.state }

    public func load(state: [String: Tensor]) throws { try table.load(state) }
}
