import Foundation
import Torch
import TorchNN

/// Adam (Kingma and Ba, 2014, arXiv 1412.6980) with weight decay added to the gradient, as PyTorch's
/// `torch.optim.Adam`.
///
///     g ← g + weightDecay · x
///     m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
///     x ← x - learningRate · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
///
/// Weight decay is then adapted like the gradient; ``AdamW`` shrinks the weights themselves.
public final class Adam: Optimizer {
    public var learningRate: Double
    public let betas: (Double, Double)
    public let epsilon: Double
    public let weightDecay: Double
    private var table: StateTable

    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double = 1e-3,
        betas: (Double, Double) = (0.9, 0.999), epsilon: Double = 1e-8, weightDecay: Double = 0
    ) {
        checkSettings("Adam", learningRate: learningRate, weightDecay: weightDecay, betas: betas, epsilon: epsilon)
        self.learningRate = learningRate
        self.betas = betas
        self.epsilon = epsilon
        self.weightDecay = weightDecay
        table = StateTable("Adam", slots: ["mean", "square"], parameters)
    }

    public func step() {
        withNoGrad {
            table.update { entry, gradient in
                let x = entry.parameter.value
                let slots = entry.filledSlots(2)
                let (mean, square) = (slots[0], slots[1])
                let g = weightDecay > 0 ? gradient + x * weightDecay : gradient
                mean.interpolateInPlace(towards: g, weight: 1 - betas.0)
                square.multiplyInPlace(by: betas.1)
                square.addProductInPlace(g, g, scale: 1 - betas.1)
                let t = Double(entry.step)
                let deviation = square.sqrt() * (1 / (1 - pow(betas.1, t)).squareRoot()) + epsilon
                x.addQuotientInPlace(mean, deviation, scale: -learningRate / (1 - pow(betas.0, t)))
            }
        }
    }

    public func zeroGradients() { table.zeroGradients() }

    public var state: [String: Tensor] { table.state }

    public func load(state: [String: Tensor]) throws { try table.load(state) }
}
