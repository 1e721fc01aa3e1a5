// A token of the R-Transformer as operations of a step program.
import Torch
import TorchNN

extension LocalRNN: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? LocalRNNState, state.batch == 1, !usesReference else { return nil }
        let rows = cell.gates * modelDim
        let projected = program.vector(count: rows)
        program.appendLinear(
            x, weight: inputWeight.value.detached().contiguous(), bias: inputBias.value.detached(), to: projected)
        let h = program.vector(state.begun.hidden)
        let products = program.vector(count: (window - 1) * rows)
        let hiddenBias = hiddenBias.value.detached()
        if window > 1 {
            program.appendProducts(
                h, weight: hiddenWeight.value.detached().contiguous(), bias: hiddenBias, to: products)
        }
        let y = program.vector(count: modelDim)
        program.appendCells(
            cell.inKernels, projected, products: products, bias: hiddenBias, window: window,
            state: (h, state.begun.memory.map { program.vector($0) }), to: y)
        return program.sum(y, addend)
    }
}

extension RTransformerBlock: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? RTransformerState, let ofAttention = state.attention, !usesReference,
            let mixer = attention as? any StepCompiling
        else { return nil }
        var y = x
        for (layer, state) in zip(localLayers, state.local) {
            guard let input = program.append(layer.norm, y),
                let next = layer.rnn.compileStep(input, adding: y, state: state, into: program)
            else { return nil }
            y = next
        }
        guard let input = attentionNorm.map({ program.append($0, y) }) ?? y,
            let h = mixer.compileStep(
                input, adding: attentionNorm == nil ? nil : y, state: ofAttention, into: program)
        else { return nil }
        guard let feedForwardNorm, let up, let down else { return program.sum(h, addend) }
        guard let normalized = program.append(feedForwardNorm, h) else { return nil }
        let hidden = program.product(up, normalized, activation: .relu)
        return program.sum(program.product(down, hidden, adding: h), addend)
    }
}
