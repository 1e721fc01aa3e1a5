import SequenceMixers
import Torch
import TorchNN

/// A stack of blocks: x `[batch, length, modelDim]` to the same shape.
public final class SequenceEncoder: Module {
    public let blocks: [TransformerBlock]
    public let norm: (any Normalizing)?
    let residual: ResidualConfiguration
    private let reversible: ReversibleStack?

    /// Of reversible blocks: keeps all activations for the backward pass, as other blocks do, and computes none again.
    public var keepsActivations = false

    /// Builds a mixer for every block from the configuration.
    ///
    /// - Throws: `ConfigurationError` when the configuration, or the mixer's options, cannot be built.
    public convenience init(
        _ configuration: ModelConfiguration, isCausal: Bool, maximumLength: Int? = nil, using generator: RandomGenerator
    ) throws {
        try configuration.validate()
        var context = try configuration.mixerContext(isCausal: isCausal, maximumLength: maximumLength, using: generator)
        let mixers = try (0..<configuration.layers).map { layer in
            context.layer = layer
            let mixer = try configuration.mixer.build(context)
            let kind = configuration.residual.kind
            if mixer.isWholeBlock && kind != .plain {
                throw ConfigurationError(
                    "residual: kind \(kind.rawValue) needs a mixer without a connection of its own, which "
                        + "'\(configuration.mixer.name)' has")
            }
            return mixer
        }
        self.init(configuration, mixers: mixers, using: generator)
    }

    /// A block around each of the given mixers.
    public init(_ configuration: ModelConfiguration, mixers: [any SequenceMixer], using generator: RandomGenerator) {
        blocks = mixers.map { TransformerBlock($0, configuration, using: generator) }
        norm = configuration.finalNorm ? configuration.makeNorm(configuration.outputDim) : nil
        residual = configuration.residual
        reversible =
            residual.kind == .reversible
            ? ReversibleStack(blocks, slice: configuration.feedForwardSlice, using: generator) : nil
        super.init()
    }

    /// x `[batch, length, modelDim]` → the same shape, or of width 2 modelDim where the blocks are reversible.
    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        if let reversible {
            let y = reversible(x, paddingMask: paddingMask, keepsActivations: keepsActivations)
            return norm.map { $0(y) } ?? y
        }
        var stream = ResidualStream(residual)
        let y = blocks.reduce(x) { x, block in block(x, &stream) { block.mixer($0, paddingMask: paddingMask) } }
        return norm.map { $0(y) } ?? y
    }

    // MARK: Streaming

    /// - Throws: `ConfigurationError` when a block's mixer cannot stream.
    public func initialState(batch: Int) throws -> [any StreamingState] {
        try blocks.enumerated().map { index, block in
            guard let mixer = block.mixer as? any StreamingMixer, mixer.canStream else {
                let reason = (block.mixer as? any StreamingRefusing).map { ": \($0.streamingRefusal)" } ?? ""
                throw ConfigurationError(
                    "the mixer of block \(index), \(type(of: block.mixer)), cannot go token by token as it was configured"
                        + reason)
            }
            return mixer.anyInitialState(batch: batch)
        }
    }

    /// Takes up a piece `[batch, length, modelDim]` of the sequence.
    public func prefill(_ x: Tensor, states: inout [any StreamingState]) -> Tensor {
        streamed(x, &states) { $0.prefill($1, paddingMask: nil, anyState: &$2) }
    }

    /// Takes up one token `[batch, modelDim]`.
    public func step(_ x: Tensor, states: inout [any StreamingState]) -> Tensor {
        streamed(x, &states) { $0.step($1, anyState: &$2) }
    }

    private func streamed(
        _ x: Tensor, _ states: inout [any StreamingState],
        _ body: (any StreamingMixer, Tensor, inout any StreamingState) -> Tensor
    ) -> Tensor {
        precondition(states.count == blocks.count, "SequenceEncoder: \(states.count) states for \(blocks.count) blocks")
        func mixed(_ x: Tensor, _ index: Int) -> Tensor {
            guard let mixer = blocks[index].mixer as? any StreamingMixer else {
                preconditionFailure("SequenceEncoder: block \(index)'s mixer cannot go token by token")
            }
            return body(mixer, x, &states[index])
        }
        var y = x
        if let reversible {
            y = reversible.streamed(x) { mixed($0, $1) }
        } else {
            var stream = ResidualStream(residual)
            for (index, block) in blocks.enumerated() { y = block(y, &stream) { mixed($0, index) } }
        }
        return norm.map { $0(y) } ?? y
    }
}
