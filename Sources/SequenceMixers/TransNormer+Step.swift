// Step programs of TransNormer's two kinds of attention: see StepCompiling.swift.
import Torch
import TorchNN

extension TransNormerAttention {
    /// q and k after `activation` with their positions, and v; nil, and nothing is appended, for what programs do not turn.
    fileprivate func compileProjections(
        _ x: StepProgram.Vector, activation: StepProgram.Activation, period: Int? = nil, into program: StepProgram
    ) -> (q: StepProgram.Vector, k: StepProgram.Vector, v: StepProgram.Vector)? {
        guard !usesReference, position.isCompilable, headDim <= StepProgram.largestHead else { return nil }
        let turned = [query, key].map { projection in
            let y = program.vector(count: projection.outputs)
            program.appendLinear(
                x, weight: projection.weight.value.detached().contiguous(), bias: projection.bias?.value.detached(),
                activation: activation, to: y)
            return position.compileStep(y, heads: heads, period: period, into: program)
        }
        let v = program.vector(count: value.outputs)
        program.append(value, x, to: v)
        return (turned[0], turned[1], v)
    }

    /// The output projection of t, as ``finished(_:normalizing:_:)``.
    fileprivate func compileOutput(
        _ t: StepProgram.Vector, normalizing: Bool, adding addend: StepProgram.Vector?, into program: StepProgram
    ) -> StepProgram.Vector {
        let y = program.vector(count: output.outputs)
        var joined = t
        if normalizing {
            joined = program.vector(count: t.count)
            program.appendNorm(.simpleRootMeanSquare, t, epsilon: epsilon, to: joined)
        }
        program.append(output, joined, adding: addend, to: y)
        return y
    }
}

extension TransNormerPosition {
    /// Whether all channels are turned in pairs, or none.
    fileprivate var isCompilable: Bool { headDim.isMultiple(of: 2) || kind == .absent }

    /// x of all heads with the program's position, which begins anew after each `period`.
    fileprivate func compileStep(
        _ x: StepProgram.Vector, heads: Int, period: Int?, into program: StepProgram
    ) -> StepProgram.Vector {
        var y = x
        if let u = reflection?.value {
            y = program.vector(count: x.count)
            let matrix = Tensor.eye(headDim) - u.unsqueezed(1) * u.unsqueezed(0) * 2
            program.appendLinear(x, weight: matrix.contiguous(), heads: heads, to: y)
        }
        if let angles {
            program.appendRotation(
                angles.detached().to(.float64), heads: heads, neighbours: true, period: period, y, to: y)
        }
        return y
    }
}

extension NormAttention: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? NormAttentionState, state.positions.count == 1,
            position.kind == .absent || state.positions == [program.position],
            let (q, k, v) = compileProjections(x, activation: activation.inStepProgram, into: program)
        else { return nil }
        let t = program.vector(count: v.count)
        program.appendCausalLinear(
            q, k, v, heads: heads, map: .none, epsilon: 0, state: (program.vector(state.products), nil, nil), to: t)
        return compileOutput(t, normalizing: true, adding: addend, into: program)
    }
}

extension TransNormerActivation {
    fileprivate var inStepProgram: StepProgram.Activation {
        switch self {
        case .elu: .elu
        case .onePlusElu: .eluPlusOne
        case .relu: .relu
        case .silu: .silu
        case .sigmoid: .sigmoid
        }
    }
}

extension DiagAttention: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? DiagAttentionState, state.filled.count == 1, let filled = state.filled.first,
            position.kind == .absent || filled == program.position % block,
            state.real.sliced(1, 0..<filled).flattened().scalars(as: Bool.self).allSatisfy({ $0 }),
            let (q, k, v) = compileProjections(x, activation: .identity, period: block, into: program)
        else { return nil }
        let cache = program.cache(
            keys: tokenRows(state.keys), values: tokenRows(state.values), count: filled, room: block)
        let ownBlock = program.look(at: [.block(block)], in: cache)
        let t = program.vector(count: v.count)
        program.appendAttention(
            StepProgram.View(q, ownBlock), adding: (k, v), heads: heads, scale: 1 / Double(headDim).squareRoot(),
            weights: activation == .softmax ? .softmax : .relu, to: t)
        return compileOutput(t, normalizing: activation == .relu, adding: addend, into: program)
    }
}
