// Step programs of the Combiner with fixed and with log-sparse spans: see StepCompiling.swift.
import Torch
import TorchNN

extension CombinerCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: CombinerState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard q.count == v.count, state.groups.count == 1, let memory = state.groups[0].first, memory.isWhole else {
            return false
        }
        let token = CombinerStep(q: q, k: k, v: v, y: y, heads: heads, pooling: pooling, program: program)
        switch pattern {
        case .fixed(let span, false): token.compileFixed(span: span, memory)
        case .logsparse: token.compileLogsparse(memory)
        default: return false
        }
        return true
    }
}

extension CombinerMemory {
    /// Whether no token is padded.
    fileprivate var isWhole: Bool {
        let marks = [open?.real, closed[.spans]?.summaries.present] + blocks.map(\.tokens.real)
        return marks.allSatisfy { $0?.all().flattened().scalars() != [false] }
    }
}

/// One token of Combiner attention, to be written down.
private struct CombinerStep {
    let q, k, v, y: StepProgram.Vector
    let heads: Int
    let pooling: CombinerPooling
    let program: StepProgram

    var scale: Double { 1 / Double(q.count / heads).squareRoot() }
    private var none: Tensor { .zeros([0, q.count]) }

    /// The own span one by one, and a summary of every full one.
    func compileFixed(span: Int, _ memory: CombinerMemory) {
        func filled(_ x: Tensor?) -> Tensor { (x.map(tokenRows) ?? none).padded(0, after: span - (x?.size(2) ?? 0)) }
        let own = program.cache(
            keys: filled(memory.open?.k), values: filled(memory.open?.v), count: memory.count, room: span)
        program.setSights([[.block(span)]], of: own)
        let known = memory.closed[.spans]?.summaries
        let others = program.cache(
            rows: known.map { tokenRows($0.keys) } ?? none, values: known.map { tokenRows($0.values) } ?? none)
        program.appendAttention(
            StepProgram.View(q, own), and: StepProgram.View(q, others), adding: (k, v), heads: heads, scale: scale,
            to: y)

        let pooledQuery = pooled(q, pooling.query, memory.open?.q, span: span, of: own)
        let pooledKey = pooled(k, pooling.key, memory.open?.k, span: span, of: own)
        let share = pooling.summary.pool == .mean ? 1 / Double(span) : 1
        program.appendPeriodically(span, of: own) {
            let (keys, values) = (program.vector(count: k.count), program.vector(count: v.count))
            program.appendAttention(
                StepProgram.View(pooledQuery, own), adding: nil, heads: heads, scale: scale * share, to: values)
            program.appendCombination(share, pooledKey, 0, pooledKey, to: keys)
            program.appendMemory(of: keys, values, to: others)
        }
    }

    /// The blocks of a binary counter, each by its summary, which stands in the row of its last token.
    func compileLogsparse(_ memory: CombinerMemory) {
        let blocks = memory.blocks
        func lastRows(_ row: (CombinerLogsparse.Block) -> Tensor) -> Tensor {
            concatenate(
                blocks.reduce(into: [none]) { rows, block in
                    rows += [.zeros([block.tokens.count - 1, q.count]), row(block).reshaped(1, q.count)]
                })
        }
        func allRows(_ part: (CombinerTokens) -> Tensor) -> Tensor {
            concatenate([none] + blocks.map { tokenRows(part($0.tokens)) })
        }
        let tokens = program.cache(keys: allRows(\.k), values: allRows(\.v), count: memory.count)
        let pools = program.cache(
            keys: lastRows { before($0.tokens.q, pooling.query) },
            values: lastRows { before($0.tokens.k, pooling.key) },
            count: memory.count)
        let summaries = program.cache(
            keys: lastRows(\.summary.keys), values: lastRows(\.summary.values), count: memory.count)
        program.setSights([[.lowestDigit]], of: tokens)
        program.setSights([[.digits]], of: summaries)
        program.appendAttention(
            StepProgram.View(q, summaries), adding: (k, v), heads: heads, scale: scale, to: y)

        let (query, key) = (program.vector(count: q.count), program.vector(count: k.count))
        program.appendDigitPool(
            pooling.summary.inStepProgram, activated(q, pooling.query), activated(k, pooling.key), raw: k, in: pools,
            to: (query, key))
        let values = program.vector(count: v.count)
        program.appendAttention(
            StepProgram.View(query, tokens), adding: (k, v), heads: heads, scale: scale, to: values)
        program.appendReplacement(of: key, values, in: summaries)
    }

    // MARK: Pools

    /// The largest, or the sum, of φ(x) over the open span, of which `open` `[1, heads, tokens, headDim]` is there already.
    private func pooled(
        _ x: StepProgram.Vector, _ weight: Parameter?, _ open: Tensor?, span: Int, of own: StepProgram.Cache
    ) -> StepProgram.Vector {
        let pooled = open.map { program.vector(before($0, weight)) } ?? program.vector(count: x.count)
        program.appendPool(
            activated(x, weight), largest: pooling.summary.pool == .max, period: span, of: own, to: pooled)
        return pooled
    }

    /// The largest, or the sum, of φ(x) over tokens `[1, heads, tokens, headDim]`.
    private func before(_ x: Tensor, _ weight: Parameter?) -> Tensor {
        let phi = pooling.activated(x, weight).detached()
        return (pooling.summary.pool == .max ? phi.maximum(2) : phi.sum(2)).contiguous()
    }

    /// φ(x)
    private func activated(_ x: StepProgram.Vector, _ weight: Parameter?) -> StepProgram.Vector {
        guard pooling.summary.activation != .identity else { return x }
        let phi = program.vector(count: x.count)
        if let weight {
            program.appendLinear(
                x, weight: weight.value.detached().contiguous(), activation: .relu, heads: heads, to: phi)
        } else {
            program.appendGate(.relu, x, program.vector(.ones([x.count])), to: phi)
        }
        return phi
    }
}

extension CombinerSummary {
    fileprivate var inStepProgram: StepProgram.Pool {
        switch pool {
        case .max: .largest
        case .mean: .mean
        case .sum: .sum
        }
    }
}
