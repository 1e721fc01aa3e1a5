import SequenceMixers
import Torch
import TorchNN

/// Where a block normalizes: the sum (`post`, as in the original Transformer), or what goes into each sub-layer (`pre`).
public enum NormPlacement: String, NamedChoice {
    case pre
    case post
}

/// How vectors are brought to one scale.
public enum Normalization: String, NamedChoice {
    case layerNorm = "layer-norm"
    case rmsNorm = "rms-norm"
    /// RMS norm without weights.
    case simpleRMSNorm = "simple-rms-norm"
}

/// How a model knows where in the sequence a token stands.
public enum PositionKind: String, NamedChoice {
    case none
    /// A trained vector a position, up to the model's maximum length.
    case learned
    /// Sines and cosines added to the embedding; any length.
    case sinusoidal
    /// Half of the channels embed the token, the other half are sines and cosines; any length.
    case sinusoidalConcatenated = "sinusoidal-concatenated"
    /// Queries and keys are turned by their position, in mixers that compare them by a dot product; any length.
    case rotary
    /// A trained vector a position, joined from those of its coordinates in a grid (`axialShape`, `axialDims`).
    case axial
}

/// How a classifier makes one vector of a sequence.
public enum Pooling: String, NamedChoice {
    case mean
    case first
}

/// The shape of a stack of blocks around any mixer, and of the model's ends; as `model:` in a recipe.
public struct ModelConfiguration: Codable, Sendable {
    /// Blocks.
    public var layers = 4
    /// Channels of the stream, a multiple of `heads`.
    public var modelDim = 256
    public var heads = 4
    /// Width of the feed-forward layers; left out, four times `modelDim`, or 8/3 of it when gated. With 0 a block has none.
    public var feedForwardDim: Int?
    /// Whether the feed-forward layer multiplies its hidden values by a gate: `activation` is then the gate's.
    public var gatedFeedForward = false
    /// How many tokens of a sequence the feed-forward layers take at once, forward and backward, to save memory; left out,
    /// all.
    public var feedForwardSlice: Int?
    public var norm: NormPlacement = .pre
    public var normalization: Normalization = .layerNorm
    public var activation: Activation = .gelu
    /// After the mixer, and after both layers of the feed-forward part.
    public var dropout = 0.0
    public var normEpsilon = 1e-5
    /// A norm after the last block.
    public var finalNorm = true
    public var position: PositionKind = .learned
    /// Of `axial` positions: the sizes of the grid, whose product is at least the maximum length; left out, two about its
    /// root.
    public var axialShape: [Int]?
    /// The widths of the axes' vectors, `modelDim` in all; left out, equal parts.
    public var axialDims: [Int]?
    /// The mechanism and its options, the same in every block.
    public var mixer: MixerConfiguration
    /// The connection around each mixer.
    public var residual = ResidualConfiguration()
    /// Of a classifier.
    public var pooling: Pooling = .mean
    /// Of an image classifier: a token is a square of so many pixels on each side.
    public var patchSize = 4
    /// Of a forecaster: whether each channel's history is brought to mean 0 and deviation 1, and the forecast back.
    public var instanceNorm = true

    public init(mixer: MixerConfiguration) { self.mixer = mixer }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        mixer = try container.decode(MixerConfiguration.self, forKey: .mixer)
        layers = try container.decodeIfPresent(Int.self, forKey: .layers) ?? layers
        modelDim = try container.decodeIfPresent(Int.self, forKey: .modelDim) ?? modelDim
        heads = try container.decodeIfPresent(Int.self, forKey: .heads) ?? heads
        feedForwardDim = try container.decodeIfPresent(Int.self, forKey: .feedForwardDim)
        gatedFeedForward = try container.decodeIfPresent(Bool.self, forKey: .gatedFeedForward) ?? gatedFeedForward
        feedForwardSlice = try container.decodeIfPresent(Int.self, forKey: .feedForwardSlice)
        norm = try container.decodeIfPresent(NormPlacement.self, forKey: .norm) ?? norm
        normalization = try container.decodeIfPresent(Normalization.self, forKey: .normalization) ?? normalization
        activation = try container.decodeIfPresent(Activation.self, forKey: .activation) ?? activation
        dropout = try container.decodeIfPresent(Double.self, forKey: .dropout) ?? dropout
        normEpsilon = try container.decodeIfPresent(Double.self, forKey: .normEpsilon) ?? normEpsilon
        finalNorm = try container.decodeIfPresent(Bool.self, forKey: .finalNorm) ?? finalNorm
        position = try container.decodeIfPresent(PositionKind.self, forKey: .position) ?? position
        axialShape = try container.decodeIfPresent([Int].self, forKey: .axialShape)
        axialDims = try container.decodeIfPresent([Int].self, forKey: .axialDims)
        residual = try container.decodeIfPresent(ResidualConfiguration.self, forKey: .residual) ?? residual
        pooling = try container.decodeIfPresent(Pooling.self, forKey: .pooling) ?? pooling
        patchSize = try container.decodeIfPresent(Int.self, forKey: .patchSize) ?? patchSize
        instanceNorm = try container.decodeIfPresent(Bool.self, forKey: .instanceNorm) ?? instanceNorm
    }

    /// `feedForwardDim`, or its default.
    public var resolvedFeedForwardDim: Int { feedForwardDim ?? (gatedFeedForward ? 8 * modelDim / 3 : 4 * modelDim) }

    /// Channels that come out of the stack: `modelDim`, or twice that where the blocks are reversible.
    public var outputDim: Int { residual.kind == .reversible ? 2 * modelDim : modelDim }

    /// Of the given width, or of `modelDim`.
    func makeNorm(_ width: Int? = nil) -> any Normalizing {
        let dim = width ?? modelDim
        switch normalization {
        case .layerNorm: return LayerNorm(dim, epsilon: normEpsilon)
        case .rmsNorm: return RMSNorm(dim, epsilon: normEpsilon)
        case .simpleRMSNorm: return SimpleRMSNorm(dim, epsilon: normEpsilon)
        }
    }

    /// The grid of `axial` positions and the widths of its axes.
    ///
    /// - Throws: `ConfigurationError` when they do not fit together, or do not reach the maximum length.
    func resolvedAxes(maximumLength: Int) throws -> (shape: [Int], dims: [Int]) {
        let side = max(1, Int(Double(maximumLength).squareRoot().rounded(.up)))
        let shape = axialShape ?? [side, max(1, (maximumLength + side - 1) / side)]
        let count = max(shape.count, 1)
        let dims = axialDims ?? (0..<count).map { modelDim / count + ($0 < modelDim % count ? 1 : 0) }
        guard shape.count == dims.count, (shape + dims).allSatisfy({ 1...10_000_000 ~= $0 }) else {
            throw ConfigurationError("axialShape \(shape) and axialDims \(dims) must be as many positive numbers")
        }
        guard dims.reduce(0, +) == modelDim else {
            throw ConfigurationError("axialDims \(dims) must be \(modelDim) in all, as modelDim")
        }
        let places = shape.reduce(1.0) { $0 * Double($1) }
        guard places >= Double(maximumLength), places < 1e15 else {
            throw ConfigurationError("axialShape \(shape) has no room for \(maximumLength) positions")
        }
        return (shape, dims)
    }

    /// - Throws: `ConfigurationError` naming the first value that is out of range.
    public func validate() throws {
        // Beyond these, sizes computed from them would leave the range of Int, and no machine could hold the model.
        try require(layers, in: 1...100_000, "layers")
        try require(modelDim, in: 1...1_000_000, "modelDim")
        try require(heads, in: 1...1_000_000, "heads")
        try require(resolvedFeedForwardDim, in: 0...10_000_000, "feedForwardDim")
        guard modelDim.isMultiple(of: heads) else {
            throw ConfigurationError("modelDim \(modelDim) is not a multiple of heads \(heads)")
        }
        guard (0..<1).contains(dropout) else {
            throw ConfigurationError("dropout must be at least 0 and below 1, not \(dropout)")
        }
        guard normEpsilon > 0, normEpsilon.isFinite else {
            throw ConfigurationError("normEpsilon must be above 0, not \(normEpsilon)")
        }
        if position == .sinusoidalConcatenated && !modelDim.isMultiple(of: 4) {
            throw ConfigurationError(
                "position sinusoidal-concatenated needs modelDim to be a multiple of 4, not \(modelDim)")
        }
        if position == .sinusoidal && !modelDim.isMultiple(of: 2) {
            throw ConfigurationError("position sinusoidal needs an even modelDim, not \(modelDim)")
        }
        if let feedForwardSlice { try require(feedForwardSlice, in: 1...1_000_000_000, "feedForwardSlice") }
        if let name = axialShape != nil ? "axialShape" : axialDims != nil ? "axialDims" : nil, position != .axial {
            throw ConfigurationError("\(name) belongs to position axial, not \(position.rawValue)")
        }
        if position == .axial { _ = try resolvedAxes(maximumLength: 1) }
        try residual.validate()
        guard residual.kind == .reversible else { return }
        if norm != .pre { throw ConfigurationError("residual: kind reversible needs norm pre, not \(norm.rawValue)") }
        if resolvedFeedForwardDim == 0 {
            throw ConfigurationError("residual: kind reversible needs feed-forward layers, so feedForwardDim above 0")
        }
    }

    private func require(_ value: Int, in range: ClosedRange<Int>, _ name: String) throws {
        if value < range.lowerBound {
            throw ConfigurationError("\(name) must be at least \(range.lowerBound), not \(value)")
        }
        if value > range.upperBound {
            throw ConfigurationError("\(name) must be at most \(range.upperBound), not \(value)")
        }
    }

    /// The same settings for one layer's mixer.
    func mixerContext(isCausal: Bool, maximumLength: Int?, using generator: RandomGenerator) throws -> MixerContext {
        var context = try MixerContext(
            modelDim: modelDim, heads: heads, isCausal: isCausal, maximumLength: maximumLength,
            usesRotary: position == .rotary, generator: generator)
        context.layers = layers
        return context
    }
}
