// The step program of causal long-short attention: see StepCompiling.swift.
import Torch
import TorchNN

extension CausalLongShortAttention: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard !usesReference, let state = state as? LongShortState, let past = state.window.whole,
            isWhole(state, count: state.window.next[0])
        else { return nil }
        let dim = projections.modelDim
        let parts = [projections.query, projections.key, projections.value, projections.mixture].map { projection in
            let part = program.vector(count: projection.outputs)
            program.append(projection, x, to: part)
            return part
        }
        let (q, k, v, logits) = (parts[0], parts[1], parts[2], parts[3])
        guard let nearKey = program.append(projections.windowNorm, k),
            let nearValue = program.append(projections.windowNorm, v)
        else { return nil }
        let window = program.cache(
            keys: tokenRows(past.keys), values: tokenRows(past.values), count: state.window.next[0], room: self.window)
        let long = program.cache(rows: tokenRows(state.longKeys), values: tokenRows(state.longValues))
        let scale = 1 / Double(projections.headDim).squareRoot()
        let tables = compileDistances(state, into: program)
        let near: StepProgram.View
        if let distances, let tables {
            // (q + u) scaled is scaled q + u.
            func biased(_ bias: Parameter) -> StepProgram.Vector {
                let y = program.vector(count: dim)
                program.appendCombination(1, q, 1 / scale, program.vector(bias.value.detached()), to: y)
                return y
            }
            near = StepProgram.View(
                biased(distances.contentBias), window, distances: (biased(distances.distanceBias), tables.window))
        } else {
            near = StepProgram.View(q, window)
        }
        let mixed = program.vector(count: dim)
        program.appendAttention(
            near, StepProgram.View(q, long, distances: tables.map { (q: q, table: $0.long) }),
            adding: (nearKey, nearValue), heads: projections.heads, scale: scale, to: mixed)
        compileMixtures(logits, k, v, state, window: window, long: long, table: tables?.long, into: program)
        let y = program.vector(count: dim)
        program.append(projections.output, mixed, adding: addend, to: y)
        return y
    }

    /// Whether nothing of it is padded.
    private func isWhole(_ state: LongShortState, count: Int) -> Bool {
        let open = state.open.isReal.sliced(1, 0..<count % chunk).flattened().scalars(as: Bool.self)
        let long = state.longIsReal.flattened().scalars(as: Bool.self)
        return long.count == count / chunk * projections.rank && (open + long).allSatisfy { $0 }
    }

    // MARK: Distances

    /// R of the window's distances, and of as many as there are mixtures: `[distances, modelDim]`.
    private func compileDistances(_ state: LongShortState, into program: StepProgram) -> (
        window: StepProgram.Cache, long: StepProgram.Cache
    )? {
        guard let known = state.distances else { return nil }
        func rows(_ x: Tensor) -> Tensor { x.transposed(0, 1).flattened(1, 2).contiguous() }
        let long = rows(known.long.sliced(1, 0..<state.longKeys.size(2)))
        return (program.cache(rows: rows(known.window), values: nil), program.cache(rows: long, values: nil))
    }

    // MARK: Mixtures

    /// Mixes the tokens of the open segment, and remembers the mixtures when it is full.
    private func compileMixtures(
        _ logits: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, _ state: LongShortState,
        window: StepProgram.Cache, long: StepProgram.Cache, table: StepProgram.Cache?, into program: StepProgram
    ) {
        let open = state.window.next[0] % chunk
        let sums = (0..<projections.rank).map { choice in
            let sums = begun(choice, state.open, count: open).map { program.vector($0) }
            program.appendMixture(
                logits, choice: choice, k, v, heads: projections.heads, period: chunk, of: window,
                sums: (sums[0], sums[1], sums[2]))
            return sums
        }
        program.appendPeriodically(chunk, of: window) {
            for (choice, sums) in sums.enumerated() {
                guard let key = program.append(projections.longNorm, sums[0]),
                    let value = program.append(projections.longNorm, sums[1])
                else { return }
                program.appendMemory(of: key, value, to: long)
                if let distances, let table {
                    let row = distances.compileStep(
                        choice, of: projections.rank, period: chunk, of: window, into: program)
                    program.appendMemory(of: row, nil, to: table)
                }
            }
        }
    }

    /// Σ e^(l - largest) k, the same of v, and for each head the largest logit l and the sum of the weights.
    private func begun(_ choice: Int, _ open: OpenSegment, count: Int) -> [Tensor] {
        let (heads, rank, headDim) = (projections.heads, projections.rank, projections.headDim)
        if count == 0 { return [.zeros([heads * headDim]), .zeros([heads * headDim]), .zeros([heads * 2])] }
        func tokens(_ x: Tensor, _ width: Int) -> Tensor {
            x.selected(0, 0).sliced(0, 0..<count).reshaped(count, heads, width)
        }
        let logits = tokens(open.logits, rank).selected(2, choice)  // [count, heads]
        let largest = logits.maximum(0)
        let weights = (logits - largest).exp()
        let mixed = [open.keys, open.values].map { (weights.unsqueezed(2) * tokens($0, headDim)).sum(0).contiguous() }
        return mixed + [stack([largest, weights.sum(0)], dim: 1).contiguous()]
    }
}

extension LongShortDistances {
    /// R of one more distance, that of mixture `choice` of `rank` in the segment that is full now to the first of all.
    fileprivate func compileStep(
        _ choice: Int, of rank: Int, period: Int, of tokens: StepProgram.Cache, into program: StepProgram
    ) -> StepProgram.Vector {
        let dim = long.inputs
        let waves = program.vector(count: dim)
        program.appendDistanceWaves(
            Self.frequencies(dim), period: period, of: tokens, stride: rank, offset: choice, to: waves)
        // The program's waves are sin, cos, sin, …; the weight is for all sines before all cosines.
        let sines = (dim + 1) / 2
        let order = Tensor((0..<dim).map { $0 % 2 == 0 ? $0 / 2 : sines + $0 / 2 })
        let row = program.vector(count: long.outputs)
        program.appendLinear(
            waves, weight: long.weight.value.detached().indexed(1, order).contiguous(),
            bias: long.bias?.value.detached(), to: row)
        return row
    }
}
