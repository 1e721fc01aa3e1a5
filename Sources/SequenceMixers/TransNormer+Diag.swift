import Foundation
import Torch
import TorchNN

/// How ``DiagAttention`` makes weights of scores.
public enum DiagActivation: String, NamedChoice {
    /// T2's: exact attention inside the block.
    case softmax
    /// T1's (rectified linear attention): relu, and a norm over all heads instead of a denominator.
    case relu
}

/// Exact attention inside blocks of w tokens; blocks do not see each other.
///
/// Time O(N w D), memory O(N (w heads + D)); streaming keeps the keys and values of the current block.
public final class DiagAttention: TransNormerAttention, StreamingMixer, ReferenceEvaluating {
    public let activation: DiagActivation
    /// w
    public let block: Int
    /// On the weights, in training.
    public let dropout: Dropout

    public init(
        modelDim: Int, heads: Int, isCausal: Bool, activation: DiagActivation = .softmax, block: Int = 64,
        position: TransNormerPositionKind = .lrpe, dropout: Double = 0, epsilon: Double = 1e-8,
        using generator: RandomGenerator
    ) {
        torchPrecondition(block > 0, in: "DiagAttention", "expected a block of at least one token, got \(block)")
        self.activation = activation
        self.block = max(block, 1)
        self.dropout = Dropout(dropout, using: generator)
        super.init(
            modelDim: modelDim, heads: heads, isCausal: isCausal, position: position, epsilon: epsilon, gain: 1,
            in: "DiagAttention", using: generator)
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        let (q, k, v) = projected(x, at: positions(from: [0], length: x.size(1), x.device))
        return finished(attended(q, k, v, paddingMask), normalizing: activation == .relu, x.dtype)
    }

    private func projected(_ x: Tensor, at positions: Tensor) -> (q: Tensor, k: Tensor, v: Tensor) {
        let (q, k) = encoded(split(query(x)), split(key(x)), at: positions)
        return (q, k, split(value(x)))
    }

    /// q and k with their positions, which count from the first token of the block.
    func encoded(_ q: Tensor, _ k: Tensor, at positions: Tensor) -> (q: Tensor, k: Tensor) {
        let waves = position.waves(at: positions.remainder(dividingBy: block), q.dtype)
        return (position(q, by: waves), position(k, by: waves))
    }

    private var scale: Double { 1 / Double(headDim).squareRoot() }

    /// Of q and k with their positions.
    func attended(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor {
        usesReference ? reference(q, k, v, paddingMask) : blockwise(q, k, v, paddingMask)
    }

    /// q, k, v `[batch, heads, n, headDim]` from the first token of a block on.
    private func blockwise(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let length = q.size(2)
        if activation == .softmax && q.device == .cpu && !(dropout.isTraining && dropout.probability > 0) {
            return intervalAttention(q, k, v, intervals: ownBlocks(length), keyMask: paddingMask, scale: scale)
        }
        let size = max(1, min(block, length))
        let blocks = (length + size - 1) / size
        let missing = blocks * size - length
        func cut(_ x: Tensor) -> Tensor {
            x.padded(2, after: missing).reshaped(x.size(0), x.size(1), blocks, size, -1)
        }
        let scores = matmul(cut(q) * scale, cut(k).transposed())  // [batch, heads, blocks, size, size]
        var visible: Tensor?
        if isCausal { visible = Tensor.ones([size, size], dtype: .bool, device: q.device).lowerTriangle() }
        if paddingMask != nil || (missing > 0 && !isCausal) {
            let mask = paddingMask ?? .ones([1, length], dtype: .bool, device: q.device)
            let tail = Tensor.zeros([mask.size(0), missing], dtype: .bool, device: q.device)
            let real = concatenate([mask, tail], dim: 1).reshaped(-1, 1, blocks, 1, size)
            visible = visible.map { earlier in (earlier .&& real) } ?? real
        }
        let out = matmul(dropout(weights(scores, visible)), cut(v))
        return out.flattened(2, 3).sliced(2, 0..<length)
    }

    /// The keys that each query sees: int32 `[1, length, 2]`
    private func ownBlocks(_ length: Int) -> Tensor {
        let places = Tensor.arange(0..<length)
        let starts = places.floorDivided(by: block) * block
        return stack([starts, isCausal ? places + 1 : starts + min(block, length)], dim: 1).unsqueezed(0).to(.int32)
    }

    /// The definition, with a mask over all pairs of tokens.
    private func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let places = Tensor.arange(0..<q.size(2), device: q.device)
        let blocks = places.floorDivided(by: block)
        var visible = blocks.unsqueezed(1) .== blocks.unsqueezed(0)
        if isCausal { visible = (visible .&& (places.unsqueezed(1) .>= places.unsqueezed(0))) }
        if let paddingMask { visible = (visible .&& paddingMask.unsqueezed(1).unsqueezed(1)) }
        return matmul(dropout(weights(matmul(q * scale, k.transposed()), visible)), v)
    }

    /// A row that may look at nothing has weights of 0.
    private func weights(_ scores: Tensor, _ visible: Tensor?) -> Tensor {
        switch activation {
        case .relu:
            return visible.map { scores.relu().masked(where: .!$0, with: 0) } ?? scores.relu()
        case .softmax:
            guard let visible else { return scores.softmax() }
            let blind = .!visible.any(-1, keepDim: true)
            let open = scores.masked(where: .!visible, with: -Double.infinity).masked(where: blind, with: 0)
            return open.softmax().masked(where: blind, with: 0)
        }
    }

    // MARK: Streaming

    public func initialState(batch: Int) -> DiagAttentionState {
        let weight = value.weight.value
        let slots = Tensor.zeros(
            [batch, heads, block, headDim], dtype: weight.dtype.accumulator, device: weight.device)
        return DiagAttentionState(
            keys: slots, values: slots, real: .zeros([batch, block], dtype: .bool, device: weight.device),
            filled: Array(repeating: 0, count: batch))
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout DiagAttentionState) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        checkBatch(x, state.filled.count)
        checkStreams("DiagAttention.prefill")
        let length = x.size(1)
        let places = positions(from: state.filled, length: length, x.device)  // [batch, 1, length]
        let (q, k, v) = projected(x, at: places)
        let mask = paddingMask ?? .ones([x.size(0), length], dtype: .bool, device: x.device)
        let joined = JoinedPiece(state, length, block, x.device)
        let (keys, values) = (joined.join(state.keys, k), joined.join(state.values, v))
        let real = (joined.join(state.real, mask) .&& joined.isThere)
        let out = blockwise(joined.join(.zeros(like: state.keys), q), keys, values, real)

        let lengths = paddingMask.map(realLengths) ?? state.filled.map { _ in length }
        let ends = zip(state.filled, lengths).map { $0 + $1 }
        let kept = joined.lastBlock(ends)  // [batch, block]
        let filled = ends.map { $0 % block }
        let isFilled = (Tensor.arange(0..<block, device: x.device) .< Tensor(filled, device: x.device).unsqueezed(1))
        state = DiagAttentionState(
            keys: keys.taken(kept), values: values.taken(kept), real: (real.gathered(1, kept) .&& isFilled),
            filled: filled)
        return finished(out.taken(places.squeezed(1)), normalizing: activation == .relu, x.dtype)
    }

    public func step(_ x: Tensor, state: inout DiagAttentionState) -> Tensor {
        checkStep(x, modelDim: query.inputs, batch: state.filled.count)
        checkStreams("DiagAttention.step")
        let (q, k, v) = projected(x.unsqueezed(1), at: positions(from: state.filled, length: 1, x.device))
        let slots = Tensor.arange(0..<block, device: x.device)
        let filled = Tensor(state.filled, device: x.device).unsqueezed(1)
        let isOwn = slots .== filled  // [batch, block]
        let slot = isOwn.unsqueezed(1).unsqueezed(3)
        state = DiagAttentionState(
            keys: select(slot, k, state.keys), values: select(slot, v, state.values),
            real: ((state.real .&& (slots .< filled)) .|| isOwn), filled: state.filled.map { ($0 + 1) % block })
        let scores = matmul(q * scale, state.keys.transposed())  // [batch, heads, 1, block]
        let out = matmul(weights(scores, state.real.unsqueezed(1).unsqueezed(1)), state.values)
        return finished(out, normalizing: activation == .relu, x.dtype).squeezed(1)
    }
}

/// What ``DiagAttention`` remembers: the current block's keys and values, in as many slots as a block has tokens.
public struct DiagAttentionState: StreamingState {
    var keys, values: Tensor  // [batch, heads, block, headDim]
    var real: Tensor  // [batch, block], whether a slot holds a real token of the current block
    var filled: [Int]  // tokens that the current block of each sequence has

    public var tensors: [String: Tensor] {
        ["keys": keys, "values": values, "real": real, "filled": Tensor(filled)]
    }
}

/// The tokens of the blocks that were begun, and a piece after them: place 0 of each sequence is a block's first token.
private struct JoinedPiece {
    private let sources: Tensor  // [batch, length] places in the slots followed by the piece
    private let length: Int
    private let block: Int
    private let device: Device
    /// `[batch, length]`; beyond the end of a shorter sequence there is nothing.
    let isThere: Tensor

    init(_ state: DiagAttentionState, _ piece: Int, _ block: Int, _ device: Device) {
        self.block = block
        self.device = device
        length = (state.filled.max() ?? 0) + piece
        let places = Tensor.arange(0..<length, device: device).unsqueezed(0)
        let filled = Tensor(state.filled, device: device).unsqueezed(1)
        isThere = (places .< (filled + piece))
        let last = Tensor(block + piece - 1, device: device)
        sources = minimum(select(places .< filled, places, places - filled + block), last)
    }

    /// `[batch, heads, block, dim]` and `[batch, heads, piece, dim]`, or masks without heads and dim, as one.
    func join(_ slots: Tensor, _ piece: Tensor) -> Tensor {
        if slots.rank == 2 { return concatenate([slots, piece], dim: 1).gathered(1, sources) }
        return concatenate([slots, piece], dim: 2).taken(sources)
    }

    /// The places of the block that each sequence is in when it ends: `[batch, block]`.
    func lastBlock(_ ends: [Int]) -> Tensor {
        let starts = Tensor(ends.map { $0 - $0 % block }, device: device).unsqueezed(1)
        return minimum(starts + Tensor.arange(0..<block, device: device), Tensor(length - 1, device: device))
    }
}

extension Tensor {
    /// `[batch, heads, length, dim]` at the places `[batch, n]` → `[batch, heads, n, dim]`.
    fileprivate func taken(_ places: Tensor) -> Tensor {
        gathered(2, places.unsqueezed(1).unsqueezed(3).expanded(to: [-1, size(1), -1, size(3)]))
    }
}
