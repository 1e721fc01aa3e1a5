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
public final class Adam: AdaptiveMoments {
    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double = 1e-3,
        betas: (Double, Double) = (0.9, 0.999), epsilon: Double = 1e-8, weightDecay: Double = 0
    ) {
        super.init(
            "Adam", parameters, learningRate: learningRate, betas: betas, epsilon: epsilon, weightDecay: weightDecay)
    }

    override func update(_ x: Tensor, mean: Tensor, square: Tensor, step: Int) {
        let t = Double(step)
        let deviation = square.sqrt() * (1 / (1 - pow(betas.1, t)).squareRoot()) + epsilon
        x.addQuotientInPlace(mean, deviation, scale: -learningRate / (1 - pow(betas.0, t)))
    }
}
