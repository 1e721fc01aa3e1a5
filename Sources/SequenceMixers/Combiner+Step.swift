// Step programs of the Combiner with fixed and with log-sparse spans: see StepCompiling.swift. Those of grids are in
// Combiner+GridStep.swift.
import Torch
import TorchNN

extension CombinerCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: CombinerState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        compileStep(q, k, v, x: nil, heads: heads, state: state, to: y, into: program)
    }

    /// - Parameter x: the layer's input, for row keys made from it.
    func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, x: StepProgram.Vector?, heads: Int,
        state: CombinerState, to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard isCausal, q.count == v.count, (rowKey == nil) == (x == nil), state.groups.count == 1,
            state.groups[0].allSatisfy(\.isWhole)
        else { return false }
        let token = CombinerStep(q: q, k: k, v: v, x: x, heads: heads, pooling: pooling, program: program)
        let memories = state.groups[0]
        switch pattern {
        case .fixed(let span, _): token.compileFixed(span: span, memories[0], to: y)
        case .logsparse: token.compileLogsparse(memories[0], to: y)
        default:
            let outputs = zip(forms, memories).compactMap { form, memory in
                (form as? CombinerGrid).map { token.compile($0, memory) }
            }
            let share = 1 / Double(outputs.count)
            program.appendCombination(
                share, outputs[0], outputs.count > 1 ? share : 0, outputs[outputs.count - 1], to: y)
        }
        return true
    }
}

extension CombinerLayer: StepCompiling {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? CombinerLayerState, state.batch == 1, !usesReference else { return nil }
        let parts = [query, key, value].map { program.product($0, x) }
        let mixed = program.vector(count: value.outputs)
        guard
            core.compileStep(
                parts[0], parts[1], parts[2], x: core.rowKey == nil ? nil : x, heads: heads, state: state.core,
                to: mixed, into: program)
        else { return nil }
        return program.product(output, mixed, adding: addend)
    }
}

extension CombinerMemory {
    /// Whether no token is padded that later ones look at by itself.
    fileprivate var isWhole: Bool {
        let closed = [CombinerGrid.Part.spans, .column, .rows].map { self.closed[$0]?.summaries.present }
        return ([open?.real] + closed + blocks.map(\.tokens.real)).allSatisfy {
            $0?.all().flattened().scalars() != [false]
        }
    }
}

/// One token of Combiner attention, to be written down.
struct CombinerStep {
    let q, k, v: StepProgram.Vector
    let x: StepProgram.Vector?
    let heads: Int
    let pooling: CombinerPooling
    let program: StepProgram

    /// The own span one by one, and a summary of every full one.
    fileprivate func compileFixed(span: Int, _ memory: CombinerMemory, to y: StepProgram.Vector) {
        let open = memory.open ?? nothing
        let own = ring(open.k, open.v, count: memory.count, room: span)
        let pooled = phi(open)
        let pools = ring(pooled.q, pooled.k, count: memory.count, room: span)
        let known = memory.closed[.spans]?.summaries
        let others = program.cache(
            rows: known.map { tokenRows($0.keys) } ?? none, values: known.map { tokenRows($0.values) } ?? none)
        let ownSpan = program.look(at: [.block(span)], in: own)
        attend([StepProgram.View(q, ownSpan), StepProgram.View(q, others)], adding: (k, v), to: y)
        remember(in: pools)
        program.appendPeriodically(span, of: own) {
            let (key, value) = summary(of: program.look(at: [.block(span)], in: pools), ownSpan)
            program.appendMemory(of: key, value, to: others)
        }
    }

    /// The blocks of a binary counter, each by its summary, which stands in the row of its last token. A block of one token
    /// stands for itself.
    fileprivate func compileLogsparse(_ memory: CombinerMemory, to y: StepProgram.Vector) {
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
            keys: allRows { phi($0).q }, values: allRows { phi($0).k }, count: memory.count)
        let summaries = program.cache(
            keys: lastRows(\.summary.keys), values: lastRows(\.summary.values), count: memory.count)
        let seen = program.look(at: [.digits, .band(count: 1)], in: summaries)
        attend([StepProgram.View(q, seen)], adding: (k, v), to: y)
        program.appendReplacement(of: k, v, in: tokens)
        remember(in: pools)
        program.appendPeriodically(2, of: tokens) {
            let (key, value) = summary(
                of: program.look(at: [.lowestDigit], in: pools), program.look(at: [.lowestDigit], in: tokens))
            program.appendReplacement(of: key, value, in: summaries)
        }
    }

    // MARK: Attention and summaries

    func attend(
        _ views: [StepProgram.View], adding own: (StepProgram.Vector, StepProgram.Vector)? = nil,
        to y: StepProgram.Vector
    ) {
        program.appendAttention(
            views, adding: own, heads: heads, scale: 1 / Double(q.count / heads).squareRoot(), to: y)
    }

    /// k̄ and v̄ of some tokens, which `pools` sees as φ(q) and φ(k), and `tokens` as k and v.
    func summary(of pools: StepProgram.Look, _ tokens: StepProgram.Look) -> (StepProgram.Vector, StepProgram.Vector) {
        let (query, key) = (program.vector(count: q.count), program.vector(count: k.count))
        program.appendPool(pooling.summary.inStepProgram, of: pools, to: (query, key))
        let value = program.vector(count: v.count)
        attend([StepProgram.View(query, tokens)], to: value)
        return (key, value)
    }

    /// Puts φ(q) and φ(k) into their cache.
    func remember(in pools: StepProgram.Cache) {
        program.appendReplacement(of: phi(q, pooling.query), phi(k, pooling.key), in: pools)
    }

    private func phi(_ x: StepProgram.Vector, _ weight: Parameter?) -> StepProgram.Vector {
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

    // MARK: What there was

    private var none: Tensor { .zeros([0, q.count]) }

    /// No token.
    var nothing: CombinerTokens {
        let none = Tensor.zeros([1, heads, 0, q.count / heads])
        return CombinerTokens(q: none, k: none, v: none, x: x.map { .zeros([1, 1, 0, $0.count]) })
    }

    /// φ(q) and φ(k)
    func phi(_ tokens: CombinerTokens) -> (q: Tensor, k: Tensor) {
        (pooling.activated(tokens.q, pooling.query).detached(), pooling.activated(tokens.k, pooling.key).detached())
    }

    /// A cache of the last `room` of `count` tokens, of which the last `[1, heads, tokens, ·]` are known.
    func ring(_ keys: Tensor, _ values: Tensor?, count: Int, room: Int) -> StepProgram.Cache {
        func laidOut(_ x: Tensor) -> Tensor {
            let rows = tokenRows(x)
            // The last position in each place of the ring; the zeros behind the rows where it is not known.
            let places = (0..<min(count, room)).map { place in
                let known = rows.size(0) - 1 - (count - 1 - place) % room
                return known < 0 ? rows.size(0) : known
            }
            return rows.padded(0, after: 1).indexed(0, Tensor(places, shape: [places.count]))
        }
        return program.cache(keys: laidOut(keys), values: values.map(laidOut), count: count, room: room)
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
