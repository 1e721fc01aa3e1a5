// The Reformer's attention layers. Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer",
// arXiv 2001.04451.
//
//   LSH    qk = x W_qkᵀ, v = x W_vᵀ, out = attention(qk, v) W_oᵀ: see Reformer+LSH.swift
//   local  the same with q, k and v, each token seeing its chunk and those around it: see Reformer+Local.swift
//
// without biases. The paper's reversible layers, feed-forward layers in slices and axial positions are settings of the
// model around any mixer: `residual: {kind: reversible}`, `feedForwardSlice`, `position: axial`.
import Torch
import TorchNN

/// A mixer that can say why it does not go token by token.
public protocol StreamingRefusing: SequenceMixer {
    var streamingRefusal: String { get }
}

/// Multi-head LSH attention: one projection for queries and keys, one for values.
///
/// Time and memory are those of ``LSHCore``, plus O(N modelDim²) for the projections.
public final class LSHAttention: Module, ReferenceEvaluating, StreamingRefusing {
    public let queryKey: Linear
    public let value: Linear
    public let output: Linear
    public let core: LSHCore
    public let heads: Int

    /// Evaluates ``LSHCore/reference(_:_:paddingMask:buckets:)`` instead of the efficient form.
    public var usesReference = false

    public init(_ core: LSHCore, modelDim: Int, heads: Int, using generator: RandomGenerator) {
        torchPrecondition(
            heads > 0 && modelDim.isMultiple(of: max(heads, 1)), in: "LSHAttention",
            "modelDim \(modelDim) is not a multiple of heads \(heads)")
        self.core = core
        self.heads = heads
        queryKey = Linear(modelDim, modelDim, bias: false, using: generator)
        value = Linear(modelDim, modelDim, bias: false, using: generator)
        output = Linear(modelDim, modelDim, bias: false, using: generator)
        super.init()
        for layer in [queryKey, value, output] { Initializer.xavierUniform().apply(to: layer.weight, using: generator) }
    }

    public var isCausal: Bool { core.settings.isCausal }

    public var streamingRefusal: String { "whom a token meets depends on the hashes of all tokens, later ones too" }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: queryKey.inputs)
        let (qk, v) = (queryKey(x).splitHeads(heads), value(x).splitHeads(heads))
        let y =
            usesReference
            ? core.reference(qk, v, paddingMask: paddingMask) : core(qk, v, paddingMask: paddingMask)
        return output(y.mergedHeads())
    }
}

// MARK: - In the catalogue

/// How many buckets a round of LSH attention has: a number, or its factors.
public struct BucketFactors: Codable, Sendable, Equatable {
    public var factors: [Int]

    public init(_ factors: Int...) { self.factors = factors }

    public init(factors: [Int]) { self.factors = factors }

    /// As many as the authors' code takes for a length: 2 ⌊length / chunk⌋, as two factors when they are more than 128.
    public init(length: Int, chunk: Int) {
        let count = 2 * max(1, length / max(chunk, 1))
        guard count > 128 else {
            factors = [count]
            return
        }
        var first = 2
        while first * first < count { first *= 2 }
        factors = [first, 2 * max(1, count / (2 * first))]
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let number = try? container.decode(Int.self) {
            factors = [number]
        } else {
            factors = try container.decode([Int].self)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        if factors.count == 1 { try container.encode(factors[0]) } else { try container.encode(factors) }
    }
}

/// Options of `reformer` in a recipe.
public struct ReformerOptions: MixerOptions {
    public enum Kind: String, NamedChoice {
        case lsh
        case local
    }

    /// Of every layer; left out, `lsh`.
    public var attention: Kind?
    /// In place of `attention`, that of each layer from the first on, over and over.
    public var layers: [Kind]?
    /// m
    public var chunk = 64
    /// Of local layers; left out, `chunk`.
    public var localChunk: Int?
    /// Chunks before a token's own that it sees, and chunks after it.
    public var chunksBefore = 1
    public var chunksAfter = 0
    /// R of LSH layers; left out, 2.
    public var rounds: Int?
    /// In evaluation; left out, `rounds`.
    public var evaluationRounds: Int?
    /// Left out, 2 ⌊maximum length / chunk⌋ of them.
    public var buckets: BucketFactors?
    /// Left out, `unit`.
    public var logitScale: LSHSettings.LogitScale?
    public var withinBucket: Bool?
    public var uniquePairs: Bool?
    /// Whether LSH layers draw new rotations at each training step; left out, they do.
    public var redraw: Bool?
    /// Of local layers that are not causal: whether the first chunk follows on the last.
    public var wrap: Bool?
    /// What counts as a sequence's length where it is padded; left out, `real`.
    public var roundLength: ReformerLength?

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        attention = try container.decodeIfPresent(Kind.self, forKey: .attention)
        layers = try container.decodeIfPresent([Kind].self, forKey: .layers)
        chunk = try container.decodeIfPresent(Int.self, forKey: .chunk) ?? chunk
        localChunk = try container.decodeIfPresent(Int.self, forKey: .localChunk)
        chunksBefore = try container.decodeIfPresent(Int.self, forKey: .chunksBefore) ?? chunksBefore
        chunksAfter = try container.decodeIfPresent(Int.self, forKey: .chunksAfter) ?? chunksAfter
        rounds = try container.decodeIfPresent(Int.self, forKey: .rounds)
        evaluationRounds = try container.decodeIfPresent(Int.self, forKey: .evaluationRounds)
        buckets = try container.decodeIfPresent(BucketFactors.self, forKey: .buckets)
        logitScale = try container.decodeIfPresent(LSHSettings.LogitScale.self, forKey: .logitScale)
        withinBucket = try container.decodeIfPresent(Bool.self, forKey: .withinBucket)
        uniquePairs = try container.decodeIfPresent(Bool.self, forKey: .uniquePairs)
        redraw = try container.decodeIfPresent(Bool.self, forKey: .redraw)
        wrap = try container.decodeIfPresent(Bool.self, forKey: .wrap)
        roundLength = try container.decodeIfPresent(ReformerLength.self, forKey: .roundLength)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        if let layers {
            guard !layers.isEmpty else { throw ConfigurationError("reformer: layers must name at least one kind") }
            guard attention == nil else {
                throw ConfigurationError("reformer: attention would be ignored, since layers says it for each layer")
            }
        }
        let layers = layers ?? [attention ?? .lsh]
        try refuseOutOfRange()
        try refuseIgnored(layers, context)
        switch layers[context.layer % layers.count] {
        case .lsh: return try buildLSH(context)
        case .local: return buildLocal(context)
        }
    }

    private func buildLSH(_ context: MixerContext) throws -> LSHAttention {
        let factors = try factors(context)
        var settings = LSHSettings(isCausal: context.isCausal, chunk: chunk)
        settings.chunksBefore = chunksBefore
        settings.chunksAfter = chunksAfter
        settings.logitScale = logitScale ?? .unit
        settings.withinBucket = withinBucket ?? false
        settings.uniquePairs = uniquePairs ?? false
        settings.roundLength = roundLength ?? .real
        let core = LSHCore(
            settings, factors: factors, rounds: rounds ?? 2, evaluationRounds: evaluationRounds, heads: context.heads,
            headDim: context.headDim, redraws: redraw ?? true, using: context.generator)
        return LSHAttention(core, modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    private func buildLocal(_ context: MixerContext) -> Attention<LocalChunkCore> {
        let core = LocalChunkCore(
            isCausal: context.isCausal, chunk: localChunk ?? chunk, chunksBefore: chunksBefore,
            chunksAfter: chunksAfter, wraps: wrap ?? false, wrapLength: roundLength ?? .real)
        let layer = Attention(
            core, modelDim: context.modelDim, heads: context.heads, bias: false, using: context.generator)
        for part in [layer.query, layer.key, layer.value, layer.output] {
            Initializer.xavierUniform().apply(to: part.weight, using: context.generator)
        }
        return layer
    }

    private func factors(_ context: MixerContext) throws -> [Int] {
        if let buckets { return buckets.factors }
        guard let length = context.maximumLength else {
            throw ConfigurationError(
                "reformer: set buckets, or a maximum length for the model, from which their number would follow")
        }
        return BucketFactors(length: length, chunk: chunk).factors
    }

    private func refuseOutOfRange() throws {
        let sizes: [(name: String, value: Int?, range: ClosedRange<Int>)] = [
            ("chunk", chunk, 1...1_000_000), ("localChunk", localChunk, 1...1_000_000),
            ("chunksBefore", chunksBefore, 0...1000), ("chunksAfter", chunksAfter, 0...1000),
            ("rounds", rounds, 1...1000), ("evaluationRounds", evaluationRounds, 1...1000),
        ]
        for (name, value, range) in sizes {
            if let value, !range.contains(value) {
                throw ConfigurationError(
                    "reformer: \(name) must be from \(range.lowerBound) to \(range.upperBound), not \(value)")
            }
        }
        guard let factors = buckets?.factors else { return }
        let count = factors.reduce(1.0) { $0 * Double($1) }
        guard !factors.isEmpty, factors.allSatisfy({ $0 > 0 && $0.isMultiple(of: 2) }), count <= 1e6 else {
            throw ConfigurationError(
                "reformer: buckets must be a positive even number, or a list of such factors, of 1000000 at most, not "
                    + factors.map { "\($0)" }.joined(separator: " · "))
        }
    }

    /// An option that no layer has a use for is a mistake.
    private func refuseIgnored(_ layers: [Kind], _ context: MixerContext) throws {
        let ofLSH = [
            ("rounds", rounds != nil), ("evaluationRounds", evaluationRounds != nil), ("buckets", buckets != nil),
            ("logitScale", logitScale != nil), ("withinBucket", withinBucket != nil),
            ("uniquePairs", uniquePairs != nil), ("redraw", redraw != nil),
        ]
        for (name, isGiven) in ofLSH where isGiven && !layers.contains(.lsh) {
            throw ConfigurationError("reformer: \(name) belongs to lsh attention, which no layer has")
        }
        let ofLocal = [("localChunk", localChunk != nil), ("wrap", wrap != nil)]
        for (name, isGiven) in ofLocal where isGiven && !layers.contains(.local) {
            throw ConfigurationError("reformer: \(name) belongs to local attention, which no layer has")
        }
        if wrap == true && context.isCausal {
            throw ConfigurationError("reformer: wrap would be ignored: causal attention sees no chunk after its own")
        }
        if roundLength != nil && !layers.contains(.lsh) && wrap != true {
            throw ConfigurationError("reformer: roundLength belongs to lsh attention, and to local one that wraps")
        }
        if chunksAfter > 0 && context.isCausal && !layers.contains(.lsh) {
            throw ConfigurationError("reformer: chunksAfter would be ignored: causal local attention sees none of them")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "reformer", title: "Reformer (LSH and local attention)",
        paper: Paper(
            "Reformer: The Efficient Transformer", authors: "Kitaev et al.", year: 2020, arXiv: "2001.04451"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .constant,
        time: "O(R N (m D + log N))", memory: "O(R N D)",
        remark: "lsh layers do not stream, local ones do with a state of some chunks: which keys a token meets depends "
            + "on the hashes of all tokens, so a causal lsh layer reads no later token but may change with one; "
            + "chunks change with padding before or between the tokens of local layers, and with roundLength 'padded'",
        options: ReformerOptions.self, golden: goldenSubject)
}

// MARK: - Golden files

extension ReformerOptions {
    @Sendable private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        try golden.expect(variants: ["lsh", "local", "reversible", "axial-position"])
        switch golden.variant {
        case "lsh": return .evaluation(try goldenLSH(golden))
        case "local": return .core(try LocalChunkCore(golden))
        case "axial-position": return .evaluation(try goldenPositions(golden))
        default: throw ConfigurationError("variant '\(golden.variant)' of reformer is a model, not a mixer")
        }
    }

    private static func goldenLSH(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let core = try LSHCore(golden, rotations: "rotations")
        let (qk, v) = (try golden.tensor("qk"), try golden.tensor("v"))
        for (key, size) in [
            ("batch", qk.size(0)), ("heads", qk.size(1)), ("length", qk.size(2)), ("head_dim", qk.size(3)),
            ("value_dim", v.size(3)),
        ] {
            try golden.check(key, size)
        }
        let mask = try golden.paddingMask()
        let listsBuckets = golden.optionalTensor("buckets") != nil
        return GoldenEvaluation(inputs: ["qk", "v"]) { inputs, usesReference in
            let (qk, v) = (inputs[0], inputs[1])
            let buckets = core.buckets(qk)
            let out =
                usesReference
                ? core.reference(qk, v, paddingMask: mask, buckets: buckets)
                : core(qk, v, paddingMask: mask, buckets: buckets)
            return listsBuckets ? ["out": out, "buckets": buckets] : ["out": out]
        }
    }

    private static func goldenPositions(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let (shape, dims) = (try golden.settings.ints("axis_shape"), try golden.settings.ints("axis_dims"))
        guard !shape.isEmpty, shape.count == dims.count, (shape + dims).allSatisfy({ 1...1_000_000 ~= $0 }) else {
            throw ConfigurationError("axis_shape \(shape) and axis_dims \(dims) do not fit together")
        }
        let x = try golden.tensor("x")
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        _ = try golden.paddingMask()
        let positions = AxialPositionalEmbedding(shape: shape, dims: dims, using: RandomGenerator(seed: 0))
        let rename = { (name: String) in name.replacing("axis.", with: "axes.") }
        return GoldenEvaluation(positions, parameterName: rename) { inputs, _ in
            ["out": inputs[0] + positions(length: inputs[0].size(1))]
        }
    }
}

extension LSHCore {
    /// As a golden file says, with the rotations of that name in it.
    public convenience init(_ golden: GoldenCase, rotations name: String) throws {
        let settings = golden.settings
        var own = try LSHSettings(isCausal: settings.bool("causal"), chunk: settings.int("chunk"))
        own.chunksBefore = try settings.optionalInt("chunks_before") ?? 1
        own.chunksAfter = try settings.optionalInt("chunks_after") ?? 0
        let scale = try settings.string("logit_scale", or: "unit", expecting: ["unit", "sqrt"])
        own.logitScale = LSHSettings.LogitScale(rawValue: scale) ?? .unit
        own.withinBucket = try settings.optionalBool("within_bucket") ?? false
        own.uniquePairs = try settings.optionalBool("unique_pairs") ?? false
        own.keyNormEpsilon = try settings.optionalDouble("key_norm_eps") ?? 1e-6
        own.selfLogit = try settings.optionalDouble("self_mask") ?? -1e5
        own.roundLength = .padded
        let rotations = try golden.tensor(name)
        let factors = try (try? settings.ints("buckets")) ?? [settings.int("buckets")]
        try golden.check("rounds", rotations.size(2))
        guard own.chunk > 0, own.chunksBefore >= 0, own.chunksAfter >= 0, own.keyNormEpsilon >= 0 else {
            throw ConfigurationError("chunk, chunks_before, chunks_after and key_norm_eps must not be negative")
        }
        guard !factors.isEmpty, factors.allSatisfy({ 2...1_000_000 ~= $0 && $0.isMultiple(of: 2) }) else {
            throw ConfigurationError("buckets must be even, not \(factors)")
        }
        self.init(own, factors: factors, rotations: rotations)
    }
}

extension LocalChunkCore {
    /// As a golden file says.
    public convenience init(_ golden: GoldenCase) throws {
        let settings = golden.settings
        let isCausal = try settings.bool("causal")
        let (chunk, before) = (try settings.int("chunk"), try settings.optionalInt("chunks_before") ?? 1)
        let after = try settings.optionalInt("chunks_after") ?? 0
        guard chunk > 0, before >= 0, after >= 0 else {
            throw ConfigurationError("chunk, chunks_before and chunks_after must not be negative")
        }
        // The authors' code wraps, which a causal mask hides.
        let wraps = try settings.optionalBool("wrap") ?? !isCausal
        self.init(
            isCausal: isCausal, chunk: chunk, chunksBefore: before, chunksAfter: after, wraps: wraps,
            wrapLength: .padded)
    }
}
