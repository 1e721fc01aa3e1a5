import Torch
import TorchNN

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv 1711.05101) by LibTorch's fused kernel, as
/// PyTorch's `torch.optim.AdamW(fused=True)`.
public final class AdamW: AdaptiveMoments {
    /// Leaves biases and the weights of norms (tensors of fewer than two dimensions) without weight decay.
    public let decayMatricesOnly: Bool

    public init(
        _ parameters: [(name: String, parameter: Parameter)], learningRate: Double = 1e-3,
        betas: (Double, Double) = (0.9, 0.999), epsilon: Double = 1e-8, weightDecay: Double = 0.01,
        decayMatricesOnly: Bool = false
    ) {
        self.decayMatricesOnly = decayMatricesOnly
        super.init(
            "AdamW", parameters, learningRate: learningRate, betas: betas, epsilon: epsilon, weightDecay: weightDecay)
    }

    /// What one call of the fused kernel can take: tensors of one type, on one device, with one weight decay.
    private struct Group: Hashable {
        let dtype: DType
        let device: Device
        let decays: Bool
    }

    private struct Batch {
        var parameters: [Tensor] = []
        var gradients: [Tensor] = []
        var means: [Tensor] = []
        var squares: [Tensor] = []
        var steps: [Tensor] = []

        /// The kernel reads memory in order, and raises the step itself.
        mutating func add(_ x: Tensor, _ gradient: Tensor, _ slots: [Tensor], step: Int) {
            parameters.append(x)
            gradients.append(gradient.contiguous())
            means.append(slots[0])
            squares.append(slots[1])
            steps.append(Tensor(Float(step - 1), device: x.device))
        }
    }

    public override func step() {
        var batches: [Group: Batch] = [:]
        table.update { entry, gradient in
            let x = entry.parameter.value
            let slots = entry.filledSlots(2)
            let group = Group(dtype: x.dtype, device: x.device, decays: !decayMatricesOnly || x.rank >= 2)
            batches[group, default: Batch()].add(x, gradient, slots, step: entry.step)
        }
        for (group, batch) in batches {
            fusedAdamW(
                batch.parameters, gradients: batch.gradients, means: batch.means, squares: batch.squares,
                steps: batch.steps, learningRate: learningRate, beta1: betas.0, beta2: betas.1,
                weightDecay: group.decays ? weightDecay : 0, epsilon: epsilon)
        }
    }
}
