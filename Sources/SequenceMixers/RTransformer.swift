// R-Transformer. Wang, Ma, Liu, Tang 2019, "R-Transformer: Recurrent Neural Network Enhanced Transformer",
// arXiv 1907.05572. A block, every sub-layer with a norm of its own:
//
//   x = x + LocalRNN(norm(x))                       as often as there are local layers
//   x = x + attention(norm(x))                      causal
//   x = x + W₂ relu(W₁ norm(x) + b₁) + b₂
//
//   norm(x) = a (x - mean) / (s + ε) + b,  s² = Σ (x - mean)² / (d - 1)
//
// The local RNN carries the order of the tokens, so there are no positions. In the paper the attention is softmax's.
import Torch
import TorchNN

/// Local recurrence, then attention of any kind, then a feed-forward layer: a whole block.
///
/// The local RNN costs O(N M g modelDim²) for a window M and a cell of g gates; the rest is the attention's cost.
/// Streaming keeps M - 1 cell states a local layer, and what the attention keeps.
public final class RTransformerBlock: Module, ReferenceEvaluating, StreamingMixer {
    /// A local RNN and the norm before it.
    public final class LocalLayer: Module {
        public let norm: DeviationNorm
        public let rnn: LocalRNN

        init(_ rnn: LocalRNN, epsilon: Double) {
            norm = DeviationNorm(rnn.modelDim, epsilon: epsilon)
            self.rnn = rnn
            super.init()
        }
    }

    public let localLayers: [LocalLayer]
    /// Nil where the attention is a whole block itself.
    public let attentionNorm: DeviationNorm?
    public let attention: any SequenceMixer
    public let feedForwardNorm: DeviationNorm?
    public let up: Linear?
    public let down: Linear?
    public let dropout: Dropout
    private let modelDim: Int

    public var isCausal: Bool { true }
    public var isWholeBlock: Bool { true }

    public var usesReference = false {
        didSet {
            for layer in localLayers { layer.rnn.usesReference = usesReference }
            (attention as? any ReferenceEvaluating)?.usesReference = usesReference
        }
    }

    /// - Parameters:
    ///   - attention: any causal mixer of the same width.
    ///   - feedForwardDim: 0 for a block that ends with its attention.
    ///   - dropout: after each sub-layer, and between the layers of the feed-forward part.
    public init(
        _ localRNNs: [LocalRNN], attention: any SequenceMixer, modelDim: Int, feedForwardDim: Int,
        normEpsilon: Double = 1e-6, dropout: Double = 0, using generator: RandomGenerator
    ) {
        torchPrecondition(
            localRNNs.allSatisfy { $0.modelDim == modelDim }, in: "RTransformerBlock",
            "the local RNNs are of width \(localRNNs.map(\.modelDim)), not \(modelDim)")
        localLayers = localRNNs.map { LocalLayer($0, epsilon: normEpsilon) }
        attentionNorm = attention.isWholeBlock ? nil : DeviationNorm(modelDim, epsilon: normEpsilon)
        self.attention = attention
        let hasFeedForward = feedForwardDim > 0
        feedForwardNorm = hasFeedForward ? DeviationNorm(modelDim, epsilon: normEpsilon) : nil
        up = hasFeedForward ? Linear(modelDim, feedForwardDim, using: generator) : nil
        down = hasFeedForward ? Linear(feedForwardDim, modelDim, using: generator) : nil
        self.dropout = Dropout(dropout, using: generator)
        self.modelDim = modelDim
        super.init()
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: modelDim)
        return block(x) { _, rnn, y in
            rnn(y, paddingMask: paddingMask)
        } attend: { y in
            attention(y, paddingMask: paddingMask)
        }
    }

    /// The block's sums, around local RNNs and an attention on the whole sequence, on a piece of it, or on one token.
    private func block(
        _ x: Tensor, recur: (_ index: Int, LocalRNN, Tensor) -> Tensor, attend: (Tensor) -> Tensor
    ) -> Tensor {
        var y = x
        for (index, layer) in localLayers.enumerated() { y = y + dropout(recur(index, layer.rnn, layer.norm(y))) }
        if let attentionNorm { y = y + dropout(attend(attentionNorm(y))) } else { y = attend(y) }
        guard let feedForwardNorm, let up, let down else { return y }
        return y + dropout(down(dropout(up(feedForwardNorm(y)).relu())))
    }

    // MARK: Streaming

    public var canStream: Bool { (attention as? any StreamingMixer)?.canStream ?? false }

    public func initialState(batch: Int) -> RTransformerState {
        RTransformerState(
            local: localLayers.map { $0.rnn.initialState(batch: batch) },
            attention: canStream ? (attention as? any StreamingMixer)?.anyInitialState(batch: batch) : nil,
            batch: batch)
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout RTransformerState) -> Tensor {
        checkInput(x, paddingMask, modelDim: modelDim)
        checkBatch(x, state.batch)
        return streamed(x, &state) { rnn, y, state in
            rnn.prefill(y, paddingMask: paddingMask, state: &state)
        } attend: { mixer, y, state in
            mixer.prefill(y, paddingMask: paddingMask, anyState: &state)
        }
    }

    public func step(_ x: Tensor, state: inout RTransformerState) -> Tensor {
        checkStep(x, modelDim: modelDim, batch: state.batch)
        return streamed(x, &state) { rnn, y, state in
            rnn.step(y, state: &state)
        } attend: { mixer, y, state in
            mixer.step(y, anyState: &state)
        }
    }

    private func streamed(
        _ x: Tensor, _ state: inout RTransformerState, recur: (LocalRNN, Tensor, inout LocalRNNState) -> Tensor,
        attend: (any StreamingMixer, Tensor, inout any StreamingState) -> Tensor
    ) -> Tensor {
        torchPrecondition(
            canStream, in: "RTransformerBlock", "the attention, \(type(of: attention)), cannot stream as it was built")
        guard let mixer = attention as? any StreamingMixer, var ofAttention = state.attention else { return x }
        var local = state.local
        let y = block(x) { index, rnn, y in
            recur(rnn, y, &local[index])
        } attend: { y in
            attend(mixer, y, &ofAttention)
        }
        state.local = local
        state.attention = ofAttention
        return y
    }
}

/// What a block of the R-Transformer remembers.
public struct RTransformerState: StreamingState {
    /// Of each local layer.
    var local: [LocalRNNState]
    /// Nil where the attention cannot stream.
    var attention: (any StreamingState)?
    let batch: Int

    public var tensors: [String: Tensor] {
        var all: [String: Tensor] = [:]
        for (index, state) in local.enumerated() {
            for (name, tensor) in state.tensors { all["local.\(index).\(name)"] = tensor }
        }
        for (name, tensor) in attention?.tensors ?? [:] { all["attention.\(name)"] = tensor }
        return all
    }
}

/// weight (x - mean) / (s + ε) + bias over the last dimension, s the unbiased standard deviation: divided by d - 1, and
/// ε added to it rather than to the variance.
public final class DeviationNorm: Module, Normalizing {
    /// `[dim]`, ones at first.
    public let weight: Parameter
    /// `[dim]`, zeros at first.
    public let bias: Parameter
    public let dim: Int
    public let epsilon: Double

    public init(_ dim: Int, epsilon: Double = 1e-6) {
        torchPrecondition(
            dim > 0 && epsilon > 0 && epsilon.isFinite, in: "DeviationNorm",
            "expected a size and an epsilon above 0, got \(dim) and \(epsilon)")
        self.dim = max(dim, 1)
        self.epsilon = epsilon
        weight = Parameter(.ones([self.dim]))
        bias = Parameter(.zeros([self.dim]))
        super.init()
    }

    /// x `[…, dim]` → the same shape. A vector of equal numbers becomes the bias; one of length 1, too.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        torchPrecondition(
            x.shape.last == dim, in: "DeviationNorm", "expected an input [..., \(dim)], got \(x.shape)")
        let centered = x - x.mean(-1, keepDim: true)
        let deviation = centered.safeNorm(-1) / Double(max(dim - 1, 1)).squareRoot()
        return centered / (deviation + epsilon) * weight.value + bias.value
    }
}

// MARK: - In the catalogue

/// Options of `r-transformer` in a recipe.
public struct RTransformerOptions: MixerOptions {
    public var rnn: RecurrentCell = .gru
    /// M, the tokens a cell reads, the current one included.
    public var window = 7
    /// Local RNNs before the attention, each with its own norm and sum.
    public var localLayers = 1
    /// Any causal mixer of the catalogue; left out, softmax, as in the paper.
    public var attention: MixerConfiguration?
    /// Hidden width of the block's own feed-forward layer; left out, four times modelDim. 0 leaves it to the model.
    public var feedForwardDim: Int?
    public var dropout = 0.0
    /// ε of the norms.
    public var normEpsilon = 1e-6

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        rnn = try container.decodeIfPresent(RecurrentCell.self, forKey: .rnn) ?? rnn
        window = try container.decodeIfPresent(Int.self, forKey: .window) ?? window
        localLayers = try container.decodeIfPresent(Int.self, forKey: .localLayers) ?? localLayers
        attention = try container.decodeIfPresent(MixerConfiguration.self, forKey: .attention)
        feedForwardDim = try container.decodeIfPresent(Int.self, forKey: .feedForwardDim)
        dropout = try container.decodeIfPresent(Double.self, forKey: .dropout) ?? dropout
        normEpsilon = try container.decodeIfPresent(Double.self, forKey: .normEpsilon) ?? normEpsilon
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer { try buildBlock(context) }

    func buildBlock(_ context: MixerContext) throws -> RTransformerBlock {
        try refuseOutOfRange()
        guard context.isCausal else {
            throw ConfigurationError(
                "r-transformer: the local RNN reads the past only, so there is no bidirectional form")
        }
        let local = (0..<localLayers).map { _ in
            LocalRNN(rnn, window: window, modelDim: context.modelDim, using: context.generator)
        }
        return RTransformerBlock(
            local, attention: try (attention ?? MixerConfiguration("softmax")).build(context),
            modelDim: context.modelDim, feedForwardDim: feedForwardDim ?? 4 * context.modelDim,
            normEpsilon: normEpsilon, dropout: dropout, using: context.generator)
    }

    private func refuseOutOfRange() throws {
        // Beyond the upper bounds no machine could hold or finish the model.
        for (name, value, range) in [
            ("window", window, 1...1_000_000), ("localLayers", localLayers, 1...1000),
            ("feedForwardDim", feedForwardDim ?? 0, 0...10_000_000),
        ] where !range.contains(value) {
            let bound = value < range.lowerBound ? "at least \(range.lowerBound)" : "at most \(range.upperBound)"
            throw ConfigurationError("r-transformer: \(name) must be \(bound), not \(value)")
        }
        guard (0..<1).contains(dropout) else {
            throw ConfigurationError("r-transformer: dropout must be at least 0 and below 1, not \(dropout)")
        }
        guard normEpsilon > 0, normEpsilon.isFinite else {
            throw ConfigurationError("r-transformer: normEpsilon must be above 0, not \(normEpsilon)")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "r-transformer", title: "R-Transformer",
        paper: Paper(
            "R-Transformer: Recurrent Neural Network Enhanced Transformer", authors: "Wang et al.", year: 2019,
            arXiv: "1907.05572"),
        causal: true, bidirectional: false, padding: true, crossAttention: false, streaming: .growing,
        time: "O(N² D + N M D²)", memory: "O(N M D)",
        remark: """
            a whole block, feed-forward layer included, so its model takes feedForwardDim: 0. The paper's attention is \
            quadratic and its state grows; with attention: {name: linear} both are linear attention's. The local RNN \
            alone is O(N M D²) and keeps M - 1 states.
            """,
        options: RTransformerOptions.self, golden: { try goldenSubject($0) })
}

// MARK: - Golden files

extension RTransformerOptions {
    /// The blocks one after the other: no embedding, no last norm.
    private final class Stack: Module {
        let blocks: [RTransformerBlock]

        init(_ blocks: [RTransformerBlock]) {
            self.blocks = blocks
            super.init()
        }
    }

    private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        try golden.expect(variants: ["local-rnn", "block", "stack"])
        let settings = golden.settings
        guard try settings.bool("causal") else {
            throw ConfigurationError("setting 'causal' is false, but the local RNN reads the past only")
        }
        _ = try settings.double("dropout", or: 0, expecting: [0])
        let x = try golden.tensor("x")
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        let mask = try golden.paddingMask()
        let options = try goldenOptions(settings)
        let generator = RandomGenerator(seed: 0)
        if golden.variant == "local-rnn" {
            try options.refuseOutOfRange()
            let rnn = LocalRNN(options.rnn, window: options.window, modelDim: x.size(2), using: generator)
            return .evaluation(GoldenEvaluation(rnn, paddingMask: mask, parameterName: propertyPath))
        }
        let context = try MixerContext(
            modelDim: x.size(2), heads: settings.int("heads"), isCausal: true, generator: generator)
        try golden.check("head_dim", context.headDim)
        let count = try settings.int("blocks")
        guard count > 0, golden.variant == "stack" || count == 1 else {
            throw ConfigurationError("setting 'blocks' is \(count), which no \(golden.variant) has")
        }
        let stack = Stack(try (0..<count).map { _ in try options.buildBlock(context) })
        let prefix = golden.variant == "stack" ? "" : "blocks.0."
        return .evaluation(
            GoldenEvaluation(stack, parameterName: { prefix + propertyPath($0) }) { inputs, usesReference in
                var y = inputs[0]
                for block in stack.blocks {
                    block.usesReference = usesReference
                    y = block(y, paddingMask: mask)
                }
                return ["out": y]
            })
    }

    private static func goldenOptions(_ settings: GoldenSettings) throws -> RTransformerOptions {
        var options = RTransformerOptions()
        let name = try settings.string("rnn", or: "GRU", expecting: ["GRU", "LSTM", "RNN"])
        let others: [String: RecurrentCell] = ["LSTM": .lstm, "RNN": .plain]
        options.rnn = others[name] ?? .gru
        options.window = try settings.int("window")
        options.localLayers = try settings.optionalInt("local_layers") ?? 1
        options.feedForwardDim = try settings.optionalInt("ff_dim")
        options.normEpsilon = try settings.optionalDouble("layer_norm_eps") ?? options.normEpsilon
        return options
    }

    /// The place of a file's parameter in a block.
    private static func propertyPath(_ name: String) -> String {
        let parts = [
            ("weight_ih", "inputWeight"), ("weight_hh", "hiddenWeight"), ("bias_ih", "inputBias"),
            ("bias_hh", "hiddenBias"), ("local.", "localLayers."), ("attention.norm.", "attentionNorm."),
            ("attention.w_q", "attention.query.weight"), ("attention.b_q", "attention.query.bias"),
            ("attention.w_k", "attention.key.weight"), ("attention.b_k", "attention.key.bias"),
            ("attention.w_v", "attention.value.weight"), ("attention.b_v", "attention.value.bias"),
            ("attention.w_o", "attention.output.weight"), ("attention.b_o", "attention.output.bias"),
            ("ff.norm.", "feedForwardNorm."), ("ff.w1", "up.weight"), ("ff.b1", "up.bias"), ("ff.w2", "down.weight"),
            ("ff.b2", "down.bias"),
        ]
        return parts.reduce(name) { $0.replacing($1.0, with: $1.1) }
    }
}
