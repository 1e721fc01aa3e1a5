import Foundation
import Torch
import TorchNN

/// Adam whose adaptive rate waits until its variance is known well enough (Liu et al., 2019, arXiv 1908.03265), as PyTorch's
/// `torch.optim.RAdam`.
public final class RAdam: AdaptiveMoments {
    /// Shrinks the weights themselves, as ``AdamW``, rather than adding to the gradients.
    public let decouplesWeightDecay: Bool

    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double = 1e-3,
        betas: (Double, Double) = (0.9, 0.999), epsilon: Double = 1e-8, weightDecay: Double = 0,
        decouplesWeightDecay: Bool = false
    ) {
        self.decouplesWeightDecay = decouplesWeightDecay
        super.init(
            "RAdam", parameters, learningRate: learningRate, betas: betas, epsilon: epsilon, weightDecay: weightDecay)
    }

    override func update(_ x: Tensor, mean: Tensor, square: Tensor, step: Int) {
        let rate = learningRate / (1 - pow(betas.0, Double(step)))
        if let rectification = rectification(step: step) {
            x.addQuotientInPlace(mean, square.sqrt() + epsilon, scale: -rate * rectification)
        } else {
            x.addInPlace(mean, scale: -rate)
        }
    }

    override func decayed(_ x: Tensor, _ gradient: Tensor) -> Tensor {
        guard decouplesWeightDecay, weightDecay > 0 else { return super.decayed(x, gradient) }
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
}
