// A forecaster whose tokens are channels: "SAMformer", Ilbert et al. 2024, arXiv 2402.10198, section 3, with any mixer.
//
//   z = RevIN(x),  y = RevIN⁻¹(blocks(z) W_f + b_f)
//
// RevIN: "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution Shift", Kim et
// al. 2022.
import SequenceMixers
import Torch
import TorchNN

/// The sizes of a forecast.
public struct ForecastShape: Codable, Equatable, Sendable {
    /// Series that are foretold together.
    public var channels: Int
    /// Steps that the model sees.
    public var lookback: Int
    /// Steps that it foretells.
    public var horizon: Int

    public init(channels: Int, lookback: Int, horizon: Int) {
        self.channels = channels
        self.lookback = lookback
        self.horizon = horizon
    }

    /// - Throws: `ConfigurationError` naming the first size that is out of range.
    public func validate() throws {
        for (name, value) in [("channels", channels), ("lookback", lookback), ("horizon", horizon)]
        where !(1...10_000_000).contains(value) {
            throw ConfigurationError("\(name) must be from 1 to 10000000, not \(value)")
        }
    }
}

/// Brings the history of each channel to mean 0 and deviation 1, and a forecast back.
///
///     z = (x - μ) / σ · w + b,  σ = √(variance + ε)          μ and σ over time, for each sample and channel
///     y = (ŷ - b) / (w + δ) · σ + μ
///
/// μ and σ are constants to the gradient.
public final class ReversibleInstanceNorm: Module {
    /// w and b, `[channels]`.
    public let weight: Parameter
    public let bias: Parameter
    public let epsilon: Double
    /// δ, which keeps a weight of zero from dividing.
    public let inverseEpsilon: Double

    /// What is taken out of a history: `[batch, channels, 1]` both.
    public struct Scale {
        let mean: Tensor
        let deviation: Tensor
    }

    public init(_ channels: Int, epsilon: Double = 1e-5, inverseEpsilon: Double = 0) {
        weight = Parameter(.ones([max(channels, 1)]))
        bias = Parameter(.zeros([max(channels, 1)]))
        self.epsilon = epsilon
        self.inverseEpsilon = inverseEpsilon
        super.init()
    }

    /// x `[batch, channels, time]`.
    public func normalized(_ x: Tensor) -> (z: Tensor, scale: Scale) {
        let past = x.detached()
        let mean = past.mean(2, keepDim: true)
        let deviation = (past.variance(2, correction: 0, keepDim: true) + epsilon).sqrt()
        let z = (x - mean) / deviation * weight.value.unsqueezed(1) + bias.value.unsqueezed(1)
        return (z, Scale(mean: mean, deviation: deviation))
    }

    /// y `[batch, channels, time]`, of any other length.
    public func restored(_ y: Tensor, _ scale: Scale) -> Tensor {
        let plain = (y - bias.value.unsqueezed(1)) / (weight.value.unsqueezed(1) + inverseEpsilon)
        return plain * scale.deviation + scale.mean
    }
}

/// Foretells several series together: `[batch, channels, lookback]` → `[batch, channels, horizon]`.
///
/// A token is the whole history of one channel, so `modelDim` is `lookback`; the blocks mix channels, and one linear
/// layer, the same for all of them, maps what comes out to the future. All its steps are given at once.
public final class Forecaster: Module {
    public let norm: ReversibleInstanceNorm?
    public let encoder: SequenceEncoder
    public let head: Linear
    public let shape: ForecastShape

    /// Evaluates the mixers' reference forms, where they have one.
    public var usesReference = false {
        didSet {
            for block in encoder.blocks { (block.mixer as? any ReferenceEvaluating)?.usesReference = usesReference }
        }
    }

    /// - Throws: `ConfigurationError` when the configuration cannot be built, or not as a forecaster.
    public convenience init(
        _ configuration: ModelConfiguration, _ shape: ForecastShape, using generator: RandomGenerator
    )
        throws
    {
        let norm = configuration.instanceNorm ? ReversibleInstanceNorm(shape.channels) : nil
        try self.init(configuration, shape, norm: norm, using: generator)
    }

    /// With a norm of other constants, or none.
    public init(
        _ configuration: ModelConfiguration, _ shape: ForecastShape, norm: ReversibleInstanceNorm?,
        using generator: RandomGenerator
    ) throws {
        try shape.validate()
        guard configuration.modelDim == shape.lookback else {
            throw ConfigurationError(
                "a forecaster's token is a channel's history: modelDim must be the lookback \(shape.lookback), "
                    + "not \(configuration.modelDim)")
        }
        guard configuration.position == .none else {
            throw ConfigurationError(
                "a forecaster's tokens are channels, which have no order: position must be none, "
                    + "not \(configuration.position.rawValue)")
        }
        encoder = try SequenceEncoder(
            configuration, isCausal: false, maximumLength: shape.channels, using: generator)
        head = Linear(configuration.outputDim, shape.horizon, using: generator)
        self.norm = norm
        self.shape = shape
        super.init()
        Initializer.xavierUniform().apply(to: head.weight, using: generator)
        head.bias?.value.fillInPlace(0)
    }

    /// x `[batch, channels, lookback]` → `[batch, channels, horizon]`.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        let found = x.shape
        torchPrecondition(
            found.count == 3 && found[1] == shape.channels && found[2] == shape.lookback, in: "Forecaster",
            "expected x [batch, \(shape.channels), \(shape.lookback)]; got \(found)")
        guard let norm else { return head(encoder(x)) }
        let (z, scale) = norm.normalized(x)
        return norm.restored(head(encoder(z)), scale)
    }
}
