import Torch
import TorchNN

/// A layer that lets the positions of a sequence see each other: x `[batch, length, modelDim]` to the same shape.
///
/// Every mechanism of the catalogue is one, whatever it computes inside. The contract, the same for all of them:
/// - any length from 1 up, any batch;
/// - `paddingMask` `[batch, length]` is true for a real token. A padded position never changes the output at a real one;
///   what stands at padded positions of the output is unspecified;
/// - a causal mixer's output at t depends on the tokens up to t only.
public protocol SequenceMixer: Module {
    /// Whether a position sees only itself and what is before it.
    var isCausal: Bool { get }

    /// Whether it normalizes its input and adds it to its output itself, so that the block around it does neither.
    var isWholeBlock: Bool { get }

    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor
}

extension SequenceMixer {
    public var isWholeBlock: Bool { false }

    /// Traps, naming the layer, unless x is `[batch, length, modelDim]` and the mask `[batch, length]`.
    func checkInput(_ x: Tensor, _ paddingMask: Tensor?, modelDim: Int) {
        let shape = x.shape
        torchPrecondition(
            shape.count == 3 && shape.last == modelDim && !shape.contains(0), in: "\(type(of: self))",
            "expected x [batch, length, \(modelDim)]; got \(shape)")
        if let mask = paddingMask {
            torchPrecondition(
                mask.shape == Array(shape.dropLast()) && mask.dtype == .bool, in: "\(type(of: self))",
                "expected a bool paddingMask [batch, length] for x \(shape); got \(mask.dtype) \(mask.shape)")
        }
    }

    /// Traps unless x is one token of each sequence, `[batch, modelDim]`, as many as the state has.
    func checkStep(_ x: Tensor, modelDim: Int, batch: Int) {
        torchPrecondition(
            x.rank == 2 && x.size(1) == modelDim, in: "\(type(of: self)).step",
            "expected one token of each sequence [batch, \(modelDim)]; got \(x.shape)")
        checkBatch(x, batch)
    }

    /// Traps unless x has as many sequences as the state.
    func checkBatch(_ x: Tensor, _ batch: Int) {
        torchPrecondition(
            x.size(0) == batch, in: "\(type(of: self))", "the state is of \(batch) sequences; got x \(x.shape)")
    }

    public func callAsFunction(_ x: Tensor) -> Tensor { self(x, paddingMask: nil) }
}

/// A causal mixer that can also take a sequence piece by piece, carrying a state.
///
/// ``prefill(_:paddingMask:state:)`` of a sequence cut anywhere, followed by ``step(_:state:)`` for the rest, gives what one
/// call on the whole sequence gives, to rounding.
public protocol StreamingMixer: SequenceMixer {
    associatedtype State: StreamingState

    /// Whether it can carry a state as it was built; without, the functions below trap.
    var canStream: Bool { get }

    /// The state before the first token.
    func initialState(batch: Int) -> State

    /// Takes up `[batch, length, modelDim]` in parallel and returns the outputs there.
    ///
    /// What is padded after a sequence's last real token leaves its state alone, so that sequences of different lengths go
    /// on from here, each as it would by itself.
    func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout State) -> Tensor

    /// Takes up one token: `[batch, modelDim]` to the same shape.
    func step(_ x: Tensor, state: inout State) -> Tensor
}

/// What a streaming mixer remembers: a value, so that a copy can go on by itself, and one that can be saved.
public protocol StreamingState {
    /// Everything there is to save, by name.
    var tensors: [String: Tensor] { get }
}

extension StreamingMixer {
    public var canStream: Bool { isCausal }

    /// ``initialState(batch:)`` for callers that do not know which mixer they hold.
    public func anyInitialState(batch: Int) -> any StreamingState { initialState(batch: batch) }

    /// ``prefill(_:paddingMask:state:)`` on a state made by this mixer's ``anyInitialState(batch:)``.
    public func prefill(_ x: Tensor, paddingMask: Tensor?, anyState: inout any StreamingState) -> Tensor {
        var state = own(anyState)
        defer { anyState = state }
        return prefill(x, paddingMask: paddingMask, state: &state)
    }

    /// ``step(_:state:)`` on a state made by this mixer's ``anyInitialState(batch:)``.
    public func step(_ x: Tensor, anyState: inout any StreamingState) -> Tensor {
        var state = own(anyState)
        defer { anyState = state }
        return step(x, state: &state)
    }

    private func own(_ state: any StreamingState) -> State {
        guard let state = state as? State else {
            fatalError("\(type(of: self)): the state given, a \(type(of: state)), belongs to another mixer")
        }
        return state
    }
}
