import Torch
import TorchNN

/// Scales all gradients so that their norm, taken together as one vector, is at most `maximum`, as PyTorch's
/// `torch.nn.utils.clip_grad_norm_`; returns the norm before.
///
/// A norm that is not finite is returned as it is and the gradients are left alone, so that the caller can find which
/// parameter is at fault. Waits for the device once.
@discardableResult
public func clipGradientNorm(_ parameters: [Parameter], maximum: Double) -> Double {
    torchPrecondition(maximum > 0, in: "clipGradientNorm", "expected a maximum above 0, got \(maximum)")
    let gradients = parameters.compactMap { $0.isTrainable ? $0.grad : nil }
    guard !gradients.isEmpty else { return 0 }
    let norm = globalNorm(gradients).item()
    guard norm.isFinite else { return norm }
    let factor = maximum / (norm + 1e-6)
    if factor < 1 {
        for gradient in gradients { gradient.multiplyInPlace(by: factor) }
    }
    return norm
}
