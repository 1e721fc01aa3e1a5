import Torch
import TorchNN

/// The part of an attention mechanism between its projections: from queries, keys and values to outputs.
///
/// q `[batch, heads, n, headDim]`, k `[batch, heads, m, headDim]`, v `[batch, heads, m, valueDim]`; the result is
/// `[batch, heads, n, valueDim]`. `paddingMask` `[batch, m]` (bool) is true for a real key; rows of padded queries are
/// computed like all others.
public protocol AttentionCore: Module {
    var isCausal: Bool { get }

    /// The efficient form.
    func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor

    /// The paper's equations, literally: slow, quadratic where they are, and the truth that the efficient form is judged by.
    func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor
}

/// A causal core that can carry a state.
public protocol StreamingCore: AttentionCore {
    associatedtype State: StreamingState

    /// Whether it can carry a state as it was built: a bidirectional core, for one, cannot.
    var canStream: Bool { get }

    func initialState(_ shape: CoreShape) -> State

    /// The next `n` tokens' queries, keys and values, after those that made `state`.
    func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout State) -> Tensor

    /// One token, q, k `[batch, heads, headDim]`, v `[batch, heads, valueDim]`.
    func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout State) -> Tensor
}

extension StreamingCore {
    public var canStream: Bool { isCausal }
}

/// Sizes and element type that a core's state is made for.
public struct CoreShape: Sendable {
    public var batch: Int
    public var heads: Int
    public var headDim: Int
    public var valueDim: Int
    public var dtype: DType
    public var device: Device

    public init(batch: Int, heads: Int, headDim: Int, valueDim: Int, dtype: DType = .float32, device: Device = .cpu) {
        self.batch = batch
        self.heads = heads
        self.headDim = headDim
        self.valueDim = valueDim
        self.dtype = dtype
        self.device = device
    }
}

extension AttentionCore {
    /// Traps when q, k, v and the mask do not fit together.
    func check(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) {
        let (sq, sk, sv) = (q.shape, k.shape, v.shape)
        torchPrecondition(
            sq.count == 4 && sk.count == 4 && sv.count == 4 && sq[0] == sk[0] && sk[0] == sv[0] && sq[1] == sk[1]
                && sk[1] == sv[1] && sk[2] == sv[2] && sq[3] == sk[3],
            in: "\(type(of: self))",
            "expected q [batch, heads, n, d], k [batch, heads, m, d], v [batch, heads, m, e]; got \(sq), \(sk), \(sv)")
        torchPrecondition(
            !sq.contains(0) && !sk.contains(0) && !sv.contains(0), in: "\(type(of: self))",
            "expected at least one of everything; got q \(sq), k \(sk), v \(sv)")
        if let mask = paddingMask {
            torchPrecondition(
                sk.count == 4 && mask.shape == [sk[0], sk[2]] && mask.dtype == .bool, in: "\(type(of: self))",
                "expected a bool paddingMask [batch, m] for keys \(sk); got \(mask.dtype) \(mask.shape)")
        }
    }
}

/// A layer that can evaluate its mechanism's reference form instead of the efficient one, to compare the two.
public protocol ReferenceEvaluating: SequenceMixer {
    var usesReference: Bool { get set }
}

/// A layer built around a core.
public protocol CoreHolding: SequenceMixer {
    var anyCore: any AttentionCore { get }
}

/// Multi-head attention around a core: four projections, head h owning the channels `h * headDim ..< (h + 1) * headDim`.
///
/// Time and memory are the core's, plus O(N modelDim²) for the projections.
public final class Attention<Core: AttentionCore>: Module, ReferenceEvaluating, CoreHolding {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    public let output: Linear
    public let core: Core
    public let rotary: RotaryEmbedding?
    public let heads: Int

    /// Evaluates the core's ``AttentionCore/reference(_:_:_:paddingMask:)`` instead of its efficient form.
    public var usesReference = false

    public init(
        _ core: Core, modelDim: Int, heads: Int, bias: Bool = true, rotary: RotaryEmbedding? = nil,
        using generator: RandomGenerator
    ) {
        torchPrecondition(
            heads > 0 && modelDim.isMultiple(of: max(heads, 1)), in: "Attention",
            "modelDim \(modelDim) is not a multiple of heads \(heads)")
        self.core = core
        self.heads = heads
        self.rotary = rotary
        query = Linear(modelDim, modelDim, bias: bias, using: generator)
        key = Linear(modelDim, modelDim, bias: bias, using: generator)
        value = Linear(modelDim, modelDim, bias: bias, using: generator)
        output = Linear(modelDim, modelDim, bias: bias, using: generator)
        super.init()
    }

    public var isCausal: Bool { core.isCausal }
    public var anyCore: any AttentionCore { core }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let (q, k, v) = projected(x, from: [0])
        return merged(attend(q, k, v, paddingMask))
    }

    /// Attention from x `[batch, n, modelDim]` to `context` `[batch, m, modelDim]`; the mask is the context's.
    public func callAsFunction(_ x: Tensor, context: Tensor, contextMask: Tensor? = nil) -> Tensor {
        torchPrecondition(!core.isCausal, in: "Attention", "cross-attention to another sequence cannot be causal")
        torchPrecondition(rotary == nil, in: "Attention", "cross-attention takes no rotary positions")
        checkInput(x, nil, modelDim: query.inputs)
        checkInput(context, contextMask, modelDim: query.inputs)
        let (q, k, v) = (query(x), key(context), value(context))
        return merged(attend(q.splitHeads(heads), k.splitHeads(heads), v.splitHeads(heads), contextMask))
    }

    func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?) -> Tensor {
        usesReference ? core.reference(q, k, v, paddingMask: mask) : core(q, k, v, paddingMask: mask)
    }

    /// - Parameter positions: of each sequence's first token, or one for all.
    private func projected(_ x: Tensor, from positions: [Int]) -> (q: Tensor, k: Tensor, v: Tensor) {
        let joint = projections(x, query, key, value)
        let (q, k, v) = (joint.0.splitHeads(heads), joint.1.splitHeads(heads), joint.2.splitHeads(heads))
        guard let rotary else { return (q, k, v) }
        return (turned(q, from: positions, rotary), turned(k, from: positions, rotary), v)
    }

    private func turned(_ x: Tensor, from positions: [Int], _ rotary: RotaryEmbedding) -> Tensor {
        let first = positions.first ?? 0
        if positions.allSatisfy({ $0 == first }) { return rotary(x, offset: first) }
        return concatenate(
            positions.enumerated().map { rotary(x.sliced(0, $0.offset..<$0.offset + 1), offset: $0.element) })
    }

    private func merged(_ x: Tensor) -> Tensor { output(x.mergedHeads()) }
}

/// A core's state, and where each sequence of the batch stands.
public struct AttentionState<CoreState: StreamingState>: StreamingState {
    public var core: CoreState
    /// The position of each sequence's next token, which is the one after its last real token; for rotary positions.
    public var positions: [Int]

    public var tensors: [String: Tensor] { core.tensors.merging(["positions": Tensor(positions)]) { kept, _ in kept } }
}

extension Attention: StreamingMixer where Core: StreamingCore {
    public var canStream: Bool { core.canStream }

    public func initialState(batch: Int) -> AttentionState<Core.State> {
        let weight = value.weight.value
        let headDim = weight.size(0) / heads
        return AttentionState(
            core: core.initialState(
                CoreShape(
                    batch: batch, heads: heads, headDim: headDim, valueDim: headDim, dtype: weight.dtype,
                    device: weight.device)), positions: Array(repeating: 0, count: batch))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout AttentionState<Core.State>) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        checkBatch(x, state.positions.count)
        let (q, k, v) = projected(x, from: state.positions)
        let lengths = paddingMask.map(realLengths) ?? state.positions.map { _ in x.size(1) }
        state.positions = zip(state.positions, lengths).map { $0 + $1 }
        return merged(core.prefill(q, k, v, paddingMask: paddingMask, state: &state.core))
    }

    public func step(_ x: Tensor, state: inout AttentionState<Core.State>) -> Tensor {
        checkStep(x, modelDim: query.inputs, batch: state.positions.count)
        let (q, k, v) = projected(x.unsqueezed(1), from: state.positions)
        state.positions = state.positions.map { $0 + 1 }
        let y = core.step(q.squeezed(2), k.squeezed(2), v.squeezed(2), state: &state.core)
        return output(y.flattened(1, 2))
    }
}

/// The length of each sequence of a mask `[batch, length]` up to its last real token; 0 where there is none.
func realLengths(_ paddingMask: Tensor) -> [Int] {
    let places = Tensor.arange(1..<paddingMask.size(1) + 1, device: paddingMask.device)
    return (paddingMask.to(.int64) * places).maximum(1).scalars(as: Int64.self).map(Int.init)
}
