import Torch
import TorchNN

/// What the optimizers of Adam's family share: their settings, and the running means m of a gradient and v of its square,
///
///     m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
public class AdaptiveMoments: Optimizer {
    public var learningRate: Double
    public let betas: (Double, Double)
    public let epsilon: Double
    public let weightDecay: Double
    var table: StateTable

    init(
        _ name: String, _ parameters: [(name: String, parameter: Parameter)], learningRate: Double,
        betas: (Double, Double), epsilon: Double, weightDecay: Double
    ) {
        checkSettings(name, learningRate: learningRate, weightDecay: weightDecay, betas: betas, epsilon: epsilon)
        self.learningRate = learningRate
        self.betas = betas
        self.epsilon = epsilon
        self.weightDecay = weightDecay
        table = StateTable(name, slots: ["mean", "square"], parameters)
    }

    /// Changes `x` by its gradient and its moments, whose part in the sums this update has.
    func update(_ x: Tensor, mean: Tensor, square: Tensor, step: Int) {
        preconditionFailure("\(type(of: self)) does not say how it updates")
    }

    /// The gradient as the moments take it.
    func decayed(_ x: Tensor, _ gradient: Tensor) -> Tensor {
        weightDecay > 0 ? gradient + x * weightDecay : gradient
    }

    public func step() {
        withNoGrad {
            table.update { entry, gradient in
                let x = entry.parameter.value
                let slots = entry.filledSlots(2)
                let (mean, square) = (slots[0], slots[1])
                let g = decayed(x, gradient)
                mean.interpolateInPlace(towards: g, weight: 1 - betas.0)
                square.multiplyInPlace(by: betas.1)
                square.addProductInPlace(g, g, scale: 1 - betas.1)
                update(x, mean: mean, square: square, step: entry.step)
            }
        }
    }

    public func zeroGradients() { table.zeroGradients() }

    public var state: [String: Tensor] { table.state }

    public func load(state: [String: Tensor]) throws { try table.load(state) }
}
