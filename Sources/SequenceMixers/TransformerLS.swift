// Long-short attention. Zhu, Ping, Xiao, Shoeybi, Goldstein, Anandkumar, Catanzaro 2021, "Long-Short Transformer: Efficient
// Transformers for Language and Vision", arXiv 2107.02192, and the authors' code where the two differ.
//
// One softmax goes over a short window of keys and over few long-range ones, each a mixture of many positions that the content
// chooses ("dynamic projection"); a norm for either kind puts both on one scale ("DualLN"). With r mixtures a head:
//
//   P_a(t) = softmax_t (x_t W_Pᵀ + b_P)_a,   k̄_a = LN_long(Σ_t P_a(t) k_t),   v̄_a likewise
//   out_i  = softmax_j(q_i·[k̄ ; k_window(i)] / √d) [v̄ ; v_window(i)],   k_window = LN_window(k), v_window likewise
//
// The norms are over all heads together. Bidirectional, the mixtures are of the normalized keys of all positions; on a grid the
// windows have two dimensions. Causal, they are of the raw keys of every closed segment of C positions, seen from the segments
// after it, and distances enter the scores as in Transformer-XL.
import Torch
import TorchNN

/// The projections and norms that both kinds of long-short attention have.
public final class LongShortProjections: Module {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    /// W_P `[heads · rank, modelDim]` and b_P, which cancels.
    public let mixture: Linear
    public let windowNorm: LayerNorm
    public let longNorm: LayerNorm
    let heads: Int
    let rank: Int

    init(modelDim: Int, heads: Int, rank: Int, bias: Bool, epsilon: Double, using generator: RandomGenerator) {
        self.heads = heads
        self.rank = rank
        query = Linear(modelDim, modelDim, bias: bias, using: generator)
        key = Linear(modelDim, modelDim, bias: bias, using: generator)
        value = Linear(modelDim, modelDim, bias: bias, using: generator)
        output = Linear(modelDim, modelDim, bias: bias, using: generator)
        mixture = Linear(modelDim, heads * rank, using: generator)
        windowNorm = LayerNorm(modelDim, epsilon: epsilon)
        longNorm = LayerNorm(modelDim, epsilon: epsilon)
        super.init()
        for linear in [query, key, value, output, mixture] { Self.initialize(linear, generator) }
        for norm in [windowNorm, longNorm] {
            norm.weight.value = 1 + Tensor.randomNormal([modelDim], using: generator) * 0.02
        }
    }

    /// As the authors do, whatever the layer.
    static func initialize(_ linear: Linear, _ generator: RandomGenerator) {
        Initializer.normal(deviation: 0.02).apply(to: linear.weight, using: generator)
        if let bias = linear.bias { Initializer.zeros.apply(to: bias, using: generator) }
    }

    var modelDim: Int { query.inputs }
    var headDim: Int { modelDim / heads }

    /// The queries, scaled: `[batch, heads, n, headDim]`.
    func queries(_ x: Tensor) -> Tensor { query(x).splitHeads(heads) / Double(headDim).squareRoot() }

    /// P before its softmax: `[batch, heads, rank, n]`.
    func mixtureLogits(_ x: Tensor) -> Tensor {
        mixture(x).transposed(1, 2).reshaped(x.size(0), heads, rank, x.size(1))
    }

    /// LN_long of the mixtures, head by head: `[batch, heads, n, headDim]` to the same shape.
    func long(_ mixtures: Tensor) -> Tensor { longNorm(mixtures.mergedHeads()).splitHeads(heads) }
}

extension SequenceMixer {
    /// Whether x and its mask are what a layer takes. Where a report of misuse does not end the program, nothing else may.
    func isInput(_ x: Tensor, _ paddingMask: Tensor?, modelDim: Int) -> Bool {
        let shape = x.shape
        return shape.count == 3 && shape[2] == modelDim && !shape.contains(0)
            && (paddingMask.map { $0.shape == [shape[0], shape[1]] && $0.dtype == .bool } ?? true)
    }
}

/// softmax over the last dimension where `isReal`, zeros where nothing is; `isReal` may be nil: everything.
func mixtureWeights(_ logits: Tensor, _ isReal: Tensor?) -> Tensor {
    guard let isReal else { return logits.to(logits.dtype.accumulator).softmax().to(logits.dtype) }
    return visibleSoftmax(logits, isReal).to(logits.dtype)
}

// MARK: - In the catalogue

/// Whether the causal form of long-short attention knows distances.
public enum LongShortPositionKind: String, NamedChoice {
    case transformerXL = "transformer-xl"
    case none
}

/// Options of `transformer-ls` in a recipe.
public struct TransformerLSOptions: MixerOptions {
    /// Causal: how many keys a query sees, its own included (left out, 128). Bidirectional: how many queries share their keys,
    /// which reach half as far again on either side (left out, 8). On a grid: the side of a tile (left out, 7).
    public var window: Int?
    /// r: mixtures a head, causal for every segment; left out, 1 causal and 32 bidirectional.
    public var rank: Int?
    /// C, causal only: positions in a segment; left out, 16.
    public var chunk: Int?
    /// Causal only; left out, `transformer-xl`.
    public var positions: LongShortPositionKind?
    /// Bidirectional only: the first token sees everything and is seen by all.
    public var cls: Bool?
    /// Bidirectional only: the tokens are a grid of side × side, row by row, after `globalTokens` others.
    public var side: Int?
    /// With `side` only; left out, 1.
    public var globalTokens: Int?
    public var epsilon = 1e-5

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        window = try container.decodeIfPresent(Int.self, forKey: .window)
        rank = try container.decodeIfPresent(Int.self, forKey: .rank)
        chunk = try container.decodeIfPresent(Int.self, forKey: .chunk)
        positions = try container.decodeIfPresent(LongShortPositionKind.self, forKey: .positions)
        cls = try container.decodeIfPresent(Bool.self, forKey: .cls)
        side = try container.decodeIfPresent(Int.self, forKey: .side)
        globalTokens = try container.decodeIfPresent(Int.self, forKey: .globalTokens)
        epsilon = try container.decodeIfPresent(Double.self, forKey: .epsilon) ?? epsilon
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try refuseOutOfRange()
        try refuseIgnored(isCausal: context.isCausal)
        guard context.isCausal else { return try bidirectional(context) }
        let (window, chunk) = (window ?? 128, chunk ?? 16)
        guard window >= chunk else {
            throw ConfigurationError(
                "transformer-ls: window \(window) is below chunk \(chunk), so some tokens would be seen neither in the window "
                    + "nor in a closed segment")
        }
        return CausalLongShortAttention(
            modelDim: context.modelDim, heads: context.heads, window: window, chunk: chunk, rank: rank ?? 1,
            positions: positions ?? .transformerXL, epsilon: epsilon, using: context.generator)
    }

    private func bidirectional(_ context: MixerContext) throws -> LongShortAttention {
        if let side, let maximum = context.maximumLength, side * side + (globalTokens ?? 1) > maximum {
            throw ConfigurationError(
                "transformer-ls: side \(side) with \(globalTokens ?? 1) global tokens is more than the model's \(maximum) tokens"
            )
        }
        let shape: LongShortAttention.Shape =
            if let side { .grid(side: side, globalTokens: globalTokens ?? 1) } else { .sequence(cls: cls ?? false) }
        return LongShortAttention(
            modelDim: context.modelDim, heads: context.heads, window: window ?? (side == nil ? 8 : 7), rank: rank ?? 32,
            shape: shape, epsilon: epsilon, using: context.generator)
    }

    private func refuseOutOfRange() throws {
        let bounds = [
            ("window", window, 1), ("rank", rank, 1), ("chunk", chunk, 1), ("side", side, 1),
            ("globalTokens", globalTokens, 0),
        ]
        for (name, value, lowest) in bounds {
            if let value, !(lowest...1 << 20).contains(value) {
                throw ConfigurationError("transformer-ls: \(name) must be \(lowest) to \(1 << 20), not \(value)")
            }
        }
        guard epsilon >= 0, epsilon.isFinite else {
            throw ConfigurationError("transformer-ls: epsilon must be finite and not negative, is \(epsilon)")
        }
    }

    /// An option that the form has no use for is a mistake.
    private func refuseIgnored(isCausal: Bool) throws {
        let ignored: [(name: String, isIgnored: Bool, by: String)] = [
            ("chunk", chunk != nil && !isCausal, "only the causal form has segments"),
            ("positions", positions != nil && !isCausal, "only the causal form knows distances"),
            ("cls", cls != nil && isCausal, "a token that sees everything is bidirectional"),
            ("side", side != nil && isCausal, "a grid is bidirectional"),
            ("globalTokens", globalTokens != nil && side == nil, "it belongs to a grid, with side"),
            ("cls", cls != nil && side != nil, "a grid has globalTokens"),
        ]
        if let option = ignored.first(where: \.isIgnored) {
            throw ConfigurationError("transformer-ls: \(option.name) would be ignored: \(option.by)")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "transformer-ls", title: "Long-short attention",
        paper: Paper(
            "Long-Short Transformer: Efficient Transformers for Language and Vision", authors: "Zhu et al.", year: 2021,
            arXiv: "2107.02192"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .growing,
        time: "O(N (w + r) D), causal O(N (w + N r / C) D)", memory: "O(N (w + r) D)",
        remark:
            "Causal, compressed keys grow by r for every C tokens, and so does the streaming state. Windows and segments "
            + "stand at fixed positions, so padding before a token moves it.",
        options: TransformerLSOptions.self, golden: { try .evaluation(goldenEvaluation($0)) })
}

// MARK: - Golden files

extension TransformerLSOptions {
    private static func goldenEvaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        try golden.expect(variants: ["causal", "bidirectional", "image"])
        let settings = golden.settings
        _ = try settings.string("kind", or: "layer", expecting: ["layer"])
        let x = try golden.tensor("x")
        let (modelDim, heads) = (x.size(2), try settings.int("heads"))
        guard heads > 0, modelDim.isMultiple(of: heads) else {
            throw ConfigurationError("model_dim \(modelDim) is not a multiple of heads \(heads)")
        }
        for (key, size) in [
            ("batch", x.size(0)), ("length", x.size(1)), ("model_dim", modelDim), ("head_dim", modelDim / heads),
        ] {
            try golden.check(key, size)
        }
        let isCausal = try settings.bool("causal")
        guard isCausal == (golden.variant == "causal") else {
            throw ConfigurationError("setting 'causal' is \(isCausal), which variant '\(golden.variant)' is not")
        }
        return isCausal ? try goldenCausal(golden, modelDim, heads) : try goldenBidirectional(golden, modelDim, heads)
    }

    private static func positive(_ key: String, _ settings: GoldenSettings) throws -> Int {
        let value = try settings.int(key)
        guard value > 0 else { throw ConfigurationError("setting '\(key)' is \(value); it should be above 0") }
        return value
    }

    private static func goldenCausal(_ golden: GoldenCase, _ modelDim: Int, _ heads: Int) throws -> GoldenEvaluation {
        let settings = golden.settings
        let name = try settings.optionalString("positions") ?? "transformer-xl"
        guard let positions = LongShortPositionKind(rawValue: name) else {
            throw ConfigurationError("unknown positions '\(name)'")
        }
        let chunk = try positive("chunk", settings)
        let layer = CausalLongShortAttention(
            modelDim: modelDim, heads: heads, window: try positive("window", settings), chunk: chunk,
            rank: try positive("rank", settings), positions: positions,
            epsilon: try settings.optionalDouble("layer_norm_eps") ?? 1e-5, using: RandomGenerator(seed: 0))
        let mask = try golden.paddingMask()
        let cacheLength = try settings.optionalInt("cache_length") ?? 0
        if cacheLength > 0 { try golden.check("cache_length", golden.tensor("cache").size(1)) }
        guard cacheLength >= 0, cacheLength.isMultiple(of: chunk) else {
            throw ConfigurationError("setting 'cache_length' is \(cacheLength), no multiple of chunk \(chunk)")
        }
        return GoldenEvaluation(layer, inputs: cacheLength > 0 ? ["x", "cache"] : ["x"], parameterName: rename) {
            layer.usesReference = $1
            return ["out": layer($0[0], cache: $0.count > 1 ? $0[1] : nil, paddingMask: mask)]
        }
    }

    private static func goldenBidirectional(_ golden: GoldenCase, _ modelDim: Int, _ heads: Int) throws
        -> GoldenEvaluation
    {
        let settings = golden.settings
        let shape: LongShortAttention.Shape
        if golden.variant == "image" {
            let (side, globals) = (try positive("side", settings), try settings.optionalInt("global_tokens") ?? 1)
            guard globals >= 0, try golden.tensor("x").size(1) == side * side + globals else {
                throw ConfigurationError("side \(side) and \(globals) global_tokens do not make the length of x")
            }
            shape = .grid(side: side, globalTokens: globals)
        } else {
            shape = .sequence(cls: try settings.optionalBool("cls") ?? false)
        }
        let layer = LongShortAttention(
            modelDim: modelDim, heads: heads, window: try positive("window", settings),
            rank: try positive("rank", settings), shape: shape,
            epsilon: try settings.optionalDouble("layer_norm_eps") ?? 1e-5, using: RandomGenerator(seed: 0))
        return GoldenEvaluation(layer, paddingMask: try golden.paddingMask(), parameterName: rename)
    }

    /// `w_q` → `projections.query.weight`, and so on.
    private static func rename(_ name: String) -> String {
        let linears = ["q": "query", "k": "key", "v": "value", "o": "output", "p": "mixture"]
        for (letter, linear) in linears {
            if name == "w_\(letter)" { return "projections.\(linear).weight" }
            if name == "b_\(letter)" { return "projections.\(linear).bias" }
        }
        return [
            "ln_window.weight": "projections.windowNorm.weight", "ln_window.bias": "projections.windowNorm.bias",
            "ln_long.weight": "projections.longNorm.weight", "ln_long.bias": "projections.longNorm.bias",
            "w_r": "distances.window.weight", "w_rc": "distances.long.weight", "b_rc": "distances.long.bias",
            "r_r_bias": "distances.distanceBias", "r_w_bias": "distances.contentBias",
        ][name] ?? name
    }
}
