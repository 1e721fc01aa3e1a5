// A token of Mega as operations of a step program.
import Torch
import TorchNN

extension Mega: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? MegaState, state.cache.positions.count == 1, state.cache.mask == nil, canStream,
            !usesReference, let input = settings.isPrenorm ? program.append(norm, x) : x
        else { return nil }
        let v = program.product(value, input, activation: .silu)
        let averaged = ema.compileStep(input, state: state.average, into: program)
        let reset = program.product(resetGate, averaged)
        let fromAverage = program.product(candidateFromAverage, averaged)
        let update = program.product(updateGate, averaged)
        let (q, k) = compileQueryAndKey(averaged, into: program)
        let attended = program.vector(count: v.count)
        let scale = settings.attention == .softmax ? 1 / Double(q.count).squareRoot() : 1
        program.appendWeighing(
            q, k, v, by: settings.attention.inStepProgram, scale: scale, bias: attention.stepBias,
            past: (state.cache.keys.selected(0, 0), state.cache.values.selected(0, 0)), chunk: attention.chunk,
            to: attended)

        program.appendGate(.silu, reset, attended, to: attended)
        let candidate = program.product(candidateFromAttention, attended, adding: fromAverage)
        // x + sigmoid(u) ⊙ (silu(H) - x), where silu(H) is sigmoid(H) ⊙ H.
        let y = program.vector(count: x.count)
        program.appendGate(.sigmoid, candidate, candidate, to: candidate)
        program.appendCombination(1, candidate, -1, x, to: candidate)
        program.appendGate(.sigmoid, update, candidate, to: candidate)
        program.appendCombination(1, x, 1, candidate, to: y)

        guard let joined = settings.isPrenorm ? y : program.append(norm, y) else { return nil }
        guard let feedForward else { return program.sum(joined, addend) }
        return feedForward.compileStep(joined, into: program).map { program.sum($0, addend) }
    }

    /// z κ + μ for queries and keys, with z in common.
    private func compileQueryAndKey(
        _ averaged: StepProgram.Vector, into program: StepProgram
    ) -> (q: StepProgram.Vector, k: StepProgram.Vector) {
        let z = program.product(shared, averaged, activation: .silu)
        func changed(_ index: Int) -> StepProgram.Vector {
            let scale = program.vector(queryKeyScale.value.selected(0, index))
            let offset = program.vector(queryKeyOffset.value.selected(0, index))
            let y = program.vector(count: z.count)
            program.appendGate(.identity, z, scale, to: y)
            program.appendCombination(1, y, 1, offset, to: y)
            return y
        }
        return (changed(0), changed(1))
    }
}

extension MegaEMA {
    /// Appends silu(y + ω x).
    fileprivate func compileStep(
        _ x: StepProgram.Vector, state: Tensor, into program: StepProgram
    ) -> StepProgram.Vector {
        let y = program.vector(count: x.count)
        let numbers = coefficients(0)
        let omega = omega.value.unsqueezed(0)
        if let truncation {
            let kernel = numbers.kernel(truncation).flipped(1).transposed()  // [T, modelDim], the last lag first
            let taps = kernel + omega.padded(0, before: truncation - 1)
            program.appendTaps(
                taps.detached().contiguous(), x, past: state.selected(0, 0), activation: .silu, to: y)
        } else {
            let parts = [numbers.input, numbers.decay, numbers.output].map { $0.transposed() } + [omega]
            program.appendMovingAverage(
                x, coefficients: concatenate(parts).detached().contiguous(),
                state: program.vector(state.selected(0, 0).transposed()), to: y)
        }
        return y
    }
}

extension MegaAttention {
    fileprivate var stepBias: StepProgram.DistanceBias {
        if let count = chunk ?? relativeBias.maximumLength {
            return .table(relativeBias.values(1 - count..<1).detached().flipped(0))
        }
        let waves = relativeBias.waves
        return .waves(frequencies: waves.frequencies, cosines: waves.cosines.detached(), sines: -waves.sines.detached())
    }
}

extension MegaAttentionFunction {
    fileprivate var inStepProgram: StepProgram.Weighing {
        switch self {
        case .softmax: .softmax
        case .laplace: .laplace
        case .relu2: .relu2
        }
    }
}

extension MegaFeedForward {
    fileprivate func compileStep(_ x: StepProgram.Vector, into program: StepProgram) -> StepProgram.Vector? {
        guard let input = isPrenorm ? program.append(norm, x) : x else { return nil }
        let hidden = program.product(up, input, activation: .silu)
        let sum = program.product(down, hidden, adding: x)
        return isPrenorm ? sum : program.append(norm, sum)
    }
}

extension StepProgram {
    /// y = norm(x); nil for a norm that programs do not have.
    fileprivate func append(_ norm: any MaskedNormalizing, _ x: Vector) -> Vector? {
        if let norm = norm as? any Normalizing { return append(norm, x) }
        guard let norm = norm as? MegaScaleNorm else { return nil }
        let y = vector(count: x.count)
        let weight = norm.scalar.value.detached().expanded(to: [x.count]).contiguous()
        appendNorm(.rootMeanSquare, x, weight: weight, epsilon: norm.epsilon, to: y)
        return y
    }
}
