// The smaller parts of a Mega block: its norms, its dropout and its feed-forward layer.
import Torch
import TorchNN

/// How a Mega block brings vectors to one scale.
public enum MegaNorm: String, NamedChoice {
    case layerNorm = "layer-norm"
    /// x g / √(mean(x²) + ε) with a single number g.
    case scaleNorm = "scale-norm"
    case rmsNorm = "rms-norm"
    /// Each feature over all real tokens of the batch; bidirectional only, for in training it sees the whole sequence.
    case batchNorm = "batch-norm"

    func make(_ dim: Int) -> any MaskedNormalizing {
        switch self {
        case .layerNorm: LayerNorm(dim, epsilon: 1e-5)
        case .scaleNorm: MegaScaleNorm(epsilon: 1e-5)
        case .rmsNorm: RMSNorm(dim, epsilon: 1e-5)
        case .batchNorm: MegaBatchNorm(dim, epsilon: 1e-5)
        }
    }
}

/// A norm that may have to know which tokens are real.
protocol MaskedNormalizing: Module {
    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor
}

extension LayerNorm: MaskedNormalizing {
    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor { self(x) }
}

extension RMSNorm: MaskedNormalizing {
    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor { self(x) }
}

/// x g / √(mean(x²) + ε) over the last dimension. (The scale norm of other papers has the sum there.)
final class MegaScaleNorm: Module, MaskedNormalizing {
    let scalar = Parameter(.ones([1]))
    let epsilon: Double

    init(epsilon: Double) {
        self.epsilon = epsilon
        super.init()
    }

    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        x * ((x.square().mean(-1, keepDim: true) + epsilon).rsqrt() * scalar.value)
    }
}

/// (x - mean) / √(variance + ε) times weight plus bias, each feature over the real tokens of the batch x
/// `[batch, n, dim]`; in evaluation with running averages (Ioffe and Szegedy, 2015, arXiv 1502.03167).
final class MegaBatchNorm: Module, MaskedNormalizing {
    let weight: Parameter
    let bias: Parameter
    let runningMean: Buffer
    let runningVariance: Buffer
    let epsilon: Double
    /// The share of a batch in the running averages.
    private let momentum = 0.1

    init(_ dim: Int, epsilon: Double) {
        weight = Parameter(.ones([dim]))
        bias = Parameter(.zeros([dim]))
        runningMean = Buffer(.zeros([dim]))
        runningVariance = Buffer(.ones([dim]))
        self.epsilon = epsilon
        super.init()
    }

    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        let (mean, variance) = isTraining ? statistics(x, paddingMask) : (runningMean.value, runningVariance.value)
        return (x - mean) * ((variance + epsilon).rsqrt() * weight.value) + bias.value
    }

    private func statistics(_ x: Tensor, _ paddingMask: Tensor?) -> (mean: Tensor, variance: Tensor) {
        let real = (paddingMask ?? .ones([x.size(0), x.size(1)], dtype: .bool, device: x.device)).unsqueezed(2)
        let count = real.to(.int64).sum().to(x.dtype).clamped(min: 1)
        let mean = x.masked(where: .!real, with: 0).sum(0, 1) / count
        let variance = (x - mean).masked(where: .!real, with: 0).square().sum(0, 1) / count
        withNoGrad {
            let unbiased = variance * (count / (count - 1).clamped(min: 1))
            runningMean.value = interpolate(runningMean.value, mean.detached(), weight: momentum)
            runningVariance.value = interpolate(runningVariance.value, unbiased.detached(), weight: momentum)
        }
        return (mean, variance)
    }
}

/// Dropout of single values, or of a feature in a whole sequence at once.
final class MegaDropout: Module {
    private let dropout: Dropout
    private let dropsFeatures: Bool

    init(_ probability: Double, dropsFeatures: Bool, using generator: RandomGenerator) {
        dropout = Dropout(probability, using: generator)
        self.dropsFeatures = dropsFeatures
        super.init()
    }

    /// x `[batch, n, features]`.
    func callAsFunction(_ x: Tensor) -> Tensor {
        guard dropsFeatures && isTraining else { return dropout(x) }
        return x * dropout(Tensor.ones(like: x.sliced(1, 0..<1).detached()))
    }
}

/// x + W₂ silu(W₁ x~ + b₁) + b₂, where x~ is normalized x, or the sum is normalized instead.
final class MegaFeedForward: Module {
    let norm: any MaskedNormalizing
    let up: Linear
    let down: Linear
    private let dropout: MegaDropout
    private let hiddenDropout: MegaDropout
    let isPrenorm: Bool

    init(_ settings: Mega.Settings, using generator: RandomGenerator) {
        norm = settings.norm.make(settings.modelDim)
        up = .mega(settings.modelDim, settings.feedForwardDim, using: generator)
        down = .mega(settings.feedForwardDim, settings.modelDim, using: generator)
        dropout = settings.makeDropout(settings.dropout, generator)
        hiddenDropout = settings.makeDropout(settings.hiddenDropout, generator)
        isPrenorm = settings.isPrenorm
        super.init()
    }

    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        let hidden = hiddenDropout(up(isPrenorm ? norm(x, paddingMask: paddingMask) : x).silu())
        let sum = x + dropout(down(hidden))
        return isPrenorm ? sum : norm(sum, paddingMask: paddingMask)
    }
}

extension Linear {
    /// As the authors draw them: weights of deviation 0.02, no bias.
    static func mega(_ inputs: Int, _ outputs: Int, using generator: RandomGenerator) -> Linear {
        let layer = Linear(inputs, outputs, using: generator)
        Initializer.normal(deviation: 0.02).apply(to: layer.weight, using: generator)
        if let bias = layer.bias { Initializer.zeros.apply(to: bias, using: generator) }
        return layer
    }
}
