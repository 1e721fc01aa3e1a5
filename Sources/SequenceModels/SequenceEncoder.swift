import SequenceMixers
import Torch
import TorchNN

/// A stack of blocks: x `[batch, length, modelDim]` to the same shape.
public final class SequenceEncoder: Module {
    public let blocks: [TransformerBlock]
    public let norm: (any Normalizing)?
    private let residual: ResidualConfiguration

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
            return try configuration.mixer.build(context)
        }
        self.init(configuration, mixers: mixers, using: generator)
    }

    /// A block around each of the given mixers.
    public init(_ configuration: ModelConfiguration, mixers: [any SequenceMixer], using generator: RandomGenerator) {
        blocks = mixers.map { TransformerBlock($0, configuration, using: generator) }
        norm = configuration.finalNorm ? configuration.makeNorm() : nil
        residual = configuration.residual
        super.init()
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        var stream = ResidualStream(residual)
        let y = blocks.reduce(x) { x, block in block(x, &stream) { block.mixer($0, paddingMask: paddingMask) } }
        return norm.map { $0(y) } ?? y
    }

    // MARK: Streaming

    /// - Throws: `ConfigurationError` when a block's mixer cannot stream.
    public func initialState(batch: Int) throws -> [any StreamingState] {
        try blocks.enumerated().map { index, block in
            guard let mixer = block.mixer as? any StreamingMixer, mixer.canStream else {
                throw ConfigurationError(
                    "the mixer of block \(index), \(type(of: block.mixer)), cannot go token by token as it was configured"
                )
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
        var stream = ResidualStream(residual)
        var y = x
        for (index, block) in blocks.enumerated() {
            guard let mixer = block.mixer as? any StreamingMixer else {
                preconditionFailure("SequenceEncoder: block \(index)'s mixer cannot go token by token")
            }
            y = block(y, &stream) { body(mixer, $0, &states[index]) }
        }
        return norm.map { $0(y) } ?? y
    }
}
