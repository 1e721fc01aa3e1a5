// Attention Free Transformer. Zhai, Talbott, Srivastava, Huang, Goh, Zhang, Susskind 2021, "An Attention Free
// Transformer", arXiv 2105.14103. For every feature by itself, with a trained bias w for pairs of positions (eq. 2):
//
//   Y_t = σ(Q_t) ⊙ Σ_t' exp(K_t' + w_tt') ⊙ V_t' / Σ_t' exp(K_t' + w_tt')        causal: t' ≤ t
//
//   full    w_tt' of its own for each pair, or u_t · v_t' (section 3.2)
//   local   the same where |t - t'| < s, and 0, not -∞, elsewhere (eq. 4): every token is still looked at
//   simple  w = 0 (eq. 5)
//   conv    w depends on the head and on t' - t, in a kernel of s around t, and is 0 elsewhere (eq. 6); K has one
//           channel a head. Bidirectional: tap j stands for t - (s-1)/2 + j. Causal: for t - (s-1) + j.
//
// A padded key has the weight 0.
import Torch
import TorchNN

/// A layer of the Attention Free Transformer: Q, K, V by linear layers, ``AFTCore``, and a linear layer back.
public final class AFT: Module, ReferenceEvaluating, StreamingMixer {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    public let core: AFTCore
    public let heads: Int

    /// Evaluates the core's ``AFTCore/reference(_:_:_:paddingMask:)`` instead of its efficient form.
    public var usesReference = false

    /// - Parameters:
    ///   - hiddenDim: channels of Q and V, a multiple of `heads`; nil is `modelDim`.
    ///   - heads: matter to AFT-conv only, where each has a kernel.
    public init(
        _ core: AFTCore, modelDim: Int, hiddenDim: Int? = nil, heads: Int = 1, using generator: RandomGenerator
    ) {
        let hiddenDim = hiddenDim ?? modelDim
        torchPrecondition(
            heads > 0 && hiddenDim.isMultiple(of: max(heads, 1)), in: "AFT",
            "hiddenDim \(hiddenDim) is not a multiple of heads \(heads)")
        var keyDim = hiddenDim
        if case .taps = core.bias { keyDim = heads }
        self.core = core
        self.heads = heads
        query = Linear(modelDim, hiddenDim, using: generator)
        key = Linear(modelDim, keyDim, using: generator)
        value = Linear(modelDim, hiddenDim, using: generator)
        output = Linear(hiddenDim, modelDim, using: generator)
        super.init()
    }

    public var isCausal: Bool { core.isCausal }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isInput(x, paddingMask) else { return x }
        let (q, k, v) = projected(x)
        return merged(
            usesReference
                ? core.reference(q, k, v, paddingMask: paddingMask) : core(q, k, v, paddingMask: paddingMask))
    }

    private func projected(_ x: Tensor) -> (q: Tensor, k: Tensor, v: Tensor) {
        (query(x).splitHeads(heads), key(x).splitHeads(heads), value(x).splitHeads(heads))
    }

    private func merged(_ x: Tensor) -> Tensor { output(x.mergedHeads()) }

    /// Traps when x and the mask do not fit; false where the caller is to go on without them.
    private func isInput(_ x: Tensor, _ paddingMask: Tensor?) -> Bool {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let shape = x.shape
        guard shape.count == 3, shape[2] == query.inputs, !shape.contains(0) else { return false }
        return paddingMask.map { $0.shape == [shape[0], shape[1]] && $0.dtype == .bool } ?? true
    }

    // MARK: Streaming

    public var canStream: Bool { core.canStream }

    public func initialState(batch: Int) -> AFTState {
        let weight = value.weight.value
        return core.initialState(
            CoreShape(
                batch: batch, heads: heads, headDim: key.outputs / heads, valueDim: value.outputs / heads,
                dtype: weight.dtype, device: weight.device))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout AFTState) -> Tensor {
        guard isInput(x, paddingMask), isStreaming(x, state) else { return x }
        let (q, k, v) = projected(x)
        return merged(core.prefill(q, k, v, paddingMask: paddingMask, state: &state))
    }

    public func step(_ x: Tensor, state: inout AFTState) -> Tensor {
        checkStep(x, modelDim: query.inputs, batch: state.positions.count)
        guard x.rank == 2, x.size(1) == query.inputs, isStreaming(x, state) else { return x }
        let (q, k, v) = (query(x), key(x), value(x))
        func split(_ x: Tensor) -> Tensor { x.reshaped(x.size(0), heads, -1) }
        return output(core.step(split(q), split(k), split(v), state: &state).flattened(1, 2))
    }

    private func isStreaming(_ x: Tensor, _ state: AFTState) -> Bool {
        torchPrecondition(
            canStream, in: "AFT",
            isCausal
                ? "form 'full' weighs every key anew at each position, so it cannot stream; use local, simple or conv"
                : "a bidirectional layer cannot stream")
        checkBatch(x, state.positions.count)
        return canStream && x.size(0) == state.positions.count
    }
}

// MARK: - In the catalogue

/// What the position bias of AFT is.
public enum AFTForm: String, NamedChoice {
    case full, local, simple, conv
}

/// Options of `aft` in a recipe.
public struct AFTOptions: MixerOptions {
    public var form: AFTForm = .simple
    /// s of `local`: a query has biases for the keys less than s away; left out, 32.
    public var window: Int?
    /// s of `conv`, in each direction; left out, 11. Odd, unless the model is causal.
    public var kernel: Int?
    /// Of `conv`: the length of an image's rows, for a kernel in two dimensions; left out, it has one.
    public var gridWidth: Int?
    /// Of `full` and `local`: whether w_tt' is u_t · v_t'; left out, it is. Otherwise there is a number for each pair of
    /// positions, with `local` for those in the window.
    public var factorized: Bool?
    /// d' of `full` and `local`, the width of u and v; left out, 64.
    public var biasDim: Int?
    /// Of `full` and `local`: the longest sequence there are biases for; left out, the model's.
    public var maximumLength: Int?
    /// Channels of queries and values; left out, the model's.
    public var hiddenDim: Int?
    public var queryActivation: Activation = .sigmoid

    public init() {}

    public init(_ form: AFTForm) { self.form = form }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        form = try container.value(.form, default: form)
        window = try container.decodeIfPresent(Int.self, forKey: .window)
        kernel = try container.decodeIfPresent(Int.self, forKey: .kernel)
        gridWidth = try container.decodeIfPresent(Int.self, forKey: .gridWidth)
        factorized = try container.decodeIfPresent(Bool.self, forKey: .factorized)
        biasDim = try container.decodeIfPresent(Int.self, forKey: .biasDim)
        maximumLength = try container.decodeIfPresent(Int.self, forKey: .maximumLength)
        hiddenDim = try container.decodeIfPresent(Int.self, forKey: .hiddenDim)
        queryActivation = try container.value(.queryActivation, default: queryActivation)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try refuseIgnored()
        try refuseOutOfRange()
        let hiddenDim = hiddenDim ?? context.modelDim
        guard hiddenDim.isMultiple(of: context.heads) else {
            throw ConfigurationError("aft: hiddenDim \(hiddenDim) is not a multiple of heads \(context.heads)")
        }
        let core = AFTCore(try buildBias(context), isCausal: context.isCausal, activation: queryActivation)
        return AFT(
            core, modelDim: context.modelDim, hiddenDim: hiddenDim, heads: context.heads, using: context.generator)
    }

    private func buildBias(_ context: MixerContext) throws -> AFTBias {
        switch form {
        case .simple: return .zero
        case .full: return .pairs(try buildPairs(context, window: nil))
        case .local: return .pairs(try buildPairs(context, window: window ?? 32))
        case .conv:
            let kernel = kernel ?? 11
            if gridWidth != nil && context.isCausal {
                throw ConfigurationError(
                    "aft: a kernel on a grid has no causal form, as it reaches into the rows below; "
                        + "leave gridWidth out")
            }
            guard context.isCausal || !kernel.isMultiple(of: 2) else {
                throw ConfigurationError("aft: kernel must be odd in a bidirectional model, not \(kernel)")
            }
            return .taps(
                AFTTapBias(heads: context.heads, kernel: kernel, gridWidth: gridWidth, using: context.generator))
        }
    }

    private func buildPairs(_ context: MixerContext, window: Int?) throws -> AFTPairBias {
        guard let length = maximumLength ?? context.maximumLength else {
            throw ConfigurationError(
                "aft: form '\(form.rawValue)' has biases for pairs of positions, so it needs a maximumLength")
        }
        if let most = context.maximumLength, length < most {
            throw ConfigurationError("aft: maximumLength \(length) is below the model's \(most)")
        }
        let isFactorized = factorized ?? true
        if let window, !isFactorized {
            return .band(
                maximumLength: length, window: min(window, length), isCausal: context.isCausal,
                using: context.generator)
        }
        guard isFactorized || length <= 65_536 else {
            throw ConfigurationError(
                "aft: without factorized there would be \(length)² biases, for at most 65536 positions")
        }
        return AFTPairBias(
            maximumLength: length, dim: isFactorized ? biasDim ?? 64 : nil, window: window, using: context.generator)
    }

    private func refuseOutOfRange() throws {
        for (name, value) in [
            ("window", window), ("kernel", kernel), ("gridWidth", gridWidth), ("biasDim", biasDim),
            ("maximumLength", maximumLength), ("hiddenDim", hiddenDim),
        ] {
            if let value, !(1...10_000_000).contains(value) {
                throw ConfigurationError("aft: \(name) must be from 1 to 10000000, not \(value)")
            }
        }
    }

    /// An option that the form has no use for is a mistake.
    private func refuseIgnored() throws {
        let hasPairs = form == .full || form == .local
        let ignored: [(name: String, isIgnored: Bool, by: String)] = [
            ("window", window != nil && form != .local, "it belongs to form 'local'"),
            ("kernel", kernel != nil && form != .conv, "it belongs to form 'conv'"),
            ("gridWidth", gridWidth != nil && form != .conv, "it belongs to form 'conv'"),
            ("factorized", factorized != nil && !hasPairs, "it belongs to forms 'full' and 'local'"),
            ("biasDim", biasDim != nil && !hasPairs, "it belongs to forms 'full' and 'local'"),
            ("maximumLength", maximumLength != nil && !hasPairs, "it belongs to forms 'full' and 'local'"),
            ("biasDim", biasDim != nil && factorized == false, "it is the width of factors"),
        ]
        if let option = ignored.first(where: \.isIgnored) {
            throw ConfigurationError("aft: \(option.name) would be ignored: \(option.by)")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "aft", title: "Attention Free Transformer",
        paper: Paper("An Attention Free Transformer", authors: "Zhai et al.", year: 2021, arXiv: "2105.14103"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .constant,
        time: "O(N s D)", memory: "O(N D)",
        remark: """
            s is 1 with form simple, the window with local, the kernel's size with conv. Form full takes O(N² D) \
            time, and cannot stream as its biases for pairs of positions need every key again. full and local have \
            biases up to a maximum length; with them padding belongs on the right, with conv not between real tokens, \
            and on a grid on the right.
            """,
        options: AFTOptions.self, golden: { try goldenSubject($0) })
}

// MARK: - Golden files

extension AFTOptions {
    /// Variants are `full`, `local`, `simple`, `conv1d`, `conv2d`, with `layer-` before and `-causal` after.
    private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        let names = ["full", "local", "simple", "conv1d", "conv2d"]
        let directed = names.flatMap { $0 == "conv2d" ? [$0] : [$0, "\($0)-causal"] }
        try golden.expect(variants: directed + directed.map { "layer-\($0)" })
        let settings = golden.settings
        settings.describe("key_scale", "window_rule", "reparam", "tap_offset")
        let isLayer = golden.variant.hasPrefix("layer-")
        let name = names.first { golden.variant.replacing("layer-", with: "").hasPrefix($0) } ?? ""
        let isCausal = try settings.bool("causal")
        guard isCausal == golden.variant.hasSuffix("-causal") else {
            throw ConfigurationError("setting 'causal' is \(isCausal), which the variant '\(golden.variant)' is not")
        }
        let form = name.hasPrefix("conv") ? "conv" : name
        _ = try settings.string("variant", or: form, expecting: [form])
        let activationName = try settings.optionalString("query_activation") ?? "sigmoid"
        guard let activation = Activation(rawValue: activationName) else {
            throw ConfigurationError("unknown query_activation '\(activationName)'")
        }
        let core = AFTCore(try goldenBias(golden, name), isCausal: isCausal, activation: activation)
        return .evaluation(try isLayer ? goldenLayer(golden, core) : goldenCore(golden, core))
    }

    private static func goldenBias(_ golden: GoldenCase, _ name: String) throws -> AFTBias {
        let generator = RandomGenerator(seed: 0)
        let window = try golden.settings.optionalInt("window")
        if (window != nil) != (name == "local") {
            throw ConfigurationError("a window belongs to 'local', not to '\(name)'")
        }
        switch name {
        case "simple": return .zero
        case "full", "local":
            let u = golden.optionalTensor("param.u")
            let length = try (u ?? golden.tensor("param.w")).size(0)
            if let factorized = try golden.settings.optionalBool("factorized"), factorized != (u != nil) {
                throw ConfigurationError(
                    "setting 'factorized' is \(factorized), but the file has \(u == nil ? "no" : "a") param.u")
            }
            if let dim = try golden.settings.optionalInt("d_prime") { try golden.check("d_prime", u?.size(1) ?? dim) }
            if let window, window < 1 { throw ConfigurationError("aft: window must be at least 1, not \(window)") }
            return .pairs(AFTPairBias(maximumLength: length, dim: u?.size(1), window: window, using: generator))
        default:
            let w = try golden.tensor("param.w")
            try golden.check("kernel", w.size(1))
            try golden.check("dims", w.rank - 1)
            let grid = try name == "conv2d" ? golden.settings.ints("grid") : []
            guard w.rank == (name == "conv2d" ? 3 : 2), name != "conv2d" || grid.count == 2 && grid[1] > 0 else {
                throw ConfigurationError("param.w \(w.shape) on the grid \(grid) is not what '\(name)' takes")
            }
            return .taps(
                AFTTapBias(
                    heads: w.size(0), kernel: w.size(1), gridWidth: grid.last,
                    standardizes: golden.optionalTensor("param.gamma") != nil, using: generator))
        }
    }

    private static func goldenCore(_ golden: GoldenCase, _ core: AFTCore) throws -> GoldenEvaluation {
        let (q, k) = (try golden.tensor("q"), try golden.tensor("k"))
        try golden.check("batch", q.size(0))
        try golden.check("heads", q.size(1))
        try golden.check("length", q.size(2))
        try golden.check("head_dim", q.size(3))
        try golden.check("key_dim_per_head", k.size(3))
        try checkGrid(golden, core, length: q.size(2))
        let mask = try golden.paddingMask()
        return GoldenEvaluation(core, inputs: ["q", "k", "v"], parameterName: biasName) { inputs, usesReference in
            let (q, k, v) = (inputs[0], inputs[1], inputs[2])
            return [
                "out": usesReference
                    ? core.reference(q, k, v, paddingMask: mask) : core(q, k, v, paddingMask: mask)
            ]
        }
    }

    private static func goldenLayer(_ golden: GoldenCase, _ core: AFTCore) throws -> GoldenEvaluation {
        let (x, value) = (try golden.tensor("x"), try golden.tensor("param.v.weight"))
        let heads = try golden.settings.optionalInt("heads") ?? 1
        guard heads > 0, value.size(0).isMultiple(of: heads) else {
            throw ConfigurationError("d_hidden \(value.size(0)) is not a multiple of heads \(heads)")
        }
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("d_model", x.size(2))
        try golden.check("d_hidden", value.size(0))
        try golden.check("head_dim", value.size(0) / heads)
        try golden.check("key_dim_per_head", golden.tensor("param.k.weight").size(0) / heads)
        try checkGrid(golden, core, length: x.size(1))
        let layer = AFT(
            core, modelDim: x.size(2), hiddenDim: value.size(0), heads: heads, using: RandomGenerator(seed: 0))
        return GoldenEvaluation(layer, paddingMask: try golden.paddingMask()) { name in
            let parts = ["q": "query", "k": "key", "v": "value", "out": "output"]
            guard let dot = name.firstIndex(of: "."), let part = parts[String(name[..<dot])] else {
                return "core.\(biasName(name))"
            }
            return part + name[dot...]
        }
    }

    private static func checkGrid(_ golden: GoldenCase, _ core: AFTCore, length: Int) throws {
        guard case .taps(let taps) = core.bias, taps.gridWidth != nil else { return }
        let grid = try golden.settings.ints("grid")
        guard grid.reduce(1, *) == length else {
            throw ConfigurationError("setting 'grid' is \(grid), but the tensors have \(length) positions")
        }
    }

    private static func biasName(_ name: String) -> String { "bias.\(name == "v_pos" ? "v" : name)" }
}
