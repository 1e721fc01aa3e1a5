// Mega and Mega-chunk. Ma, Zhou, Kong, He, Gui, Neubig, May, Zettlemoyer 2022, "Mega: Moving Average Equipped Gated
// Attention", arXiv 2209.10655. Where the authors' code differs from the paper, the code is followed. For x [n, d], and
// x~ = norm(x) or x itself:
//
//   X' = EMA(x~)                                         MegaEMA
//   Z  = silu(X' Wz + bz),  Q = Z κ_q + μ_q,  K = Z κ_k + μ_k,  V = silu(x~ Wv + bv)
//   O  = A V                                             MegaAttention
//   u  = sigmoid(X' Wu + bu),  r = silu(X' Wr + br)
//   H  = silu(X' Wh + bh + (r ⊙ O) Uh + bu')
//   out = x + u ⊙ (H - x), and norm(out) if x~ was x
//
// followed by the block's own feed-forward layer where it has one.
import Torch
import TorchNN

/// Single-head gated attention whose queries and keys see a moving average: a whole block, with its norm, its gated
/// residual connection and, if wanted, its feed-forward layer.
///
/// Time O(N c (z + v)) with chunks of c and O(N² (z + v)) without, besides O(N d h) for the average; memory
/// O(N (d + v)). Streaming keeps d h numbers and the keys and values of the present chunk, or without chunks of all
/// tokens.
public final class Mega: Module, StreamingMixer, ReferenceEvaluating {
    public let ema: MegaEMA
    public let attention: MegaAttention
    /// Wv.
    public let value: Linear
    /// Wz, of what queries and keys have in common.
    public let shared: Linear
    /// κ `[2, z]`: of the queries, and of the keys.
    public let queryKeyScale: Parameter
    /// μ `[2, z]`.
    public let queryKeyOffset: Parameter
    /// Wu.
    public let updateGate: Linear
    /// Wr.
    public let resetGate: Linear
    /// Wh.
    public let candidateFromAverage: Linear
    /// Uh.
    public let candidateFromAttention: Linear
    let norm: any MaskedNormalizing
    let feedForward: MegaFeedForward?
    public let settings: Settings

    /// Evaluates the average token by token and the attention with all of its weights.
    public var usesReference = false

    private let dropout: MegaDropout
    private let hiddenDropout: MegaDropout

    /// The sizes and the choices of a block.
    public struct Settings: Sendable {
        public var modelDim: Int
        /// z, even for rotary biases.
        public var queryDim: Int
        /// v.
        public var valueDim: Int
        /// h.
        public var emaDim = 16
        public var attention = MegaAttentionFunction.softmax
        public var relativeBias = MegaBias.simple
        /// c; nil for attention over the whole sequence.
        public var chunk: Int?
        /// What a simple bias is made for: distances below this.
        public var maximumLength: Int
        /// Taps of the moving average; nil for all.
        public var truncation: Int?
        /// Whether the average runs in both directions.
        public var isBidirectional: Bool
        public var hasCausalAttention: Bool
        public var norm = MegaNorm.layerNorm
        public var isPrenorm = true
        /// Of the block's own feed-forward layer; 0 for none.
        public var feedForwardDim = 0
        /// Of the moving average, the candidate H and the feed-forward layer's output.
        public var dropout = 0.0
        /// Of V and the feed-forward layer's hidden values.
        public var hiddenDropout = 0.0
        public var attentionDropout = 0.0
        /// Whether dropout, but for that of the attention, drops a feature in the whole sequence.
        public var dropsFeatures = false

        /// - Parameter maximumLength: of a simple bias; with chunks, the chunk's where left out.
        public init(
            modelDim: Int, queryDim: Int, valueDim: Int, chunk: Int?, maximumLength: Int? = nil, isCausal: Bool
        ) {
            self.modelDim = modelDim
            self.queryDim = queryDim
            self.valueDim = valueDim
            self.chunk = chunk
            self.maximumLength = maximumLength ?? chunk ?? 1
            isBidirectional = !isCausal
            hasCausalAttention = isCausal
        }

        func makeDropout(_ probability: Double, _ generator: RandomGenerator) -> MegaDropout {
            MegaDropout(probability, dropsFeatures: dropsFeatures, using: generator)
        }
    }

    public init(_ settings: Settings, using generator: RandomGenerator) {
        self.settings = settings
        let (d, z, v) = (settings.modelDim, settings.queryDim, settings.valueDim)
        torchPrecondition(
            d > 0 && z > 0 && v > 0, in: "Mega",
            "expected positive sizes, got modelDim \(d), queryDim \(z), valueDim \(v)")
        norm = settings.norm.make(d)
        ema = MegaEMA(
            modelDim: d, emaDim: settings.emaDim, isBidirectional: settings.isBidirectional,
            truncation: settings.truncation, using: generator)
        value = .mega(d, v, using: generator)
        shared = .mega(d, z, using: generator)
        queryKeyScale = Parameter(Tensor.randomNormal([2, z], using: generator) * 0.02)
        queryKeyOffset = Parameter(.zeros([2, z]))
        updateGate = .mega(d, d, using: generator)
        resetGate = .mega(d, v, using: generator)
        candidateFromAverage = .mega(d, d, using: generator)
        candidateFromAttention = .mega(v, d, using: generator)
        let bias = MegaRelativeBias(
            settings.relativeBias, queryDim: z, maximumLength: settings.maximumLength, using: generator)
        attention = MegaAttention(
            settings.attention, relativeBias: bias, isCausal: settings.hasCausalAttention, chunk: settings.chunk,
            dropout: settings.attentionDropout, using: generator)
        feedForward = settings.feedForwardDim > 0 ? MegaFeedForward(settings, using: generator) : nil
        dropout = settings.makeDropout(settings.dropout, generator)
        hiddenDropout = settings.makeDropout(settings.hiddenDropout, generator)
        super.init()
    }

    public var isCausal: Bool { settings.hasCausalAttention && !settings.isBidirectional }
    public var isWholeBlock: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: settings.modelDim)
        guard fits(x, paddingMask) else { return x }
        return block(x, paddingMask) {
            ema($0, paddingMask: paddingMask, form: usesReference ? .recurrent : nil)
        } attend: {
            usesReference
                ? attention.reference($0, $1, $2, paddingMask: paddingMask)
                : attention($0, $1, $2, paddingMask: paddingMask)
        }
    }

    /// The equations around the average and the attention.
    private func block(
        _ x: Tensor, _ paddingMask: Tensor?, average: (Tensor) -> Tensor,
        attend: (_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor
    ) -> Tensor {
        let input = settings.isPrenorm ? norm(x, paddingMask: paddingMask) : x
        let averaged = dropout(average(input))
        let z = shared(averaged).silu()
        let queriesAndKeys = (0..<2).map {
            z * queryKeyScale.value.selected(0, $0) + queryKeyOffset.value.selected(0, $0)
        }
        let attended = attend(queriesAndKeys[0], queriesAndKeys[1], hiddenDropout(value(input).silu()))
        let joined = gated(x, averaged, attended)
        let out = settings.isPrenorm ? joined : norm(joined, paddingMask: paddingMask)
        return feedForward.map { $0(out, paddingMask: paddingMask) } ?? out
    }

    /// x + u ⊙ (H - x), in a pass over memory for each gate where nothing is dropped between.
    private func gated(_ x: Tensor, _ averaged: Tensor, _ attended: Tensor) -> Tensor {
        let (reset, update) = (resetGate(averaged), updateGate(averaged))
        guard !usesReference, !(isTraining && settings.dropout > 0) else {
            let fromAttention = candidateFromAttention(reset.silu() * attended)
            let candidate = dropout((candidateFromAverage(averaged) + fromAttention).silu())
            return x + update.sigmoid() * (candidate - x)
        }
        let fromAttention = candidateFromAttention(gatedProduct(reset, .silu, attended))
        return gatedResidual(x, gate: update, candidateFromAverage(averaged), fromAttention)
    }

    /// Whether the shapes are right, for code that follows a check that failed.
    private func fits(_ x: Tensor, _ paddingMask: Tensor?) -> Bool {
        let shape = x.shape
        guard shape.count == 3, !shape.contains(0), shape[2] == settings.modelDim else { return false }
        return paddingMask.map { $0.shape == Array(shape.dropLast()) } ?? true
    }

    // MARK: Streaming

    public func initialState(batch: Int) -> MegaState {
        MegaState(
            average: ema.initialState(batch: batch),
            cache: attention.initialCache(
                batch: batch, queryDim: settings.queryDim, valueDim: settings.valueDim, like: value.weight.value))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout MegaState) -> Tensor {
        checkInput(x, paddingMask, modelDim: settings.modelDim)
        checkBatch(x, state.cache.positions.count)
        torchPrecondition(canStream, in: "Mega.prefill", "a layer that looks ahead cannot stream")
        guard canStream, fits(x, paddingMask), x.size(0) == state.cache.positions.count else { return x }
        let lengths = paddingMask.map(realLengths) ?? state.cache.positions.map { _ in x.size(1) }
        return continued(x, paddingMask, lengths, &state)
    }

    public func step(_ x: Tensor, state: inout MegaState) -> Tensor {
        let batch = state.cache.positions.count
        checkStep(x, modelDim: settings.modelDim, batch: batch)
        torchPrecondition(canStream, in: "Mega.step", "a layer that looks ahead cannot stream")
        guard canStream, x.shape == [batch, settings.modelDim] else { return x }
        return continued(x.unsqueezed(1), nil, Array(repeating: 1, count: batch), &state).squeezed(1)
    }

    private func continued(_ x: Tensor, _ paddingMask: Tensor?, _ lengths: [Int], _ state: inout MegaState) -> Tensor {
        block(x, paddingMask) {
            ema.continued($0, paddingMask, lengths, &state.average)
        } attend: {
            attention.continued($0, $1, $2, paddingMask, lengths, &state.cache)
        }
    }
}

// MARK: - In the catalogue

/// Options of `mega` in a recipe.
public struct MegaOptions: MixerOptions {
    public var attention: MegaAttentionFunction = .softmax
    public var relativeBias: MegaBias = .simple
    /// c of Mega-chunk; 0 for attention over the whole sequence, as in plain Mega.
    public var chunk = 128
    /// Of a simple bias without chunks: the longest sequence; left out, the model's.
    public var maximumLength: Int?
    /// z; left out, half of the model's width, rounded up to an even number.
    public var queryDim: Int?
    /// v; left out, twice the model's width.
    public var valueDim: Int?
    /// h.
    public var emaDim = 16
    /// Taps of the moving average; left out, all.
    public var truncation: Int?
    public var norm: MegaNorm = .layerNorm
    /// Whether the block normalizes what goes in, or else what comes out.
    public var prenorm = true
    /// Width of the block's own feed-forward layer; 0 for none, which leaves it to the model.
    public var feedForwardDim = 0
    /// Of the moving average, the candidate and the feed-forward layer's output.
    public var dropout = 0.0
    /// Of the values and the feed-forward layer's hidden values.
    public var hiddenDropout = 0.0
    public var attentionDropout = 0.0
    /// Whether `dropout` and `hiddenDropout` drop a feature in the whole sequence.
    public var featureDropout = false

    public init() {}

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        attention = try values.value(.attention, default: attention)
        relativeBias = try values.value(.relativeBias, default: relativeBias)
        chunk = try values.value(.chunk, default: chunk)
        maximumLength = try values.decodeIfPresent(Int.self, forKey: .maximumLength)
        queryDim = try values.decodeIfPresent(Int.self, forKey: .queryDim)
        valueDim = try values.decodeIfPresent(Int.self, forKey: .valueDim)
        emaDim = try values.value(.emaDim, default: emaDim)
        truncation = try values.decodeIfPresent(Int.self, forKey: .truncation)
        norm = try values.value(.norm, default: norm)
        prenorm = try values.value(.prenorm, default: prenorm)
        feedForwardDim = try values.value(.feedForwardDim, default: feedForwardDim)
        dropout = try values.value(.dropout, default: dropout)
        hiddenDropout = try values.value(.hiddenDropout, default: hiddenDropout)
        attentionDropout = try values.value(.attentionDropout, default: attentionDropout)
        featureDropout = try values.value(.featureDropout, default: featureDropout)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try refuseOutOfRange()
        try refuseIgnored()
        let half = (context.modelDim + 1) / 2
        var settings = Mega.Settings(
            modelDim: context.modelDim, queryDim: queryDim ?? half + half % 2,
            valueDim: valueDim ?? 2 * context.modelDim, chunk: chunk > 0 ? chunk : nil,
            maximumLength: try biasLength(context), isCausal: context.isCausal)
        if relativeBias == .rotary && !settings.queryDim.isMultiple(of: 2) {
            throw ConfigurationError("mega: relativeBias rotary needs an even queryDim, not \(settings.queryDim)")
        }
        if norm == .batchNorm && context.isCausal {
            throw ConfigurationError(
                "mega: norm batch-norm takes averages over whole sequences, so a causal model cannot have it")
        }
        settings.emaDim = emaDim
        settings.attention = attention
        settings.relativeBias = relativeBias
        settings.truncation = truncation
        settings.norm = norm
        settings.isPrenorm = prenorm
        settings.feedForwardDim = feedForwardDim
        settings.dropout = dropout
        settings.hiddenDropout = hiddenDropout
        settings.attentionDropout = attentionDropout
        settings.dropsFeatures = featureDropout
        return Mega(settings, using: context.generator)
    }

    /// nil where the bias needs none.
    private func biasLength(_ context: MixerContext) throws -> Int? {
        guard relativeBias == .simple && chunk == 0 else { return nil }
        guard let length = maximumLength ?? context.maximumLength else {
            throw ConfigurationError(
                "mega: relativeBias simple without chunks needs a maximumLength; give one, or relativeBias rotary"
            )
        }
        return length
    }

    private func refuseOutOfRange() throws {
        // Beyond the upper ends no machine could hold the weights.
        let sizes: [(name: String, value: Int?, lowest: Int)] = [
            ("chunk", chunk, 0), ("maximumLength", maximumLength, 1), ("queryDim", queryDim, 1),
            ("valueDim", valueDim, 1), ("emaDim", emaDim, 1), ("truncation", truncation, 1),
            ("feedForwardDim", feedForwardDim, 0),
        ]
        for (name, value, lowest) in sizes {
            if let value, !(lowest...10_000_000).contains(value) {
                throw ConfigurationError("mega: \(name) must be from \(lowest) to 10000000, not \(value)")
            }
        }
        let probabilities = [
            ("dropout", dropout), ("hiddenDropout", hiddenDropout), ("attentionDropout", attentionDropout),
        ]
        for (name, value) in probabilities where !(0..<1).contains(value) {
            throw ConfigurationError("mega: \(name) must be at least 0 and below 1, not \(value)")
        }
    }

    private func refuseIgnored() throws {
        if maximumLength != nil && (relativeBias != .simple || chunk > 0) {
            throw ConfigurationError(
                "mega: maximumLength would be ignored: it belongs to relativeBias simple without chunks")
        }
        if featureDropout && dropout == 0 && hiddenDropout == 0 {
            throw ConfigurationError("mega: featureDropout would be ignored: dropout and hiddenDropout are 0")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "mega", title: "Mega",
        paper: Paper(
            "Mega: Moving Average Equipped Gated Attention", authors: "Ma et al.", year: 2022, arXiv: "2209.10655"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .growing,
        time: "O(N C D)", memory: "O(N D)",
        remark: """
            C is the chunk. With chunks the streaming state is bounded: the average, and the keys and values of one \
            chunk. With chunk: 0 attention is over the whole sequence: time O(N² D), and the state grows. The block \
            has a single head whatever heads says, and its own norm and gated residual connection. The average decays over \
            padding between real tokens, and padding on the left moves the chunks.
            """,
        options: MegaOptions.self, golden: { try goldenSubject($0) })
}
