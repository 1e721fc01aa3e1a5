// gMLP and aMLP. Liu, Dai, So, Le 2021, "Pay Attention to MLPs", arXiv 2105.08050. A block, x to y:
//
//   h = LayerNorm(x),  z = gelu(h U + b_U)             U: D → E
//   u, v = the halves of z's channels                  v with a LayerNorm of its own
//   g_t = Σ_s W_ts v_s + b_t + a_t W_o                 W [n, n] fixed after training; b one number a position
//   y = x + (u ⊙ g) V + b_V                            V: E/2 → D
//
// a is the tiny attention of aMLP, softmax(q kᵀ / √d) v for q, k, v = h W_qkv, and absent in gMLP. Causal (not in the
// paper): W without what is above its diagonal, and causal attention. A padded v is 0, and a padded key is not looked
// at.
import Torch
import TorchNN

/// The one small head of attention of aMLP, `[batch, length, inputs]` → `[batch, length, outputs]`.
public final class TinyAttention: Module {
    /// Queries, keys and values at once, without bias.
    public let queryKeyValue: Linear
    public let output: Linear
    public let core: SoftmaxCore

    public init(_ inputs: Int, _ outputs: Int, dim: Int, isCausal: Bool, using generator: RandomGenerator) {
        queryKeyValue = Linear(inputs, 3 * dim, bias: false, using: generator)
        output = Linear(dim, outputs, using: generator)
        core = SoftmaxCore(isCausal: isCausal)
        super.init()
    }

    public var dim: Int { output.inputs }

    func callAsFunction(_ h: Tensor, _ attend: (_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor) -> Tensor {
        let parts = queryKeyValue(h).split(into: 3, dim: 2).map { $0.unsqueezed(1) }  // [batch, 1, length, dim]
        return output(attend(parts[0], parts[1], parts[2]).squeezed(1))
    }
}

/// A whole block of gMLP, or of aMLP with a tiny attention: norm, residual connection and what stands in for a
/// feed-forward part included.
///
/// Time and memory are the ``SpatialGatingUnit``'s, and O(N D E) for the layers. Streaming keeps v of every token.
public final class GMLP: Module, ReferenceEvaluating, StreamingMixer {
    public let norm: LayerNorm
    public let input: Linear
    public let gating: SpatialGatingUnit
    public let attention: TinyAttention?
    public let output: Linear
    let activation: Activation

    /// Evaluates the gating unit and the attention entry by entry instead.
    public var usesReference = false

    /// - Parameters:
    ///   - gating: for E channels.
    ///   - attentionDim: d of the tiny attention; nil for none.
    public init(
        _ gating: SpatialGatingUnit, modelDim: Int, attentionDim: Int? = nil, activation: Activation = .gelu,
        epsilon: Double = 1e-5, using generator: RandomGenerator
    ) {
        let half = gating.norm.dim
        norm = LayerNorm(modelDim, epsilon: epsilon)
        input = Linear(modelDim, 2 * half, using: generator)
        self.gating = gating
        attention = attentionDim.map {
            TinyAttention(modelDim, half, dim: $0, isCausal: gating.isCausal, using: generator)
        }
        output = Linear(half, modelDim, using: generator)
        self.activation = activation
        super.init()
    }

    public var isCausal: Bool { gating.isCausal }
    public var isWholeBlock: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isInput(x, paddingMask), gating.checkLength(x.size(1)) else { return x }
        let h = norm(x)
        let attended = attention.map { attention in
            attention(h) { q, k, v in
                usesReference
                    ? attention.core.reference(q, k, v, paddingMask: paddingMask)
                    : attention.core(q, k, v, paddingMask: paddingMask)
            }
        }
        let z = activation(input(h))
        let gated =
            usesReference
            ? gating.reference(z, adding: attended, paddingMask: paddingMask)
            : gating(z, adding: attended, paddingMask: paddingMask)
        return x + output(gated)
    }

    /// Traps when x and the mask do not fit; false where the caller is to go on without them.
    private func isInput(_ x: Tensor, _ paddingMask: Tensor?) -> Bool {
        checkInput(x, paddingMask, modelDim: norm.dim)
        let shape = x.shape
        guard shape.count == 3, shape[2] == norm.dim, !shape.contains(0) else { return false }
        return paddingMask.map { $0.shape == [shape[0], shape[1]] && $0.dtype == .bool } ?? true
    }

    // MARK: Streaming

    public func initialState(batch: Int) -> GMLPState {
        let weight = input.weight.value
        let cache = attention.map {
            KeyValueCache(
                CoreShape(
                    batch: batch, heads: 1, headDim: $0.dim, valueDim: $0.dim, dtype: weight.dtype,
                    device: weight.device))
        }
        return GMLPState(
            gates: .zeros([batch, 0, gating.norm.dim], dtype: weight.dtype, device: weight.device),
            attention: cache, positions: Array(repeating: 0, count: batch))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout GMLPState) -> Tensor {
        guard isInput(x, paddingMask), isStreaming(x, state) else { return x }
        let n = x.size(1)
        let lengths = paddingMask.map(realLengths) ?? state.positions.map { _ in n }
        let ends = zip(state.positions, lengths).map { $0 + $1 }
        guard gating.checkLength(ends.max() ?? 0) else { return x }
        let h = norm(x)
        var cache = state.attention
        let attended = attention.map { attention in
            attention(h) { q, k, v in
                guard var filled = cache else { return v }
                let y = attention.core.prefill(q, k, v, paddingMask: paddingMask, state: &filled)
                cache = filled
                return y
            }
        }
        let z = activation(input(h))
        let gate = continued(gating.gates(z, paddingMask), attended, &state.gates, from: state.positions)
        state.attention = cache
        state.positions = ends
        return x + output(gating.keep(z) * gate)
    }

    public func step(_ x: Tensor, state: inout GMLPState) -> Tensor {
        checkStep(x, modelDim: norm.dim, batch: state.positions.count)
        guard x.rank == 2, x.size(1) == norm.dim, isStreaming(x, state) else { return x }
        return prefill(x.unsqueezed(1), paddingMask: nil, state: &state).squeezed(1)
    }

    /// g of the next tokens, whose v is put behind that of each sequence's tokens before.
    private func continued(_ v: Tensor, _ attended: Tensor?, _ past: inout Tensor, from positions: [Int]) -> Tensor {
        let first = positions.first ?? 0
        if positions.allSatisfy({ $0 == first }) {
            let before = past.sliced(1, 0..<min(first, past.size(1)))
            past = concatenate([before, v], dim: 1)
            return gates(past, v.size(1), attended, from: first)
        }
        // Sequences that stand at different places, one by one.
        let length = v.size(1)
        let longest = (positions.max() ?? 0) + length
        let parts = positions.enumerated().map { row, position in
            let part = { (x: Tensor) in x.sliced(0, row..<row + 1) }
            let whole = concatenate([part(past).sliced(1, 0..<position), part(v)], dim: 1)
            let gate = gates(whole, length, attended.map(part), from: position)
            return (gate: gate, past: whole.padded(1, after: longest - position - length))
        }
        past = concatenate(parts.map(\.past))
        return concatenate(parts.map(\.gate))
    }

    /// g of the last `count` of the tokens whose v is given. Padded ones beyond the weights' length get zeros.
    private func gates(_ v: Tensor, _ count: Int, _ attended: Tensor?, from position: Int) -> Tensor {
        let end = min(position + count, gating.maximumLength)
        if end <= position { return .zeros(like: v.sliced(1, 0..<count)) }
        let known = v.sliced(1, 0..<end)
        let mixed: Tensor
        if position == 0 {
            mixed = gating.mixed(known)
        } else {
            // Few rows of W: [heads, rows, end] times [batch, heads, end, channels].
            mixed = matmul(gating.rows(position..<end, columns: end), known.splitHeads(gating.heads)).mergedHeads()
        }
        let gate = gating.gate(mixed, attended?.sliced(1, 0..<end - position), rows: position..<end)
        return gate.padded(1, after: position + count - end)
    }

    private func isStreaming(_ x: Tensor, _ state: GMLPState) -> Bool {
        torchPrecondition(isCausal, in: "GMLP", "a bidirectional block cannot stream")
        checkBatch(x, state.positions.count)
        return isCausal && x.size(0) == state.positions.count
    }
}

/// What a causal block of gMLP remembers: it grows with the length.
public struct GMLPState: StreamingState {
    /// v of every token so far, zeros behind a sequence's end: `[batch, longest, E / 2]`.
    var gates: Tensor
    /// Of the tiny attention.
    var attention: KeyValueCache?
    /// Where each sequence's next token stands.
    public var positions: [Int]

    public var tensors: [String: Tensor] {
        var tensors = ["gates": gates, "positions": Tensor(positions)]
        for (name, tensor) in attention?.tensors ?? [:] { tensors["attention.\(name)"] = tensor }
        return tensors
    }
}

// MARK: - In the catalogue

/// Options of `gmlp` in a recipe. The mixer is a whole block: give the model `feedForwardDim: 0`.
public struct GMLPOptions: MixerOptions {
    /// The paper has Toeplitz weights for text and dense ones for images.
    public var spatial: SpatialWeights = .toeplitz
    /// E; left out, six times the model's width.
    public var hiddenDim: Int?
    /// Groups of channels with spatial weights of their own.
    public var spatialHeads = 1
    /// d of the tiny attention, which makes the block one of aMLP; left out, there is none.
    public var attentionDim: Int?
    public var activation: Activation = .gelu
    /// Of the norms.
    public var epsilon = 1e-5
    /// The longest sequence there are weights for; left out, the model's.
    public var maximumLength: Int?

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        spatial = try container.value(.spatial, default: spatial)
        hiddenDim = try container.decodeIfPresent(Int.self, forKey: .hiddenDim)
        spatialHeads = try container.value(.spatialHeads, default: spatialHeads)
        attentionDim = try container.decodeIfPresent(Int.self, forKey: .attentionDim)
        activation = try container.value(.activation, default: activation)
        epsilon = try container.value(.epsilon, default: epsilon)
        maximumLength = try container.decodeIfPresent(Int.self, forKey: .maximumLength)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let sizes: [(name: String, value: Int?)] = [
            ("hiddenDim", hiddenDim), ("spatialHeads", spatialHeads), ("attentionDim", attentionDim),
            ("maximumLength", maximumLength),
        ]
        for (name, value) in sizes {
            if let value, !(1...10_000_000).contains(value) {
                throw ConfigurationError("gmlp: \(name) must be from 1 to 10000000, not \(value)")
            }
        }
        guard epsilon > 0, epsilon.isFinite else {
            throw ConfigurationError("gmlp: epsilon must be above 0, not \(epsilon)")
        }
        let gating = SpatialGatingUnit(
            try buildHiddenDim(context), weights: spatial, heads: spatialHeads,
            maximumLength: try buildLength(context), isCausal: context.isCausal, epsilon: epsilon,
            using: context.generator)
        return GMLP(
            gating, modelDim: context.modelDim, attentionDim: attentionDim, activation: activation, epsilon: epsilon,
            using: context.generator)
    }

    private func buildHiddenDim(_ context: MixerContext) throws -> Int {
        let hiddenDim = hiddenDim ?? 6 * context.modelDim
        guard hiddenDim.isMultiple(of: 2 * spatialHeads) else {
            throw ConfigurationError(
                "gmlp: hiddenDim \(hiddenDim) is not a multiple of twice the \(spatialHeads) spatialHeads")
        }
        return hiddenDim
    }

    private func buildLength(_ context: MixerContext) throws -> Int {
        guard let length = maximumLength ?? context.maximumLength else {
            throw ConfigurationError("gmlp: its weights are for positions, so it needs a maximumLength")
        }
        if let most = context.maximumLength, length < most {
            throw ConfigurationError("gmlp: maximumLength \(length) is below the model's \(most)")
        }
        guard spatial == .toeplitz || length <= 65_536 else {
            throw ConfigurationError("gmlp: dense weights would be \(length)² a head, for at most 65536 positions")
        }
        return length
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "gmlp", title: "gMLP and aMLP",
        paper: Paper("Pay Attention to MLPs", authors: "Liu et al.", year: 2021, arXiv: "2105.08050"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .growing,
        time: "O(N log N D)", memory: "O(N D)",
        remark: """
            A whole block, to be used with feedForwardDim 0. With spatial dense it takes O(N² D) time and O(N²) memory \
            for its weights, and the tiny attention of aMLP O(N² d) time. Its weights are for positions, up to a \
            maximum length; padding belongs on the right.
            """,
        options: GMLPOptions.self, golden: { try goldenSubject($0) })
}

// MARK: - Golden files

extension GMLPOptions {
    /// Variants are `gmlp`, `amlp` and `sgu`, each also with `-causal`. `sgu` is the gating unit alone, on `z`.
    private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        try golden.expect(variants: ["gmlp", "amlp", "sgu"].flatMap { [$0, "\($0)-causal"] })
        let settings = golden.settings
        let isUnit = golden.variant.hasPrefix("sgu")
        let isCausal = try settings.bool("causal")
        guard isCausal == golden.variant.hasSuffix("-causal") else {
            throw ConfigurationError("setting 'causal' is \(isCausal), which the variant '\(golden.variant)' is not")
        }
        let attentionDim = try settings.optionalInt("d_attn") ?? 0
        guard (attentionDim > 0) == golden.variant.hasPrefix("amlp") else {
            throw ConfigurationError("setting 'd_attn' is \(attentionDim) in the variant '\(golden.variant)'")
        }
        let gating = try goldenGating(golden, isCausal: isCausal)
        let mask = try golden.paddingMask()
        if isUnit {
            settings.describe("activation", "d_model")
            return .evaluation(
                GoldenEvaluation(gating, inputs: ["z"], parameterName: { gatingName($0) }) { inputs, usesReference in
                    let z = inputs[0]
                    return [
                        "out": usesReference ? gating.reference(z, paddingMask: mask) : gating(z, paddingMask: mask)
                    ]
                })
        }
        let x = try golden.tensor("x")
        try golden.check("d_model", x.size(2))
        try golden.check("length", x.size(1))
        try golden.check("batch", x.size(0))
        let block = GMLP(
            gating, modelDim: x.size(2), attentionDim: attentionDim > 0 ? attentionDim : nil,
            activation: try goldenActivation(settings), epsilon: gating.norm.epsilon, using: RandomGenerator(seed: 0))
        return .evaluation(GoldenEvaluation(block, paddingMask: mask, parameterName: blockName))
    }

    private static func goldenGating(_ golden: GoldenCase, isCausal: Bool) throws -> SpatialGatingUnit {
        let settings = golden.settings
        let spatial = try settings.string("spatial", or: "dense", expecting: ["dense", "toeplitz"])
        let (hiddenDim, heads) = (try settings.int("d_ffn"), try settings.optionalInt("heads") ?? 1)
        let length = try settings.int("seq_len")
        guard heads > 0, hiddenDim > 0, hiddenDim.isMultiple(of: 2 * heads), length > 0 else {
            throw ConfigurationError("d_ffn \(hiddenDim), heads \(heads) and seq_len \(length) do not fit together")
        }
        let epsilon = try settings.optionalDouble("eps") ?? 1e-5
        return SpatialGatingUnit(
            hiddenDim, weights: spatial == "dense" ? .dense : .toeplitz, heads: heads, maximumLength: length,
            isCausal: isCausal, epsilon: epsilon, using: RandomGenerator(seed: 0))
    }

    private static func goldenActivation(_ settings: GoldenSettings) throws -> Activation {
        let names = ["gelu (exact erf)": Activation.gelu, "gelu (tanh)": .geluTanh]
        let name = try settings.optionalString("activation") ?? "gelu"
        guard let activation = names[name] ?? Activation(rawValue: name) else {
            throw ConfigurationError("unknown activation '\(name)'")
        }
        return activation
    }

    private static func gatingName(_ name: String) -> String {
        switch name {
        case "sgu.W", "sgu.w": "weight"
        case "sgu.b": "bias"
        default: name.replacing("sgu.", with: "")
        }
    }

    private static func blockName(_ name: String) -> String {
        if name.hasPrefix("sgu.") { return "gating.\(gatingName(name))" }
        let parts = [
            ("attn.qkv.", "attention.queryKeyValue."), ("attn.out.", "attention.output."), ("in.", "input."),
            ("out.", "output."),
        ]
        let part = parts.first { name.hasPrefix($0.0) }
        return part.map { $0.1 + name.dropFirst($0.0.count) } ?? name
    }
}
