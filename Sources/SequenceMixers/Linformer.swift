// Linformer. Wang, Li, Khabsa, Fang, Ma 2020, "Linformer: Self-Attention with Linear Complexity", arXiv 2006.04768.
//
//   out = softmax(q (E K)ᵀ / √e) (F V)      (eq. 7)
//
// with E and F [k, n] that make k rows of n keys and values. In the authors' code they act on the layer's input, before
// the linear layers: K = W_k (E x) + b_k, V = W_v (F x) + b_v. All rows mix all positions, so there is no causal form.
import Foundation
import Torch
import TorchNN

/// Softmax attention to compressed keys and values.
///
/// Time O(N k E) for heads of width E, memory O(N E + k E): scores are not kept. Right-padded sequences are what they are
/// alone; padding before real tokens moves these to other columns of E, or to other windows.
public final class LinformerCore: Module, AttentionCore {
    public let projection: LinformerProjection
    private let softmax = SoftmaxCore(isCausal: false)

    public init(_ projection: LinformerProjection) {
        self.projection = projection
        super.init()
    }

    public var isCausal: Bool { false }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        attend(q, k, v, paddingMask, literal: false)
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        attend(q, k, v, paddingMask, literal: true)
    }

    func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, literal: Bool) -> Tensor {
        check(q, k, v, paddingMask)
        return attend(
            q, rows: projection.keys(k, paddingMask, literal: literal),
            projection.values(v, paddingMask, literal: literal), projection.rowMask(paddingMask), literal: literal)
    }

    /// Attention to keys and values that are compressed already.
    func attend(_ q: Tensor, rows k: Tensor, _ v: Tensor, _ mask: Tensor?, literal: Bool) -> Tensor {
        literal ? softmax.reference(q, k, v, paddingMask: mask) : softmax(q, k, v, paddingMask: mask)
    }
}

/// Multi-head attention around a ``LinformerCore``, which may compress the layer's input instead of keys and values.
///
/// Time O(N k D + N D²), memory O(N D) with k rows.
public final class LinformerAttention: Module, ReferenceEvaluating {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    public let core: LinformerCore
    public let heads: Int
    /// Whether E and F act before the linear layers of keys and values, as in the authors' code.
    public let projectsInput: Bool

    public var usesReference = false

    public init(
        _ core: LinformerCore, modelDim: Int, heads: Int, projectsInput: Bool, bias: Bool = true,
        using generator: RandomGenerator
    ) {
        torchPrecondition(
            heads > 0 && modelDim.isMultiple(of: max(heads, 1)), in: "LinformerAttention",
            "modelDim \(modelDim) is not a multiple of heads \(heads)")
        torchPrecondition(
            !projectsInput || core.projection.kind != .convolution, in: "LinformerAttention",
            "a convolution compresses the keys and values of heads, not the layer's input")
        self.core = core
        self.heads = heads
        self.projectsInput = projectsInput
        query = Linear(modelDim, modelDim, bias: bias, using: generator)
        key = Linear(modelDim, modelDim, bias: bias, using: generator)
        value = Linear(modelDim, modelDim, bias: bias, using: generator)
        output = Linear(modelDim, modelDim, bias: bias, using: generator)
        super.init()
        for projection in [query, key, value] {
            Initializer.xavierUniform(gain: 0.5.squareRoot()).apply(to: projection.weight, using: generator)
        }
        Initializer.xavierUniform().apply(to: output.weight, using: generator)
        if let bias = output.bias { Initializer.zeros.apply(to: bias, using: generator) }
    }

    public var isCausal: Bool { false }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let q = query(x).splitHeads(heads)
        let out: Tensor
        if projectsInput {
            let (k, v) = compressed(x, paddingMask)
            out = core.attend(q, rows: k, v, core.projection.rowMask(paddingMask), literal: usesReference)
        } else {
            let (k, v) = (key(x).splitHeads(heads), value(x).splitHeads(heads))
            out = core.attend(q, k, v, paddingMask, literal: usesReference)
        }
        return output(out.mergedHeads())
    }

    /// W_k (E x) + b_k and W_v (F x) + b_v, `[batch, heads, rows, headDim]`.
    private func compressed(_ x: Tensor, _ paddingMask: Tensor?) -> (k: Tensor, v: Tensor) {
        let projection = core.projection
        let tokens = x.unsqueezed(1)  // as of one head that is as wide as the model
        if projection.isPerHead {
            if usesReference {
                let keys = projection.keys(tokens, paddingMask, literal: true)  // [batch, heads, rows, modelDim]
                let values = projection.values(tokens, paddingMask, literal: true)
                return (ofEachHead(keys, key), ofEachHead(values, value))
            }
            // E_h (x W_hᵀ) is (E_h x) W_hᵀ, without modelDim channels for each head.
            let keys = projection.keys(linear(x, key.weight.value).splitHeads(heads), paddingMask, literal: false)
            let values = projection.values(linear(x, value.weight.value).splitHeads(heads), paddingMask, literal: false)
            return (keys + bias(key), values + bias(value))
        }
        let keys = projection.keys(tokens, paddingMask, literal: usesReference).squeezed(1)
        let values =
            projection.isShared
            ? keys : projection.values(tokens, paddingMask, literal: usesReference).squeezed(1)
        return (key(keys).splitHeads(heads), value(values).splitHeads(heads))
    }

    /// Each head's part of a layer on its own rows `[batch, heads, rows, modelDim]`.
    private func ofEachHead(_ rows: Tensor, _ layer: Linear) -> Tensor {
        let weight = layer.weight.value.reshaped(heads, -1, layer.inputs)  // [heads, headDim, modelDim]
        return matmul(rows, weight.transposed()) + bias(layer)
    }

    /// `[heads, 1, headDim]`, or 0.
    private func bias(_ layer: Linear) -> Tensor {
        layer.bias?.value.reshaped(heads, 1, -1) ?? .zeros([1], dtype: layer.weight.value.dtype)
    }
}

// MARK: - In the catalogue

/// Which parts of a model have a projection in common.
public enum LinformerSharing: String, NamedChoice {
    /// E and F for each head.
    case perHead = "none"
    /// E and F for each layer.
    case headwise
    /// E for each layer, which is F, too.
    case keyValue = "kv"
    /// One E for all layers, keys and values.
    case layerwise

    /// Whether F is E.
    var isOneMatrix: Bool { self == .keyValue || self == .layerwise }
}

/// One number for all layers, or a list of one for each.
public enum LinformerSizes: Codable, Equatable, Sendable {
    case all(Int)
    case each([Int])

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let size = try? container.decode(Int.self) {
            self = .all(size)
        } else if let sizes = try? container.decode([Int].self) {
            self = .each(sizes)
        } else {
            throw DecodingError.dataCorruptedError(
                in: container, debugDescription: "expected a whole number, or a list of one for each layer")
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .all(let size): try container.encode(size)
        case .each(let sizes): try container.encode(sizes)
        }
    }

    var numbers: [Int] {
        switch self {
        case .all(let size): [size]
        case .each(let sizes): sizes
        }
    }
}

/// Options of `linformer` in a recipe.
public struct LinformerOptions: MixerOptions {
    public var projection: LinformerProjectionKind = .linear
    /// k, a number or a list of one for each layer; left out, a quarter of the maximum length, at most 128.
    public var projectedLength: LinformerSizes?
    /// Of `linear`; left out, `headwise`.
    public var sharing: LinformerSharing?
    /// Of pooling and convolution: tokens a row, in place of `projectedLength`.
    public var window: Int?
    /// The longest sequence; left out, the model's.
    public var maximumLength: Int?
    /// Whether the layer's input is compressed, not its keys and values; left out, that of `linear` is.
    public var projectBeforeLinear: Bool?

    public init() {}

    public init(
        _ projection: LinformerProjectionKind, projectedLength: Int? = nil, maximumLength: Int? = nil,
        sharing: LinformerSharing? = nil, projectBeforeLinear: Bool? = nil
    ) {
        self.projection = projection
        self.projectedLength = projectedLength.map { .all($0) }
        self.maximumLength = maximumLength
        self.sharing = sharing
        self.projectBeforeLinear = projectBeforeLinear
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        projection = try container.value(.projection, default: projection)
        projectedLength = try container.decodeIfPresent(LinformerSizes.self, forKey: .projectedLength)
        sharing = try container.decodeIfPresent(LinformerSharing.self, forKey: .sharing)
        window = try container.decodeIfPresent(Int.self, forKey: .window)
        maximumLength = try container.decodeIfPresent(Int.self, forKey: .maximumLength)
        projectBeforeLinear = try container.decodeIfPresent(Bool.self, forKey: .projectBeforeLinear)
    }

    static let whyNotCausal = "each of its compressed rows mixes all positions, those to come with those before"

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        if context.isCausal { throw ConfigurationError("linformer has no causal form: \(Self.whyNotCausal)") }
        try refuseOutOfRange(context)
        try refuseIgnored()
        let core = LinformerCore(
            try projection == .linear ? matrices(context) : windows(context))
        return LinformerAttention(
            core, modelDim: context.modelDim, heads: context.heads,
            projectsInput: projectBeforeLinear ?? (projection == .linear), using: context.generator)
    }

    private func matrices(_ context: MixerContext) throws -> LinformerProjection {
        guard let longest = maximumLength ?? context.maximumLength else {
            throw ConfigurationError(
                "linformer: projection linear needs a maximumLength; neither it nor the model has one")
        }
        let rows = try size(context, longest)
        let sharing = sharing ?? .headwise
        func make() -> LinformerProjection {
            LinformerProjection(
                shape: sharing == .perHead ? [context.heads, rows, longest] : [rows, longest],
                isShared: sharing.isOneMatrix, using: context.generator)
        }
        return sharing == .layerwise ? context.shared.part("linformer \(rows) × \(longest)", make) : make()
    }

    private func windows(_ context: MixerContext) throws -> LinformerProjection {
        let size: Int
        if let window {
            size = window
        } else {
            guard let longest = maximumLength ?? context.maximumLength else {
                throw ConfigurationError(
                    "linformer: projection \(projection.rawValue) needs a window or a maximumLength; there is neither")
            }
            let rows = try self.size(context, longest)
            size = (longest + rows - 1) / rows
        }
        guard projection == .convolution else { return LinformerProjection(pooling: projection, window: size) }
        return LinformerProjection(
            keyDim: context.headDim, valueDim: context.headDim, window: size, using: context.generator)
    }

    /// k of the context's layer.
    private func size(_ context: MixerContext, _ longest: Int) throws -> Int {
        switch projectedLength {
        case nil: return min(128, max(1, longest / 4))
        case .all(let size)?: return size
        case .each(let sizes)?:
            guard sizes.count == context.layers, sizes.indices.contains(context.layer) else {
                throw ConfigurationError(
                    "linformer: projectedLength lists \(sizes.count) sizes, but there are \(context.layers) layers")
            }
            return sizes[context.layer]
        }
    }

    private func refuseOutOfRange(_ context: MixerContext) throws {
        let given = (projectedLength?.numbers ?? []).map { ("projectedLength", $0) }
        for (name, value) in given + [("window", window ?? 1), ("maximumLength", maximumLength ?? 1)]
        where !(1...10_000_000).contains(value) {
            throw ConfigurationError("linformer: \(name) must be from 1 to 10000000, not \(value)")
        }
        if let maximumLength, let longest = context.maximumLength, maximumLength < longest {
            throw ConfigurationError("linformer: maximumLength \(maximumLength) is below the model's \(longest)")
        }
    }

    /// An option that the projection has no use for is a mistake.
    private func refuseIgnored() throws {
        if projection == .linear, window != nil {
            throw ConfigurationError("linformer: window belongs to pooling and convolution, not to projection linear")
        }
        if projection != .linear, let sharing {
            throw ConfigurationError(
                "linformer: sharing \(sharing.rawValue) belongs to projection linear, not \(projection.rawValue)")
        }
        if window != nil && projectedLength != nil {
            throw ConfigurationError("linformer: window and projectedLength say the same; give one of them")
        }
        if projection == .convolution && projectBeforeLinear == true {
            throw ConfigurationError(
                "linformer: a convolution compresses the keys and values of heads, so projectBeforeLinear is false")
        }
        if case .each(let sizes)? = projectedLength, sharing == .layerwise, Set(sizes).count > 1 {
            throw ConfigurationError("linformer: sharing layerwise takes one projectedLength for all layers")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "linformer", title: "Linformer",
        paper: Paper(
            "Linformer: Self-Attention with Linear Complexity", authors: "Wang et al.", year: 2020,
            arXiv: "2006.04768"),
        causal: false, bidirectional: true, padding: true, crossAttention: false, streaming: .none,
        time: "O(N k D)", memory: "O(N D)",
        remark:
            "bidirectional only, since each compressed row mixes all positions; "
            + "projection linear is made for a maximum length. Padding belongs after the real tokens: positions are columns of a matrix, or places in a window",
        whyNotCausal: whyNotCausal, options: LinformerOptions.self, golden: { try LinformerGolden.subject($0) })
}
