// A token of gMLP and aMLP as operations of a step program.
import Torch
import TorchNN

extension GMLP: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? GMLPState, state.positions == [program.position], state.attention?.mask == nil,
            isCausal, !usesReference, let h = program.append(norm, x)
        else { return nil }
        let half = gating.norm.dim
        let kept = program.product(input, outputs: 0..<half, h, activation: activation.inStepProgram)
        let gate = program.product(input, outputs: half..<2 * half, h, activation: activation.inStepProgram)
        let past = state.gates.selected(0, 0).sliced(0, 0..<program.position)
        guard let v = program.append(gating.norm, gate) else { return nil }
        var mixed = gating.compileStep(v, past: past, into: program)
        if let attention, let cache = state.attention {
            mixed = attention.compileStep(h, adding: mixed, cache: cache, into: program)
        }
        program.appendGate(.identity, kept, mixed, to: mixed)
        return program.sum(program.product(output, mixed, adding: x), addend)
    }
}

extension SpatialGatingUnit {
    /// Appends W v + b.
    fileprivate func compileStep(
        _ v: StepProgram.Vector, past: Tensor, into program: StepProgram
    ) -> StepProgram.Vector {
        let y = program.vector(count: v.count)
        let sizes = weights == .dense ? [heads, maximumLength, maximumLength] : [heads, 2 * maximumLength - 1]
        program.appendPositionSum(
            v, weights: weight.value.detached().reshaped(to: sizes).contiguous(),
            bias: bias.value.detached().reshaped(heads, maximumLength).contiguous(), past: past, to: y)
        return y
    }
}

extension TinyAttention {
    fileprivate func compileStep(
        _ h: StepProgram.Vector, adding addend: StepProgram.Vector, cache: KeyValueCache, into program: StepProgram
    ) -> StepProgram.Vector {
        let parts = (0..<3).map { program.product(queryKeyValue, outputs: $0 * dim..<($0 + 1) * dim, h) }
        let y = program.vector(count: dim)
        program.appendAttention(
            parts[0], parts[1], parts[2], heads: 1, scale: core.scale ?? 1 / Double(dim).squareRoot(),
            keys: tokenRows(cache.keys), values: tokenRows(cache.values), to: y)
        return program.product(output, y, adding: addend)
    }
}
