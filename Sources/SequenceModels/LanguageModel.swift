import SequenceMixers
import Torch
import TorchNN

/// A causal model of token sequences: at each position, the logits of the next token.
public final class LanguageModel: Module {
    public let embedding: TokenEmbedding
    public let encoder: SequenceEncoder
    public let head: Linear
    public let vocabulary: Int

    /// - Parameter maximumLength: the longest sequence that learned positions are made for.
    /// - Throws: `ConfigurationError` when the configuration cannot be built, or not as a causal model.
    public init(
        _ configuration: ModelConfiguration, vocabulary: Int, maximumLength: Int, using generator: RandomGenerator
    ) throws {
        encoder = try SequenceEncoder(configuration, isCausal: true, maximumLength: maximumLength, using: generator)
        embedding = try TokenEmbedding(vocabulary, configuration, maximumLength: maximumLength, using: generator)
        head = Linear(configuration.outputDim, vocabulary, using: generator)
        self.vocabulary = vocabulary
        super.init()
    }

    /// int64 ids `[batch, length]` → logits `[batch, length, vocabulary]`.
    public func callAsFunction(_ ids: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        head(encoder(embedding(ids), paddingMask: paddingMask))
    }

    /// The state before the first token of `batch` sequences.
    ///
    /// - Throws: `ConfigurationError` when the mixer cannot stream.
    public func initialState(batch: Int = 1) throws -> LanguageModelState {
        LanguageModelState(blocks: try encoder.initialState(batch: batch))
    }

    /// Takes up ids `[batch, length]`, any piece of a text, and returns the logits after its last token `[batch, vocabulary]`.
    public func prefill(_ ids: Tensor, state: inout LanguageModelState) -> Tensor {
        let y = encoder.prefill(embedding(ids, offset: state.position), states: &state.blocks)
        state.position += ids.size(1)
        return head(y.selected(1, -1))
    }

    /// Takes up one token of each sequence, ids `[batch]`, and returns the logits of the next `[batch, vocabulary]`.
    public func step(_ ids: Tensor, state: inout LanguageModelState) -> Tensor {
        let x = embedding(ids.unsqueezed(1), offset: state.position).squeezed(1)
        state.position += 1
        return head(encoder.step(x, states: &state.blocks))
    }
}

/// Where a language model stands in a text: a value that can be copied to continue in two ways.
public struct LanguageModelState {
    public var blocks: [any StreamingState]
    /// Tokens taken up so far.
    public var position = 0

    public init(blocks: [any StreamingState]) { self.blocks = blocks }

    /// Everything there is to save: `0.s`, `0.z`, …, `position`.
    public var tensors: [String: Tensor] {
        var all = ["position": Tensor(position)]
        for (index, block) in blocks.enumerated() {
            for (name, tensor) in block.tensors { all["\(index).\(name)"] = tensor }
        }
        return all
    }
}
