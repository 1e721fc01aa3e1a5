// TransNormer. Qin, Han, Sun, Li, Kong, Barnes, Zhong 2022, "The Devil in Linear Transformer", arXiv 2210.10340.
//
// Linear attention's division by a sum makes gradients unbounded, and its weights spread over the whole sequence. So the
// late layers have no denominator but a norm over all heads, and the early ones look exactly, but at blocks of w tokens
// only:
//   NormAttention   t_i = Σ_j (q'_i·k'_j) v_j,  q' = R(f(q)), k' = R(f(k)),  out = W_o rms(t)
//   DiagAttention   t_i = Σ_j p_ij v_j over the block of i,  s = R(q/√e)·R(k),  p = softmax(s): out = W_o t
//                                                                              p = relu(s):    out = W_o rms(t)
// with j ≤ i when causal, rms(t) = t / (|t|/√d + ε) over the d channels of all heads, and R the position encoding.
import Foundation
import Torch
import TorchNN

/// What TransNormer's two kinds of attention have in common: projections, positions, and the norm over all heads.
public class TransNormerAttention: Module {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    public let position: TransNormerPosition
    public let heads: Int
    public let isCausal: Bool
    /// ε of the norm, added to the root.
    public let epsilon: Double

    /// Evaluates the definition instead of the efficient form.
    public var usesReference = false

    init(
        modelDim: Int, heads: Int, isCausal: Bool, position: TransNormerPositionKind, epsilon: Double, gain: Double,
        in layer: String, using generator: RandomGenerator
    ) {
        torchPrecondition(
            heads > 0 && modelDim.isMultiple(of: max(heads, 1)), in: layer,
            "modelDim \(modelDim) is not a multiple of heads \(heads)")
        self.heads = heads
        self.isCausal = isCausal
        self.epsilon = epsilon
        query = Linear(modelDim, modelDim, using: generator)
        key = Linear(modelDim, modelDim, using: generator)
        value = Linear(modelDim, modelDim, using: generator)
        output = Linear(modelDim, modelDim, using: generator)
        self.position = TransNormerPosition(position, headDim: modelDim / max(heads, 1), using: generator)
        super.init()
        for projection in [query, key, value] {
            Initializer.xavierUniform(gain: gain).apply(to: projection.weight, using: generator)
        }
        Initializer.xavierUniform().apply(to: output.weight, using: generator)
        if let bias = output.bias { Initializer.zeros.apply(to: bias, using: generator) }
    }

    var headDim: Int { query.outputs / max(heads, 1) }

    /// `[batch, length, modelDim]` → `[batch, heads, length, headDim]`, in at least float32.
    func split(_ x: Tensor) -> Tensor {
        x.splitHeads(heads).to(x.dtype.accumulator)
    }

    /// The output projection of t `[batch, heads, length, headDim]`.
    func finished(_ t: Tensor, normalizing: Bool, _ dtype: DType) -> Tensor {
        let joined = t.mergedHeads()  // [batch, length, modelDim]
        return output((normalizing ? normalized(joined) : joined).to(dtype))
    }

    /// t / (|t|/√d + ε)
    func normalized(_ t: Tensor) -> Tensor { addedNorm(t, nil, .simple, weight: nil, epsilon: epsilon).normalized }

    /// The positions from `starts` on, one start for each sequence: `[batch, 1, length]`
    func positions(from starts: [Int], length: Int, _ device: Device) -> Tensor {
        let steps = Tensor.arange(0..<length, device: device)
        return Tensor(starts, device: device).reshaped(-1, 1, 1) + steps
    }

    func checkStreams(_ layer: String) {
        torchPrecondition(isCausal, in: layer, "bidirectional attention cannot stream")
    }
}

// MARK: - NormAttention

/// The function f of queries and keys in ``NormAttention``.
public enum TransNormerActivation: String, NamedChoice {
    /// T1's.
    case elu
    /// T2's.
    case onePlusElu = "1+elu"
    case relu
    case silu
    case sigmoid

    var elementwise: ElementwiseMap {
        switch self {
        case .elu: .elu
        case .onePlusElu: .eluPlusOne
        case .relu: .relu
        case .silu: .silu
        case .sigmoid: .sigmoid
        }
    }
}

/// Linear attention whose outputs are normalized instead of its weights.
///
/// Time O(N D (C + E)) for heads of width E and chunks of C tokens, memory O(N D), causal and gradients included;
/// streaming keeps E × E numbers a head, whatever the length.
public final class NormAttention: TransNormerAttention, StreamingMixer, ReferenceEvaluating {
    public let activation: TransNormerActivation

    public init(
        modelDim: Int, heads: Int, isCausal: Bool, activation: TransNormerActivation = .onePlusElu,
        position: TransNormerPositionKind = .lrpe, epsilon: Double = 1e-8, using generator: RandomGenerator
    ) {
        self.activation = activation
        super.init(
            modelDim: modelDim, heads: heads, isCausal: isCausal, position: position, epsilon: epsilon,
            gain: 0.5.squareRoot(), in: "NormAttention", using: generator)
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let (q, k, v) = projected(x, paddingMask, at: positions(from: [0], length: x.size(1), x.device))
        return finished(products(q, k, v, paddingMask), normalizing: true, x.dtype)
    }

    private func projected(_ x: Tensor, _ paddingMask: Tensor?, at positions: Tensor) -> (
        q: Tensor, k: Tensor, v: Tensor
    ) {
        let (q, k) = encoded(split(query(x)), split(key(x)), at: positions)
        // The kernel masks what it applies f to itself.
        return (q, fusedMap == nil ? maskedKeys(k, paddingMask) : k, split(value(x)))
    }

    /// f, for the kernel to apply, where no position comes after it.
    private var fusedMap: ElementwiseMap? {
        position.kind == .absent && isCausal && !usesReference ? activation.elementwise : nil
    }

    /// f and positions of queries and keys, but for what the kernel does itself.
    func encoded(_ q: Tensor, _ k: Tensor, at positions: Tensor) -> (q: Tensor, k: Tensor) {
        if fusedMap != nil { return (q, k) }
        let (map, waves) = (activation.elementwise, position.waves(at: positions, q.dtype))
        return (position(q, by: waves, map: map), position(k, by: waves, map: map))
    }

    /// Of queries and keys after f and with their positions; not yet normalized.
    func products(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor? = nil) -> Tensor {
        if usesReference {
            let weights = matmul(q, k.transposed())  // [batch, heads, n, n]
            return matmul(isCausal ? weights.lowerTriangle() : weights, v)
        }
        guard isCausal else { return matmul(q, matmul(k.transposed(), v)) }
        return causalLinearAttention(q, k, v, paddingMask: paddingMask, options).out
    }

    private var options: CausalLinearOptions {
        CausalLinearOptions(featureMap: fusedMap ?? .none, normalization: .none)
    }

    // MARK: Streaming

    public func initialState(batch: Int) -> NormAttentionState {
        let weight = value.weight.value
        return NormAttentionState(
            products: .zeros(
                [batch, heads, headDim, headDim], dtype: weight.dtype.accumulator, device: weight.device),
            positions: Array(repeating: 0, count: batch))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout NormAttentionState) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        checkBatch(x, state.positions.count)
        checkStreams("NormAttention.prefill")
        let (q, k, v) = projected(
            x, paddingMask, at: positions(from: state.positions, length: x.size(1), x.device))
        let lengths = paddingMask.map(realLengths) ?? state.positions.map { _ in x.size(1) }
        state.positions = zip(state.positions, lengths).map { $0 + $1 }
        let sums = Tensor.zeros([x.size(0), heads, k.size(3)], dtype: k.dtype, device: k.device)
        let (out, final) = causalLinearAttention(
            q, k, v, paddingMask: paddingMask, options,
            initial: CausalLinearState(s: state.products, p: nil, z: sums))
        state.products = final.s
        return finished(out, normalizing: true, x.dtype)
    }

    public func step(_ x: Tensor, state: inout NormAttentionState) -> Tensor {
        checkStep(x, modelDim: query.inputs, batch: state.positions.count)
        checkStreams("NormAttention.step")
        let places = positions(from: state.positions, length: 1, x.device)
        let row = x.unsqueezed(1)
        let (map, waves) = (activation.elementwise, position.waves(at: places, state.products.dtype))
        let q = position(split(query(row)), by: waves, map: map)
        let k = position(split(key(row)), by: waves, map: map)
        let v = split(value(row))
        state.positions = state.positions.map { $0 + 1 }
        state.products += matmul(k.transposed(), v)
        return finished(matmul(q, state.products), normalizing: true, x.dtype).squeezed(1)
    }
}

/// What ``NormAttention`` remembers: Σ k'_j v_jᵀ, and how many tokens there were.
public struct NormAttentionState: StreamingState {
    var products: Tensor  // [batch, heads, headDim, headDim]
    var positions: [Int]

    public var tensors: [String: Tensor] { ["products": products, "positions": Tensor(positions)] }
}

// MARK: - In the catalogue

/// The paper's two models.
public enum TransNormerVariant: String, NamedChoice {
    /// elu in norm attention, relu in diagonal attention.
    case t1
    /// 1 + elu in norm attention, softmax in diagonal attention.
    case t2

    public var normActivation: TransNormerActivation { self == .t1 ? .elu : .onePlusElu }
    public var diagActivation: DiagActivation { self == .t1 ? .relu : .softmax }
}

/// Which of TransNormer's attentions a block has.
public enum TransNormerKind: String, NamedChoice {
    /// Diagonal attention in the early half of the blocks, norm attention in the rest.
    case stack
    case norm
    case diag
}

/// Options of `transnormer` in a recipe.
public struct TransNormerOptions: MixerOptions {
    /// Which functions the attentions have, where the options below do not say.
    public var variant: TransNormerVariant = .t2
    public var attention: TransNormerKind = .stack
    /// Of `stack`: how many of the first blocks have diagonal attention; left out, half of them.
    public var diagLayers: Int?
    /// f of norm attention.
    public var normActivation: TransNormerActivation?
    /// Of diagonal attention.
    public var diagActivation: DiagActivation?
    /// w, tokens a block of diagonal attention; left out, 64.
    public var block: Int?
    public var position: TransNormerPositionKind = .lrpe
    /// On the weights of diagonal attention, in training; left out, 0.
    public var attentionDropout: Double?
    /// ε of the norm inside the attentions.
    public var epsilon = 1e-8

    public init() {}

    public init(
        _ attention: TransNormerKind, variant: TransNormerVariant = .t2, block: Int? = nil,
        position: TransNormerPositionKind = .lrpe
    ) {
        self.attention = attention
        self.variant = variant
        self.block = block
        self.position = position
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        variant = try container.value(.variant, default: variant)
        attention = try container.value(.attention, default: attention)
        diagLayers = try container.decodeIfPresent(Int.self, forKey: .diagLayers)
        normActivation = try container.decodeIfPresent(TransNormerActivation.self, forKey: .normActivation)
        diagActivation = try container.decodeIfPresent(DiagActivation.self, forKey: .diagActivation)
        block = try container.decodeIfPresent(Int.self, forKey: .block)
        position = try container.value(.position, default: position)
        attentionDropout = try container.decodeIfPresent(Double.self, forKey: .attentionDropout)
        epsilon = try container.value(.epsilon, default: epsilon)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try refuseOutOfRange(context)
        try refuseIgnored()
        let isDiagonal = attention == .diag || (attention == .stack && context.layer < diagonalLayers(context))
        if isDiagonal {
            return DiagAttention(
                modelDim: context.modelDim, heads: context.heads, isCausal: context.isCausal,
                activation: diagActivation ?? variant.diagActivation, block: block ?? 64, position: position,
                dropout: attentionDropout ?? 0, epsilon: epsilon, using: context.generator)
        }
        return NormAttention(
            modelDim: context.modelDim, heads: context.heads, isCausal: context.isCausal,
            activation: normActivation ?? variant.normActivation, position: position, epsilon: epsilon,
            using: context.generator)
    }

    private func diagonalLayers(_ context: MixerContext) -> Int { diagLayers ?? context.layers / 2 }

    private func refuseOutOfRange(_ context: MixerContext) throws {
        if let block, !(1...10_000_000).contains(block) {
            throw ConfigurationError("transnormer: block must be from 1 to 10000000, not \(block)")
        }
        guard epsilon > 0, epsilon.isFinite else {
            throw ConfigurationError("transnormer: epsilon must be above 0, not \(epsilon)")
        }
        if let attentionDropout, !(0..<1).contains(attentionDropout) {
            throw ConfigurationError(
                "transnormer: attentionDropout must be at least 0 and below 1, not \(attentionDropout)")
        }
        if let diagLayers, !(0...max(context.layers, 0)).contains(diagLayers) {
            throw ConfigurationError(
                "transnormer: diagLayers must be from 0 to the \(context.layers) layers there are, not \(diagLayers)")
        }
    }

    /// An option that the chosen attention has no use for is a mistake.
    private func refuseIgnored() throws {
        let ofDiagonal = [
            ("diagActivation", diagActivation != nil), ("block", block != nil),
            ("attentionDropout", attentionDropout != nil),
        ]
        for (name, isGiven) in ofDiagonal where isGiven && attention == .norm {
            throw ConfigurationError("transnormer: \(name) belongs to diagonal attention, not to attention: norm")
        }
        if normActivation != nil && attention == .diag {
            throw ConfigurationError("transnormer: normActivation belongs to norm attention, not to attention: diag")
        }
        if diagLayers != nil && attention != .stack {
            throw ConfigurationError("transnormer: diagLayers belongs to attention: stack, not \(attention.rawValue)")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "transnormer", title: "TransNormer",
        paper: Paper("The Devil in Linear Transformer", authors: "Qin et al.", year: 2022, arXiv: "2210.10340"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .constant,
        time: "O(N D²)", memory: "O(N D)",
        remark:
            "diagonal attention in the first half of the blocks, norm attention after, with positions of their own. "
            + "A padded token between real ones counts as a place; so does one before them in diagonal attention, "
            + "where it moves the blocks",
        options: TransNormerOptions.self, golden: { .evaluation(try goldenEvaluation($0)) })
}
