// Step programs of the Combiner's grids: see StepCompiling.swift.
//
// A token does the same work in whatever column it stands. What later rows see of its row and column is found with it where it
// is known then: the spans left of the next column, and above the next row. What needs the whole row is found one row later, by
// the token below: the span right of a column, and what a token sees of its row.
import Torch
import TorchNN

extension CombinerStep {
    func compile(_ grid: CombinerGrid, _ memory: CombinerMemory) -> StepProgram.Vector {
        let y = program.vector(count: v.count)
        let past = CombinerPast(memory: memory, columns: grid.columns, nothing: nothing, pooling: pooling)
        if grid.parts.contains(.rows) {
            compileRows(grid, past, to: y)
        } else {
            compileSpans(grid, past, to: y)
        }
        return y
    }

    // MARK: Spans

    /// The own row and column one by one; the other columns as spans above, the other rows as spans to the left and right.
    private func compileSpans(_ grid: CombinerGrid, _ past: CombinerPast, to y: StepProgram.Vector) {
        let (columns, count) = (grid.columns, past.memory.count)
        let (isVertical, isHorizontal) = (grid.parts.contains(.above), grid.parts.contains(.left))
        func cache(_ x: CombinerSummaries) -> StepProgram.Cache {
            program.cache(keys: tokenRows(x.keys), values: tokenRows(x.values), count: count)
        }
        func ofTwoRows(_ x: CombinerSummaries) -> StepProgram.Cache {
            ring(x.keys, x.values, count: count, room: 2 * columns)
        }
        let all = past.all
        let tokens = cache(CombinerSummaries(keys: all.k, values: all.v))
        let pooled = phi(isVertical ? all : past.near)
        let pools = (isVertical ? cache : ofTwoRows)(CombinerSummaries(keys: pooled.q, values: pooled.k))
        func look(_ sights: StepProgram.Sight..., in cache: StepProgram.Cache) -> StepProgram.Look {
            program.look(at: sights, in: cache)
        }
        var seen = [look(.block(columns), .band(count: nil, step: columns), in: tokens)]
        if isHorizontal {
            let right = cache(past.right)
            let beside = StepProgram.Sight.rowAbove(columns: columns, .right)
            let (key, value) = summary(of: look(beside, in: pools), look(beside, in: tokens))
            program.appendReplacement(of: key, value, in: right)
            seen.append(look(.columnBelowFirst(columns: columns, exceptLast: 1), in: right))
        }
        let left = isHorizontal ? cache(past.left) : nil
        if let left { seen.append(look(.columnLeft(columns: columns), in: left)) }
        let above = isVertical ? ofTwoRows(past.above) : nil
        if let above { seen.append(look(.rowAbove(columns: columns, .others), in: above)) }
        attend(seen.map { StepProgram.View(q, $0) }, adding: (k, v), to: y)

        remember(in: pools)
        for (own, spans) in [(StepProgram.Sight.block(columns), left), (.band(count: nil, step: columns), above)] {
            guard let spans else { continue }
            let (key, value) = summary(of: look(own, in: pools), look(own, in: tokens))
            program.appendReplacement(of: key, value, in: spans)
        }
    }

    // MARK: Rows

    /// The own row one by one; of each other row, what its token in the same column sees of it.
    private func compileRows(_ grid: CombinerGrid, _ past: CombinerPast, to y: StepProgram.Vector) {
        let (columns, count, near, known) = (grid.columns, past.memory.count, past.near, past.rows)
        func ofTwoRows(_ keys: Tensor, _ values: Tensor? = nil) -> StepProgram.Cache {
            ring(keys, values, count: count, room: 2 * columns)
        }
        let (tokens, queries) = (ofTwoRows(near.k, near.v), ofTwoRows(near.q))
        let rows = program.cache(keys: tokenRows(known.keys), values: tokenRows(known.values), count: count)
        let above = StepProgram.Sight.rowAbove(columns: columns, .all)
        /// The key of the token above in a cache.
        func recalled(_ cache: StepProgram.Cache) -> StepProgram.Vector {
            let x = program.vector(count: cache.width)
            program.appendPool(.sum, of: program.look(at: [.rowAbove(columns: columns, .own)], in: cache), to: (x, nil))
            return x
        }
        let query = recalled(queries)
        func seen(in cache: StepProgram.Cache) -> StepProgram.Vector {
            let seen = program.vector(count: v.count)
            attend([StepProgram.View(query, program.look(at: [above], in: cache))], to: seen)
            return seen
        }
        let value = seen(in: tokens)
        let key: StepProgram.Vector
        switch (grid.keySummary, grid.rowKey, x) {
        case (_, let rowKey?, let x?):
            let inputs = ofTwoRows(near.x ?? .zeros([1, 1, 0, x.count]))
            let sum = program.product(rowKey.output, value, adding: recalled(inputs))
            key = program.product(rowKey.key, program.append(rowKey.norm, sum) ?? sum)
            program.appendReplacement(of: x, nil, in: inputs)
        case (.wsum, _, _):
            let keys = ofTwoRows(near.k, near.k)
            key = seen(in: keys)
            program.appendReplacement(of: k, k, in: keys)
        default: key = recalled(tokens)
        }
        program.appendReplacement(of: key, value, in: rows)
        let ofRows = program.look(at: [.columnBelowFirst(columns: columns)], in: rows)
        let ownRow = program.look(at: [.block(columns)], in: tokens)
        attend([StepProgram.View(q, ownRow), StepProgram.View(q, ofRows)], adding: (k, v), to: y)
        program.appendReplacement(of: q, nil, in: queries)
    }
}

/// What a memory holds, as the caches of a program have it: `[1, heads, tokens, headDim]`, token by token.
private struct CombinerPast {
    let memory: CombinerMemory
    let columns: Int
    let nothing: CombinerTokens
    let pooling: CombinerPooling

    private var open: CombinerTokens { memory.open ?? nothing }

    /// All tokens; with queries only where spans lie above.
    var all: CombinerTokens {
        let closed = memory.closed[.column]?.summaries
        return CombinerTokens(
            q: concatenate([inOrder(memory.queries), open.q], dim: 2),
            k: concatenate([inOrder(closed?.keys), open.k], dim: 2),
            v: concatenate([inOrder(closed?.values), open.v], dim: 2))
    }

    /// The tokens of the last full row, and of the open one.
    var near: CombinerTokens {
        var tokens = (memory.lastRow ?? nothing).appending(open)
        tokens.real = nil
        return tokens
    }

    /// For every token the span of its row that ends with it.
    var left: CombinerSummaries {
        // It is the span left of the next column.
        let line = CombinerTokens(q: open.q, k: open.k, v: open.v).mapped { $0.padded(2, after: 1).unsqueezed(2) }
        let own = pooling.summariesBefore(line).mapped { $0.sliced(3, 1..<line.q.size(3)) }
        return joined(memory.closed[.left], own) { inOrder($0?.sliced(2, 1..<columns).padded(2, after: 1)) }
    }

    /// For every token the span of its column that ends with it, of the last full row on.
    var above: CombinerSummaries {
        let width = open.count
        var lines = CombinerTokens(q: open.q, k: open.k, v: open.v).mapped { $0.unsqueezed(3) }
        if let queries = memory.queries, let closed = memory.closed[.column]?.summaries {
            let past = CombinerTokens(q: queries, k: closed.keys, v: closed.values)
            lines = past.mapped { $0.sliced(2, 0..<width) }.appending(lines, 3)
        }
        let own = pooling.summaries(of: lines).mapped { $0.unsqueezed(2) }
        return joined(memory.closed[.above], own) { $0?.squeezed(2) ?? nothing.q }
    }

    /// For every token the span right of its column, in the row above.
    var right: CombinerSummaries { delayed(memory.closed[.right]) }

    /// For every token what the token above sees of its row.
    var rows: CombinerSummaries { delayed(memory.closed[.rows]) }

    // MARK: Orders

    /// `[1, heads, columns, rows, headDim]`, token by token.
    private func inOrder(_ x: Tensor?) -> Tensor { x.map { $0.transposed(2, 3).flattened(2, 3) } ?? nothing.q }

    /// Of full rows, and then of the open one `[1, heads, 1, tokens, headDim]`.
    private func joined(
        _ closed: CombinerTerm?, _ open: CombinerSummaries, _ inOrder: (Tensor?) -> Tensor
    ) -> CombinerSummaries {
        CombinerSummaries(
            keys: concatenate([inOrder(closed?.summaries.keys), open.keys.squeezed(2)], dim: 2),
            values: concatenate([inOrder(closed?.summaries.values), open.values.squeezed(2)], dim: 2))
    }

    /// One row later, as far as there are tokens.
    private func delayed(_ closed: CombinerTerm?) -> CombinerSummaries {
        func late(_ x: Tensor?) -> Tensor { inOrder(x).padded(2, before: columns).sliced(2, 0..<memory.count) }
        return CombinerSummaries(keys: late(closed?.summaries.keys), values: late(closed?.summaries.values))
    }
}
