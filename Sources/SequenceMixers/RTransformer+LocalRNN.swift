// The local RNN of the R-Transformer: for every token a recurrent cell starts from zero and reads the last M tokens.
//
//   GRU    r = σ(W_r x + U_r h),  z = σ(W_z x + U_z h),  n = tanh(W_n x + r ∘ (U_n h)),  h' = (1 - z) ∘ n + z ∘ h
//   LSTM   i, f, o = σ(W x + U h),  g = tanh(W x + U h),  c' = f ∘ c + i ∘ g,  h' = o ∘ tanh(c')
//   plain  h' = tanh(W x + U h)
//
// each product with a bias. Before the first token stand zero vectors, which are steps like any other: with biases they
// change the state. The output at t is h after x_{t-M+1}, ..., x_t.
import Torch
import TorchNN

/// The recurrent cells a local RNN may run.
public enum RecurrentCell: String, NamedChoice {
    case gru
    case lstm
    /// One layer of tanh (Elman's network).
    case plain

    /// How many vectors of the model's width the cell computes in a step.
    public var gates: Int {
        switch self {
        case .gru: 3
        case .lstm: 4
        case .plain: 1
        }
    }

    var inKernels: LocalRecurrentCell {
        switch self {
        case .gru: .gru
        case .lstm: .lstm
        case .plain: .plain
        }
    }
}

/// A recurrent cell run over the last `window` tokens, from zero, separately for every token.
///
/// With g gates, time O(N M g modelDim²): each input is projected once, and all windows advance together in M - 1
/// products. Memory O(N M g modelDim) while gradients are recorded, else O(N modelDim). Streaming keeps the M - 1
/// windows that have begun, and advances all of them by one product a token.
public final class LocalRNN: Module, ReferenceEvaluating, StreamingMixer {
    /// W, `[gates · modelDim, modelDim]`, gate after gate: r, z, n of a GRU, i, f, g, o of an LSTM.
    public let inputWeight: Parameter
    /// U, as `inputWeight`.
    public let hiddenWeight: Parameter
    /// `[gates · modelDim]`
    public let inputBias: Parameter
    /// `[gates · modelDim]`
    public let hiddenBias: Parameter
    public let cell: RecurrentCell
    /// M
    public let window: Int
    public let modelDim: Int

    public var isCausal: Bool { true }
    public var usesReference = false

    /// Weights and biases are drawn uniformly between ±1/√modelDim.
    public init(_ cell: RecurrentCell, window: Int, modelDim: Int, using generator: RandomGenerator) {
        torchPrecondition(
            window > 0 && modelDim > 0, in: "LocalRNN",
            "expected a window and a modelDim above 0, got \(window) and \(modelDim)")
        self.cell = cell
        self.window = max(window, 1)
        self.modelDim = max(modelDim, 1)
        let (columns, rows) = (self.modelDim, cell.gates * self.modelDim)
        func drawn(_ shape: [Int]) -> Parameter {
            let weights = Tensor.uninitialized(shape)
            Initializer.uniform(bound: 1 / Double(columns).squareRoot()).apply(to: weights, using: generator)
            return Parameter(weights)
        }
        inputWeight = drawn([rows, columns])
        hiddenWeight = drawn([rows, columns])
        inputBias = drawn([rows])
        hiddenBias = drawn([rows])
        super.init()
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: modelDim)
        if usesReference { return reference(x, paddingMask) }
        if x.device == .cpu { return fused(x, paddingMask) }
        var state = initialState(batch: x.size(0))
        return advance(x, paddingMask, &state)
    }

    /// By the kernel, on each sequence's real tokens as if they stood at its start. No real token reads a later one.
    private func fused(_ x: Tensor, _ paddingMask: Tensor?) -> Tensor {
        func run(_ x: Tensor) -> Tensor {
            localRecurrence(
                x, cell.inKernels, inputWeight: inputWeight.value, hiddenWeight: hiddenWeight.value,
                inputBias: inputBias.value, hiddenBias: hiddenBias.value, window: window)
        }
        guard let paddingMask, x.size(1) > 1 else { return run(x) }
        let real = paddingMask.to(.int64)
        let isAtStart = (real.sliced(1, 1..<x.size(1)) .<= real.sliced(1, 0..<x.size(1) - 1)).all().integerItem() != 0
        if isAtStart { return run(x) }
        let order = real.argsort(1, descending: true)  // stable: real tokens first, in their order
        func moved(_ x: Tensor, _ places: Tensor) -> Tensor {
            x.gathered(1, places.unsqueezed(2).expanded(to: x.shape))
        }
        return moved(run(moved(x, order)), order.argsort(1))
    }

    /// The outputs at x, beginning with the windows that `state` has begun.
    ///
    /// What a cell holds after the s + 1 tokens up to t is one step on from what it held after the s tokens up to t - 1.
    /// So all windows go forward together, one product a step, and each input is projected once for all its windows.
    private func advance(_ x: Tensor, _ paddingMask: Tensor?, _ state: inout LocalRNNState) -> Tensor {
        let projected = linear(x, inputWeight.value, inputBias.value)  // [batch, length, gates · modelDim]
        let places = Predecessors(paddingMask, length: x.size(1))
        var read = next(projected, nil)
        var begun: [LocalCellState] = []
        for age in 1..<window {
            // Row 0 is of the token before x, row t + 1 of token t; all have read `age` tokens.
            let table = LocalCellState.joined([state.begun.map { $0.sliced(1, age - 1..<age) }, read])
            begun.append(table.map(places.last))
            read = next(projected, table.map(places.previous))
        }
        if !begun.isEmpty { state.begun = .joined(begun) }
        return read.hidden
    }

    /// One step of the cell in every row, on projected inputs `[batch, rows, gates · modelDim]`; nil: from zero.
    private func next(_ projected: Tensor, _ before: LocalCellState?) -> LocalCellState {
        let hidden = before.map { linear($0.hidden, hiddenWeight.value, hiddenBias.value) } ?? hiddenBias.value
        func part(_ x: Tensor, _ gates: Range<Int>) -> Tensor {
            x.sliced(-1, gates.lowerBound * modelDim..<gates.upperBound * modelDim)
        }
        switch cell {
        case .gru:
            let gates = (part(projected, 0..<2) + part(hidden, 0..<2)).sigmoid()
            let (r, z) = (part(gates, 0..<1), part(gates, 1..<2))
            let n = (part(projected, 2..<3) + r * part(hidden, 2..<3)).tanh()
            return LocalCellState(hidden: before.map { n + z * ($0.hidden - n) } ?? (n - z * n))
        case .lstm:
            let sums = projected + hidden
            let gates = part(sums, 0..<2).sigmoid()
            let update = part(gates, 0..<1) * part(sums, 2..<3).tanh()
            let memory = before?.memory.map { part(gates, 1..<2) * $0 + update } ?? update
            return LocalCellState(hidden: part(sums, 3..<4).sigmoid() * memory.tanh(), memory: memory)
        case .plain:
            return LocalCellState(hidden: (projected + hidden).tanh())
        }
    }

    // MARK: Streaming

    public func initialState(batch: Int) -> LocalRNNState {
        let nothing = inputBias.value.reshaped(1, 1, -1)  // the projection of a zero vector
        var begun: [LocalCellState] = []
        for _ in 1..<window { begun.append(next(nothing, begun.last)) }
        let one = begun.isEmpty ? zeroState([1, 0, modelDim]) : .joined(begun)
        return LocalRNNState(begun: one.map { $0.expanded(to: [batch, -1, -1]) })
    }

    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout LocalRNNState) -> Tensor {
        checkInput(x, paddingMask, modelDim: modelDim)
        checkBatch(x, state.batch)
        return advance(x, paddingMask, &state)
    }

    public func step(_ x: Tensor, state: inout LocalRNNState) -> Tensor {
        checkStep(x, modelDim: modelDim, batch: state.batch)
        let projected = linear(x, inputWeight.value, inputBias.value).unsqueezed(1)
        let fresh = zeroState([state.batch, 1, modelDim])
        let after = next(projected, .joined([fresh, state.begun]))  // [batch, M, modelDim], of ages 1 to M
        state.begun = after.map { $0.sliced(1, 0..<window - 1) }
        return after.hidden.selected(1, window - 1)
    }

    private func zeroState(_ shape: [Int]) -> LocalCellState {
        let weight = inputWeight.value
        let zeros = Tensor.zeros(shape, dtype: weight.dtype, device: weight.device)
        return LocalCellState(hidden: zeros, memory: cell == .lstm ? zeros : nil)
    }

    // MARK: Reference form

    /// The definition, sequence by sequence, as if what is padded were not there; 0 in its place.
    private func reference(_ x: Tensor, _ paddingMask: Tensor?) -> Tensor {
        guard let paddingMask else { return reference(x) }
        let sequences = (0..<x.size(0)).map { row in
            let mask: [Bool] = paddingMask.selected(0, row).scalars()
            let real = mask.indices.filter { mask[$0] }
            let sequence = x.sliced(0, row..<row + 1)
            if real.isEmpty { return Tensor.zeros(like: sequence) }
            let out = reference(sequence.indexed(1, Tensor(real))).padded(1, after: 1)
            // The one more, a row of zeros, stands for every padded token.
            let places = mask.indices.map { index in real.firstIndex(of: index) ?? real.count }
            return out.indexed(1, Tensor(places))
        }
        return concatenate(sequences)
    }

    /// Every window by itself, with the zero vectors before the first token.
    private func reference(_ x: Tensor) -> Tensor {
        let windows = x.padded(1, before: window - 1).unfolded(1, size: window)  // [batch, length, modelDim, window]
        var (h, c) = (Tensor.zeros(like: x), Tensor.zeros(like: x))
        for place in 0..<window { (h, c) = equations(windows.selected(3, place), h, c) }
        return h
    }

    private func equations(_ x: Tensor, _ h: Tensor, _ c: Tensor) -> (h: Tensor, c: Tensor) {
        func rows(_ gate: Int) -> Range<Int> { gate * modelDim..<(gate + 1) * modelDim }
        func input(_ gate: Int) -> Tensor {
            linear(x, inputWeight.value.sliced(0, rows(gate)), inputBias.value.sliced(0, rows(gate)))
        }
        func recurrent(_ gate: Int) -> Tensor {
            linear(h, hiddenWeight.value.sliced(0, rows(gate)), hiddenBias.value.sliced(0, rows(gate)))
        }
        switch cell {
        case .gru:
            let r = (input(0) + recurrent(0)).sigmoid()
            let z = (input(1) + recurrent(1)).sigmoid()
            let n = (input(2) + r * recurrent(2)).tanh()
            return ((1 - z) * n + z * h, c)
        case .lstm:
            let i = (input(0) + recurrent(0)).sigmoid()
            let f = (input(1) + recurrent(1)).sigmoid()
            let g = (input(2) + recurrent(2)).tanh()
            let o = (input(3) + recurrent(3)).sigmoid()
            let memory = f * c + i * g
            return (o * memory.tanh(), memory)
        case .plain:
            return ((input(0) + recurrent(0)).tanh(), c)
        }
    }
}

/// What a local RNN remembers: the windows that have begun.
public struct LocalRNNState: StreamingState {
    /// Those of age 1 to M - 1, `[batch, M - 1, modelDim]`.
    var begun: LocalCellState

    var batch: Int { begun.hidden.size(0) }

    public var tensors: [String: Tensor] {
        var tensors = ["hidden": begun.hidden]
        tensors["memory"] = begun.memory
        return tensors
    }
}

/// What cells hold, `[batch, rows, modelDim]`.
struct LocalCellState {
    /// h
    var hidden: Tensor
    /// c, of an LSTM.
    var memory: Tensor?

    init(hidden: Tensor, memory: Tensor? = nil) {
        self.hidden = hidden
        self.memory = memory
    }

    func map(_ body: (Tensor) -> Tensor) -> LocalCellState {
        LocalCellState(hidden: body(hidden), memory: memory.map(body))
    }

    /// Row after row.
    static func joined(_ parts: [LocalCellState]) -> LocalCellState {
        let memories = parts.compactMap(\.memory)
        return LocalCellState(
            hidden: concatenate(parts.map(\.hidden), dim: 1),
            memory: memories.isEmpty ? nil : concatenate(memories, dim: 1))
    }
}

/// Where each token of a piece finds the real token before it, in a table `[batch, length + 1, dim]` whose row 0 is of
/// what was before the piece and row t + 1 of token t.
private struct Predecessors {
    private let length: Int
    /// Rows of the flattened table, `[batch · length]`; nil where the token before is the row before.
    private var previousRows: Tensor?
    /// Rows of the flattened table, `[batch]`; nil where the last token is real in every sequence.
    private var lastRows: Tensor?

    init(_ paddingMask: Tensor?, length: Int) {
        self.length = length
        guard let paddingMask else { return }
        let (batch, real) = (paddingMask.size(0), paddingMask.to(.int64))
        let rows = real * Tensor.arange(1..<length + 1, device: paddingMask.device)
        let latest = rows.cumulativeMaximum(1)  // the row of the last real token up to each, [batch, length]
        let first = (Tensor.arange(0..<batch, device: paddingMask.device) * (length + 1)).unsqueezed(1)
        let end = max(length - 1, 0)
        lastRows = (latest.sliced(1, end..<length) + first).flattened()
        // With all padding after the last real token the shift is right for the real ones, and what the others get is
        // read by none of them.
        let hasHoles = (latest.selected(1, -1) .!= real.sum(1)).any().integerItem() != 0
        if hasHoles {
            let before = concatenate([Tensor.zeros(like: first), latest.sliced(1, 0..<end)], dim: 1)
            previousRows = (before + first).flattened()
        }
    }

    /// Of the token before each: `[batch, length, dim]`.
    func previous(_ table: Tensor) -> Tensor {
        guard let previousRows else { return table.sliced(1, 0..<length) }
        return table.flattened(0, 1).indexed(0, previousRows).reshaped(table.size(0), length, table.size(2))
    }

    /// Of the last real token: `[batch, 1, dim]`.
    func last(_ table: Tensor) -> Tensor {
        guard let lastRows else { return table.sliced(1, length..<length + 1) }
        return table.flattened(0, 1).indexed(0, lastRows).unsqueezed(1)
    }
}
