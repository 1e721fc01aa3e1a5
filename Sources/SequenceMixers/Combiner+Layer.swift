// The Combiner as a layer, for keys of rows that are made from the layer's input, and Combiner in the catalogue.
import Torch
import TorchNN

/// Combiner attention with projections without bias, as in the authors' code.
///
/// Time and memory are the core's, plus O(N modelDim²) for the projections.
public final class CombinerLayer: Module, StreamingMixer, ReferenceEvaluating {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    public let core: CombinerCore
    public let heads: Int

    public var usesReference = false

    /// - Parameter innerDim: of all heads together.
    public init(_ core: CombinerCore, modelDim: Int, innerDim: Int, heads: Int, using generator: RandomGenerator) {
        torchPrecondition(
            heads > 0 && innerDim.isMultiple(of: max(heads, 1)), in: "CombinerLayer",
            "innerDim \(innerDim) is not a multiple of heads \(heads)")
        self.core = core
        self.heads = heads
        query = Linear(modelDim, innerDim, bias: false, using: generator)
        key = Linear(modelDim, innerDim, bias: false, using: generator)
        value = Linear(modelDim, innerDim, bias: false, using: generator)
        output = Linear(innerDim, modelDim, bias: false, using: generator)
        super.init()
    }

    public var isCausal: Bool { core.isCausal }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let tokens = tokens(x, paddingMask)
        return merged(usesReference ? core.referenceOutput(of: tokens) : core.output(of: tokens))
    }

    private func tokens(_ x: Tensor, _ paddingMask: Tensor?) -> CombinerTokens {
        core.tokens(
            query(x).splitHeads(heads), key(x).splitHeads(heads), value(x).splitHeads(heads), paddingMask,
            x: core.rowKey == nil ? nil : x)
    }

    private func merged(_ x: Tensor) -> Tensor { output(x.mergedHeads()) }

    // MARK: Streaming

    public func initialState(batch: Int) -> CombinerLayerState {
        CombinerLayerState(core: CombinerState(forms: core.forms.count), batch: batch)
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout CombinerLayerState) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        checkBatch(x, state.batch)
        return merged(core.prefill(tokens(x, paddingMask), &state.core))
    }

    public func step(_ x: Tensor, state: inout CombinerLayerState) -> Tensor {
        checkStep(x, modelDim: query.inputs, batch: state.batch)
        return merged(core.step(tokens(x.unsqueezed(1), nil), &state.core)).squeezed(1)
    }
}

/// What a Combiner layer remembers: its core's state.
public struct CombinerLayerState: StreamingState {
    var core: CombinerState
    let batch: Int

    public var tensors: [String: Tensor] { core.tensors }
}

// MARK: - In the catalogue

/// The instantiations of the Combiner, by their names in a recipe.
public enum CombinerVariant: String, NamedChoice {
    case fixed, logsparse
    case axialVertical = "axial-vertical"
    case axialHorizontal = "axial-horizontal"
    case axialRowmajor = "axial-rowmajor"
    case mixture
}

/// Options of `combiner` in a recipe.
public struct CombinerOptions: MixerOptions {
    public var variant: CombinerVariant = .fixed
    /// Of `fixed`: tokens in a span. Left out, the root of the model's maximum length; 64 where it has none.
    public var span: Int?
    /// Of `mixture` and the axial variants: tokens in a row. Left out, as `span`.
    public var columns: Int?
    /// φ and pool of spans; left out, `identity-max`. `axial-rowmajor` pools nothing.
    public var summary: CombinerSummary?
    /// Of `mixture`; left out, `joint`.
    public var combine: CombinerCombination?
    /// Of `axial-rowmajor`; left out, `proj`.
    public var keySummary: CombinerKeySummary?
    /// Of `axial-rowmajor` with keySummary `proj`: ε of its norm; left out, 1e-6.
    public var normEpsilon: Double?
    /// Of bidirectional `fixed`: takes the own span as a whole, too.
    public var includeOwnSpan = false
    /// Of bidirectional `axial-rowmajor`: takes the own row as a whole, too.
    public var includeOwnRow = false

    public init() {}

    public init(_ variant: CombinerVariant, summary: CombinerSummary? = nil) {
        self.variant = variant
        self.summary = summary
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        variant = try container.decodeIfPresent(CombinerVariant.self, forKey: .variant) ?? variant
        span = try container.decodeIfPresent(Int.self, forKey: .span)
        columns = try container.decodeIfPresent(Int.self, forKey: .columns)
        summary = try container.decodeIfPresent(CombinerSummary.self, forKey: .summary)
        combine = try container.decodeIfPresent(CombinerCombination.self, forKey: .combine)
        keySummary = try container.decodeIfPresent(CombinerKeySummary.self, forKey: .keySummary)
        normEpsilon = try container.decodeIfPresent(Double.self, forKey: .normEpsilon)
        includeOwnSpan = try container.decodeIfPresent(Bool.self, forKey: .includeOwnSpan) ?? includeOwnSpan
        includeOwnRow = try container.decodeIfPresent(Bool.self, forKey: .includeOwnRow) ?? includeOwnRow
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try refuseIgnored()
        try refuseOutOfRange()
        let length = Double(context.maximumLength ?? 64 * 64)
        let pattern = try pattern(defaultSize: Int(length.squareRoot().rounded(.up)), isCausal: context.isCausal)
        let isLayer = pattern.needsRowKey
        let rowKey =
            isLayer
            ? CombinerRowKey(
                modelDim: context.modelDim, innerDim: context.modelDim, epsilon: normEpsilon ?? 1e-6,
                using: context.generator) : nil
        let core = CombinerCore(
            pattern, isCausal: context.isCausal, summary: summary ?? .identityMax, rowKey: rowKey,
            headDim: context.headDim, using: context.generator)
        if isLayer {
            return CombinerLayer(
                core, modelDim: context.modelDim, innerDim: context.modelDim, heads: context.heads,
                using: context.generator)
        }
        return Attention(core, modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    func pattern(defaultSize: Int, isCausal: Bool) throws -> CombinerPattern {
        if variant == .logsparse && !isCausal {
            throw ConfigurationError("combiner: variant 'logsparse' looks back only; it has no bidirectional form")
        }
        for (name, isAsked) in [("includeOwnSpan", includeOwnSpan), ("includeOwnRow", includeOwnRow)]
        where isAsked && isCausal {
            throw ConfigurationError("combiner: \(name) would show a causal query what comes after it")
        }
        let columns = columns ?? defaultSize
        switch variant {
        case .fixed: return .fixed(span: span ?? defaultSize, includesOwnSpan: includeOwnSpan)
        case .logsparse: return .logsparse
        case .axialVertical: return .axialVertical(columns: columns)
        case .axialHorizontal: return .axialHorizontal(columns: columns)
        case .mixture: return .mixture(columns: columns, combine ?? .joint)
        case .axialRowmajor:
            return .axialRowmajor(columns: columns, keySummary ?? .proj, includesOwnRow: includeOwnRow)
        }
    }

    private func refuseOutOfRange() throws {
        for (name, value) in [("span", span), ("columns", columns)] {
            if let value, value < 1 { throw ConfigurationError("combiner: \(name) must be above 0, not \(value)") }
        }
        if let normEpsilon, !(normEpsilon >= 0 && normEpsilon.isFinite) {
            throw ConfigurationError("combiner: normEpsilon must be finite and not negative, is \(normEpsilon)")
        }
    }

    /// An option that the variant has no use for is a mistake.
    fileprivate func refuseIgnored() throws {
        let hasColumns = variant != .fixed && variant != .logsparse
        let given: [(name: String, isGiven: Bool, isUsed: Bool)] = [
            ("span", span != nil, variant == .fixed), ("columns", columns != nil, hasColumns),
            ("summary", summary != nil, variant != .axialRowmajor), ("combine", combine != nil, variant == .mixture),
            ("keySummary", keySummary != nil, variant == .axialRowmajor),
            ("normEpsilon", normEpsilon != nil, variant == .axialRowmajor),
            ("includeOwnSpan", includeOwnSpan, variant == .fixed),
            ("includeOwnRow", includeOwnRow, variant == .axialRowmajor),
        ]
        if let option = given.first(where: { $0.isGiven && !$0.isUsed }) {
            throw ConfigurationError("combiner: variant '\(variant.rawValue)' takes no \(option.name)")
        }
        if normEpsilon != nil, let keySummary, keySummary != .proj {
            throw ConfigurationError(
                "combiner: normEpsilon belongs to keySummary 'proj', not '\(keySummary.rawValue)'")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "combiner", title: "Combiner",
        paper: Paper(
            "Combiner: Full Attention Transformer with Sparse Computation Cost", authors: "Ren et al.", year: 2021,
            arXiv: "2107.05768"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .growing,
        time: "O(N √N D)", memory: "O(N D)",
        remark: "Spans and rows count from the first position, so only padding at the end is as if it were not there. "
            + "Variant logsparse is causal only, and takes O(N log N D).",
        options: CombinerOptions.self, golden: CombinerGolden.subject)
}

/// Golden files of the Combiner.
enum CombinerGolden {
    static func subject(_ golden: GoldenCase) throws -> GoldenSubject {
        try golden.expect(variants: CombinerVariant.allCases.map(\.rawValue))
        let settings = golden.settings
        let kind = try settings.string("kind", or: "core", expecting: ["core", "layer"])
        let isCausal = try settings.bool("causal")
        let options = try options(golden)
        let pattern = try options.pattern(defaultSize: 1, isCausal: isCausal)
        let generator = RandomGenerator(seed: 0)
        func core(headDim: Int, _ rowKey: CombinerRowKey?) -> CombinerCore {
            CombinerCore(
                pattern, isCausal: isCausal, summary: options.summary ?? .identityMax, rowKey: rowKey,
                headDim: headDim, using: generator)
        }
        if kind == "core" {
            guard !pattern.needsRowKey else {
                throw ConfigurationError("key_summary 'proj' is made from a layer's input; kind 'core' has none")
            }
            let headDim = try golden.tensor("q").size(-1)
            return .core(core(headDim: headDim, nil), parameterName: { name($0, in: "pooling") })
        }
        let (heads, headDim) = (try settings.int("heads"), try settings.int("head_dim"))
        let x = try golden.tensor("x")
        guard heads > 0, headDim > 0, x.rank == 3 else {
            throw ConfigurationError("heads \(heads) of width \(headDim) do not fit x of shape \(x.shape)")
        }
        try check(golden, x)
        let epsilon = try settings.optionalDouble("layer_norm_eps") ?? 1e-6
        let rowKey = {
            CombinerRowKey(modelDim: x.size(2), innerDim: heads * headDim, epsilon: epsilon, using: generator)
        }
        let layer = CombinerLayer(
            core(headDim: headDim, pattern.needsRowKey ? rowKey() : nil), modelDim: x.size(2),
            innerDim: heads * headDim,
            heads: heads, using: generator)
        let mask = try golden.paddingMask()
        return .evaluation(GoldenEvaluation(layer, paddingMask: mask) { name($0, in: "core.pooling") })
    }

    private static func check(_ golden: GoldenCase, _ x: Tensor) throws {
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("key_length", x.size(1))
        try golden.check("model_dim", x.size(2))
        if let width = try golden.settings.optionalInt("value_dim"), try width != golden.settings.int("head_dim") {
            throw ConfigurationError("setting 'value_dim' is \(width); a layer's values are as wide as its heads")
        }
        if try golden.settings.optionalBool("bias") ?? false {
            throw ConfigurationError("setting 'bias' is true; the layer has none")
        }
    }

    private static func options(_ golden: GoldenCase) throws -> CombinerOptions {
        let settings = golden.settings
        _ = try settings.double("dropout", or: 0, expecting: [0])
        var options = CombinerOptions()
        options.variant = try named("variant", golden.variant)
        switch options.variant {
        case .fixed: options.span = try size("span", settings)
        case .logsparse: break
        case .axialVertical, .axialHorizontal, .mixture, .axialRowmajor: options.columns = try size("columns", settings)
        }
        options.summary = try settings.optionalString("summary").map { try named("summary", $0) }
        options.combine = try settings.optionalString("combine").map { try named("combine", $0) }
        options.keySummary = try settings.optionalString("key_summary").map { try named("key_summary", $0) }
        options.includeOwnSpan = try settings.optionalBool("include_own_span") ?? false
        options.includeOwnRow = try settings.optionalBool("include_own_row") ?? false
        try options.refuseIgnored()
        return options
    }

    private static func size(_ key: String, _ settings: GoldenSettings) throws -> Int {
        let value = try settings.int(key)
        guard value > 0 else { throw ConfigurationError("setting '\(key)' must be above 0, not \(value)") }
        return value
    }

    private static func named<Value: NamedChoice>(_ key: String, _ name: String) throws -> Value {
        guard let value = Value(rawValue: name) else {
            let known = Value.allCases.map(\.rawValue).joined(separator: ", ")
            throw ConfigurationError("setting '\(key)' is '\(name)'; known: \(known)")
        }
        return value
    }

    /// From a file's `w_q` or `pool_key` to our `query.weight` or `pooling.key`.
    private static func name(_ name: String, in pooling: String) -> String {
        switch name {
        case "pool_query": "\(pooling).query"
        case "pool_key": "\(pooling).key"
        case "w_q": "query.weight"
        case "w_k": "key.weight"
        case "w_v": "value.weight"
        case "w_out": "output.weight"
        case "w_row_out": "core.rowKey.output.weight"
        case "w_row_key": "core.rowKey.key.weight"
        case "row_norm.weight": "core.rowKey.norm.weight"
        case "row_norm.bias": "core.rowKey.norm.bias"
        default: name
        }
    }
}
