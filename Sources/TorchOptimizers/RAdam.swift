import Foundation
import Torch
import TorchNN

/// Adam whose adaptive rate waits until its variance is known well enough (Liu et al., 2019, arXiv 1908.03265), as PyTorch's
/// `torch.optim.RAdam`.
public final class RAdam: Optimizer {
    public var learningRate: Double
    public let betas: (Double, Double)
    public let epsilon: Double
    public let weightDecay: Double
    /// Shrinks the weights themselves, as ``AdamW``, rather than adding to the gradients.
    public let decouplesWeightDecay: Bool
    private var table: StateTable

    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double = 1e-3,
        betas: (Double, Double) = (0.9, 0.999), epsilon: Double = 1e-8, weightDecay: Double = 0,
        decouplesWeightDecay: Bool = false
    ) {
        checkSettings("RAdam", learningRate: learningRate, weightDecay: weightDecay, betas: betas, epsilon: epsilon)
        self.learningRate = learningRate
        self.betas = betas
        self.epsilon = epsilon
        self.weightDecay = weightDecay
        self.decouplesWeightDecay = decouplesWeightDecay
        table = StateTable("RAdam", slots: ["mean", "square"], parameters)
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
                let rate = learningRate / (1 - pow(betas.0, Double(entry.step)))
                if let rectification = rectification(step: entry.step) {
                    x.addQuotientInPlace(mean, square.sqrt() + epsilon, scale: -rate * rectification)
                } else {
                    x.addInPlace(mean, scale: -rate)
                }
            }
        }
    }

    private func decayed(_ x: Tensor, _ gradient: Tensor) -> Tensor {
        guard weightDecay > 0 else { return gradient }
        guard decouplesWeightDecay else { return gradient + x * weightDecay }
        x.multiplyInPlace(by: 1 - learningRate * weightDecay)
        return gradient
    }

    /// √(1 - β₂ᵗ) times the paper's r_t; nil while ρ_t, the length of the average that the moving one stands for, is at
    /// most 5.
    private func rectification(step: Int) -> Double? {
        let t = Double(step)
        let power = pow(betas.1, t)
        let limit = 2 / (1 - betas.1) - 1
        let length = limit - 2 * t * power / (1 - power)
        guard length > 5 else { return nil }
        let numerator = (length - 4) * (length - 2) * limit
        let denominator = (limit - 4) * (limit - 2) * length
        return ((1 - power) * numerator / denominator).squareRoot()
    }

    public func zeroGradients() { table.zeroGradients() }

    public var state: [String: Tensor] { table.state }

    public func load(state: [String: Tensor]) throws { try table.load(state) }
}
