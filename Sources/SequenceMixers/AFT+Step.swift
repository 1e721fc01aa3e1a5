// A token of AFT as operations of a step program.
import Torch
import TorchNN

extension AFT: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? AFTState, state.positions == [program.position], canStream, !usesReference else {
            return nil
        }
        let bias = core.bias.compileStep(into: program)
        let parts = [query, key, value].map { program.product($0, x) }
        let shape = [1, heads, 1, value.outputs / heads]
        func sums(_ part: Tensor) -> StepProgram.Vector { program.vector(part.expanded(to: shape)) }
        let mixed = program.vector(count: value.outputs)
        program.appendAverage(
            parts[0], parts[1], parts[2], activation: core.activation.inStepProgram, bias: bias,
            past: (tokenRows(state.keys), tokenRows(state.values)),
            sums: (sums(state.older.exponent), sums(state.older.numerator), sums(state.older.denominator)), to: mixed)
        return program.product(output, mixed, adding: addend)
    }
}

extension AFTBias {
    /// The biases of the window that ends with the present token.
    fileprivate func compileStep(into program: StepProgram) -> StepProgram.AverageBias {
        switch self {
        case .zero: return .zero
        case .taps(let taps): return .heads(taps.values.detached().contiguous())
        case .pairs(let pairs):
            let window = pairs.window ?? 1
            let row = program.vector(count: window)
            if let u = pairs.u?.value.detached(), let v = pairs.v?.value.detached() {
                let query = program.vector(count: u.size(1))
                program.appendLookup(u.contiguous(), of: .position, to: query)
                program.appendRowProducts(query, table: v.padded(0, before: window - 1).contiguous(), to: row)
            } else {
                let band = pairs.band(from: 0, count: pairs.maximumLength, offsets: 1 - window...0)
                program.appendLookup(band.detached().contiguous(), of: .position, to: row)
            }
            return .window(row)
        }
    }
}
