// The Fourier Transformer's encoder: an ordinary stack that gets shorter on its way. He et al. 2023, arXiv 2305.15099.
//
//   before a block, as in the authors' BART:        x ← F(x)
//   inside it, as in their Long Range Arena model:  s = F(norm₁(x)),  y = s + mixer(s),  out = y + feedForward(norm₂(y))
//
// F is the spectral filter. With the global residual, before the last block's last norm, R_j being filter j's input:
//   x ← R_0 + Σ_{j>0} stretch(R_j) + stretch(x),   all at the length of R_0.
import SequenceMixers
import Torch
import TorchNN

/// Where a stack of blocks shortens its sequence, and how.
public struct FourierShortening: Sendable {
    public enum Placement: Sendable {
        /// What enters the block is filtered.
        case beforeBlock
        /// What enters the block's mixer is filtered, after its norm, and is itself the residual: for pre-norm blocks.
        case afterNorm
    }

    /// The blocks with a filter, from 0.
    public var layers: [Int]
    public var filter: SpectralFilter
    public var placement: Placement
    /// Whether the output has the length of the input again.
    public var hasGlobalResidual: Bool

    public init(
        layers: [Int], filter: SpectralFilter, placement: Placement = .beforeBlock, hasGlobalResidual: Bool = true
    ) {
        self.layers = layers
        self.filter = filter
        self.placement = placement
        self.hasGlobalResidual = hasGlobalResidual
    }

    /// - Throws: `ConfigurationError` when no stack of that configuration can be shortened so.
    public func validate(_ configuration: ModelConfiguration) throws {
        for layer in layers where !(0..<configuration.layers).contains(layer) {
            throw ConfigurationError(
                "filter layer \(layer) is not one of \(configuration.layers) layers, counted from 0")
        }
        guard Set(layers).count == layers.count else {
            throw ConfigurationError("filter layers \(layers) name a layer twice")
        }
        if placement == .afterNorm && configuration.norm == .post {
            throw ConfigurationError("a filter after the norm needs norm: pre")
        }
        guard configuration.resolvedFeedForwardDim > 0 else {
            throw ConfigurationError("a shortened stack needs feed-forward layers: feedForwardDim must be above 0")
        }
        guard configuration.residual.kind == .plain else {
            throw ConfigurationError(
                "residual '\(configuration.residual.kind.rawValue)' cannot cross a filter, which changes the length")
        }
    }
}

/// A bidirectional stack of blocks around any mixer, with spectral filters that shorten the sequence between them.
///
/// The blocks after a filter cost what they cost for the shorter sequence, the filter itself O(N log N · modelDim).
/// Each sequence of a padded batch is filtered at its own length.
public final class FourierEncoder: Module {
    public let blocks: [TransformerBlock]
    public let norm: (any Normalizing)?
    public let shortening: FourierShortening
    private let placement: NormPlacement

    /// Evaluates the reference forms of filters and mixers.
    public var usesReference = false {
        didSet {
            for block in blocks { (block.mixer as? any ReferenceEvaluating)?.usesReference = usesReference }
        }
    }

    /// - Throws: `ConfigurationError` when the configuration, the mixer or the shortening cannot be built.
    public init(
        _ configuration: ModelConfiguration, _ shortening: FourierShortening, maximumLength: Int? = nil,
        using generator: RandomGenerator
    ) throws {
        try configuration.validate()
        try shortening.validate(configuration)
        var context = try configuration.mixerContext(isCausal: false, maximumLength: maximumLength, using: generator)
        let mixers = try (0..<configuration.layers).map { layer in
            context.layer = layer
            return try configuration.mixer.build(context)
        }
        guard mixers.allSatisfy({ !$0.isWholeBlock }) else {
            throw ConfigurationError(
                "mixer '\(configuration.mixer.name)' is a whole block, so no filter can stand between it and its norm")
        }
        blocks = mixers.map { TransformerBlock($0, configuration, using: generator) }
        norm = configuration.finalNorm ? configuration.makeNorm() : nil
        self.shortening = shortening
        placement = configuration.norm
        super.init()
    }

    /// What is left of `length` positions after all filters; `length` itself with the global residual.
    public func outputLength(_ length: Int) -> Int {
        if shortening.hasGlobalResidual { return length }
        return shortening.layers.reduce(length) { length, _ in shortening.filter.outputLength(length) }
    }

    /// x `[batch, length, modelDim]` → `[batch, outputLength(length), modelDim]`, and the mask that belongs to it.
    ///
    /// Shortened sequences of different lengths stand at the front of their rows, with zeros after them.
    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil) -> (output: Tensor, paddingMask: Tensor?) {
        guard let paddingMask else { return (whole(x), nil) }
        let groups = LengthGroups(paddingMask)
        if shortening.hasGlobalResidual { return (groups.mapped(x, whole), paddingMask) }
        let lengths = groups.lengths.map { $0 == 0 ? 0 : outputLength($0) }
        let width = max(lengths.max() ?? 1, 1)
        let places = Tensor.arange(0..<width, device: x.device).unsqueezed(0)
        let mask = places .< Tensor(lengths, device: x.device).unsqueezed(1)
        return (groups.evaluated(x, paddedTo: width, whole), mask)
    }

    /// Sequences without padding.
    private func whole(_ x: Tensor) -> Tensor {
        var y = x
        var entered: [Tensor] = []
        for (index, block) in blocks.enumerated() {
            let filters = shortening.layers.contains(index)
            if filters { entered.append(y) }
            y = sum(y, block, filters: filters)
            if index == blocks.count - 1 && shortening.hasGlobalResidual { y = joined(entered, y) }
            if placement == .post { y = normalized(y, block.feedForwardNorm) }
        }
        return normalized(y, norm)
    }

    /// The block's output, in a post-norm block before its last norm.
    private func sum(_ x: Tensor, _ block: TransformerBlock, filters: Bool) -> Tensor {
        func mixed(_ x: Tensor) -> Tensor { block.dropout(block.mixer(x, paddingMask: nil)) }
        func fed(_ x: Tensor) -> Tensor { block.feedForward.map { $0(x) } ?? x }
        func filtered(_ x: Tensor) -> Tensor { shortening.filter(x, usesReference: usesReference) }

        if filters && shortening.placement == .afterNorm {
            let s = filtered(normalized(x, block.mixerNorm))
            let h = s + mixed(s)
            return h + fed(normalized(h, block.feedForwardNorm))
        }
        let x = filters ? filtered(x) : x
        switch placement {
        case .post:
            let h = normalized(x + mixed(x), block.mixerNorm)
            return h + fed(h)
        case .pre:
            let h = x + mixed(normalized(x, block.mixerNorm))
            return h + fed(normalized(h, block.feedForwardNorm))
        }
    }

    /// The global residual: y and what entered the filters, at the length of the first of these.
    private func joined(_ entered: [Tensor], _ y: Tensor) -> Tensor {
        guard let first = entered.first else { return y }
        return (entered.dropFirst() + [y]).reduce(first) { sum, x in
            sum + shortening.filter.upsampled(x, to: first.size(1))
        }
    }

    private func normalized(_ x: Tensor, _ norm: (any Normalizing)?) -> Tensor { norm.map { $0(x) } ?? x }
}
