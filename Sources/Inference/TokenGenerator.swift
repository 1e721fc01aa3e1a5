import SequenceModels
import Torch

/// Continues a sequence token by token: an endless iterator, each step at the cost of the model's `step` alone, whatever
/// came before for mixers with a state of constant size.
///
/// ```swift
/// let tokens = try TokenGenerator(model, prompt: ids, sampler: sampler)
/// for token in tokens.prefix(100) { … }
/// ```
public struct TokenGenerator: Sequence, IteratorProtocol {
    private let model: LanguageModel
    private let sampler: TokenSampler
    private var state: LanguageModelState
    private var logits: [Float]

    /// Tokens of the prompt taken up at once; bounds the memory that a long prompt needs.
    public static let prefillPiece = 1024

    /// Takes up the prompt.
    ///
    /// - Parameter prompt: at least one token id.
    /// - Throws: `ConfigurationError` when the model's mixer cannot stream.
    public init(_ model: LanguageModel, prompt: [Int], sampler: TokenSampler) throws {
        precondition(!prompt.isEmpty, "TokenGenerator: the prompt is empty")
        self.model = model
        self.sampler = sampler
        let initial = try model.initialState()
        var state = initial
        var logits = Tensor.zeros([1, model.vocabulary])
        withNoGrad {
            for start in stride(from: 0, to: prompt.count, by: Self.prefillPiece) {
                let piece = Array(prompt[start..<Swift.min(start + Self.prefillPiece, prompt.count)])
                logits = model.prefill(Tensor(piece, shape: [1, piece.count]), state: &state)
            }
        }
        self.logits = logits.to(.float32).scalars()
        compiled = model.compiledStep(state)
        // What a compiled step needs of the state it has taken over.
        self.state = compiled == nil ? state : initial
    }

    /// The number of tokens taken up: the prompt's and those generated, except the last.
    public var position: Int { compiled?.position ?? state.position }

    /// The next token's id. Never nil.
    public mutating func next() -> Int? {
        withNoGrad {
            if let pending { logits = logitsAfter(pending) }
            let token = sampler(logits)
            pending = token
            return token
        }
    }

    private mutating func logitsAfter(_ token: Int) -> [Float] {
        compiled?(token) ?? model.step(Tensor([token]), state: &state).to(.float32).scalars()
    }

    /// Drawn, but not yet taken up by the model: the last token asked for costs no step.
    private var pending: Int?

    /// The model's step without allocations, where it has one; `state` is then not used.
    private var compiled: CompiledStep?
}
