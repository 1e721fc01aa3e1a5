// The Combiner patterns that lay a sequence out in rows: all but log-sparse. (A span of `fixed` is a row.)
import Torch
import TorchNN

/// A pattern as a list of parts, whose scores go into one softmax.
struct CombinerGrid: CombinerForm {
    /// A set of keys that every query looks at in the same manner.
    enum Part: String {
        /// Each token of the query's row.
        case ownRow = "own-row"
        /// Each token of the query's column in other rows.
        case column
        /// Each other column's tokens in earlier, or later, rows as one.
        case above, below
        /// Each other row's tokens left, or right, of the query's column as one.
        case left, right
        /// Each other row's tokens as one.
        case spans
        /// What each other row's token in the query's column sees of its row.
        case rows

        /// Whether what a full row gives does not depend on the others.
        var isOfOneRow: Bool { self != .ownRow && self != .above && self != .below }
    }

    let columns: Int
    let parts: [Part]
    let isCausal: Bool
    let includesOwn: Bool
    let pooling: CombinerPooling
    let keySummary: CombinerKeySummary
    let rowKey: CombinerRowKey?
    let observer: (([Int]) -> Void)?
    let ranges: KeyRanges

    /// Scores held at a time, for each token and head: about as much as its q, k and v.
    private static let scoresAtOnce = 32

    func parallel(_ tokens: CombinerTokens) -> Tensor {
        if isRanged(tokens) { return ranged(tokens) }
        let grid = tokens.rows(of: min(columns, tokens.count))
        // A single row has no others to look at.
        let needed = grid.count > 1 || includesOwn ? parts : [.ownRow]
        let out = evaluate(grid.q, needed.map { term($0, grid) }, from: 0)
        return out.flattened(2, 3).sliced(2, 0..<tokens.count)
    }

    // MARK: Parts

    /// A part of whole rows.
    private func term(_ part: Part, _ grid: CombinerTokens) -> CombinerTerm {
        let others: CombinerTerm.Sight = isCausal ? .earlier : .others
        func ofColumn(_ lines: CombinerSummaries, _ sight: CombinerTerm.Sight) -> CombinerTerm {
            CombinerTerm(.column, sight, lines.mapped { $0.transposed(2, 3).contiguous() })
        }
        func ofRow(_ lines: CombinerSummaries) -> CombinerTerm {
            CombinerTerm(.row, .others, lines.mapped { $0.transposed(2, 3).contiguous() })
        }
        switch part {
        case .ownRow:
            let keys = CombinerSummaries(keys: grid.k, values: grid.v, present: grid.real)
            return CombinerTerm(.row, isCausal ? .upToOwn : .all, keys)
        case .column: return ofColumn(CombinerSummaries(keys: grid.k, values: grid.v, present: grid.real), others)
        case .above: return ofRow(pooling.summariesBefore(grid.turned))
        case .below: return ofRow(pooling.summariesAfter(grid.turned))
        case .left: return ofColumn(pooling.summariesBefore(grid), others)
        case .right: return ofColumn(pooling.summariesAfter(grid), others)
        case .spans: return CombinerTerm(.everywhere, includesOwn ? .all : others, pooling.summaries(of: grid))
        case .rows: return ofColumn(rowSummaries(grid), includesOwn ? .all : others)
        }
    }

    /// From every token, its whole row: v̄ = Σ π v with π = softmax(q·k/√D) over the row, and k̄.
    private func rowSummaries(_ grid: CombinerTokens) -> CombinerSummaries {
        let width = grid.v.size(4)
        let pooled = keySummary == .wsum ? concatenate([grid.v, grid.k], dim: 4) : grid.v
        let seen = attended(grid.q, grid, pooled, causal: false)
        let values = seen.sliced(4, 0..<width)
        var keys = grid.k
        if keySummary == .wsum { keys = seen.sliced(4, width..<seen.size(4)) }
        if let rowKey, let x = grid.x { keys = rowKey(values, x) }
        return CombinerSummaries(keys: keys, values: values, present: grid.real)
    }

    // MARK: Attention

    /// Queries `[batch, heads, rows, columns, headDim]`, the first of which stand in `row`; some rows at a time.
    private func evaluate(_ q: Tensor, _ terms: [CombinerTerm], from row: Int) -> Tensor {
        let rows = q.size(2)
        let width = terms.reduce(0) { $0 + $1.width }
        let atOnce = max(1, Self.scoresAtOnce * rows / max(width, 1))
        let pieces = stride(from: 0, to: rows, by: atOnce).map { start -> Tensor in
            let range = start..<min(start + atOnce, rows)
            let near = terms.compactMap { $0.looked(atBy: range, from: row) }
            let queries = range.count == rows ? q : q.sliced(2, range)
            guard range.count < rows else { return attend(queries, near, row: row) }
            // What is recomputed in the backward pass need not be kept.
            return checkpointed([queries] + near.flatMap { [$0.summaries.keys, $0.summaries.values] }) { tensors in
                var given = near
                for index in given.indices {
                    given[index].summaries.keys = tensors[1 + 2 * index]
                    given[index].summaries.values = tensors[2 + 2 * index]
                }
                return [attend(tensors[0], given, row: row + range.lowerBound)]
            }[0]
        }
        return pieces.count == 1 ? pieces[0] : concatenate(pieces, dim: 2)
    }

    /// One softmax over all terms, for queries from `row` and `column` on.
    private func attend(_ q: Tensor, _ terms: [CombinerTerm], row: Int, column: Int = 0) -> Tensor {
        observer?(Array(q.shape.dropLast()) + [terms.reduce(0) { $0 + $1.width }])
        let scaled = q / Double(q.size(4)).squareRoot()
        var logits: [Tensor] = []
        var seen: Tensor?
        for term in terms {
            let scores = term.scores(scaled)
            guard let visible = term.visible(q, row, column) else {
                logits.append(scores)
                continue
            }
            logits.append(scores.masked(where: .!visible, with: excludedScore))
            let isSeen = visible.any(-1)
            seen = seen.map { ($0 .|| isSeen) } ?? isSeen
        }
        let weights = concatenate(logits, dim: 4).softmax()
        var (out, start) = (Tensor?.none, 0)
        for term in terms {
            let part = term.weighted(weights.sliced(4, start..<start + term.width))
            out = out.map { $0 + part } ?? part
            start += term.width
        }
        guard let out else { return q }
        guard let seen, !terms.contains(where: \.isAlwaysSeen) else { return out }
        return out.masked(where: (.!seen).unsqueezed(4), with: 0)
    }

    // MARK: Streaming

    func prefill(_ tokens: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor {
        let row = memory.count / columns
        let all = memory.open?.appending(tokens) ?? tokens
        let grid = all.rows(of: columns)
        let terms = parts.map { part in
            part == .above ? above(grid, memory) : term(part, grid).after(memory.closed[part])
        }
        let isWhole = memory.count == 0 && isRanged(tokens)
        let out = isWhole ? ranged(tokens) : evaluate(grid.q, terms, from: row).flattened(2, 3)
        let full = all.count / columns
        if full > 0 {
            for (part, term) in zip(parts, terms) where part.isOfOneRow {
                memory.closed[part] = term.first(row + full)
            }
            close(grid.mapped { $0.sliced(2, 0..<full) }, &memory)
            if keepsLastRow {
                memory.lastRow = all.sliced((full - 1) * columns..<full * columns).mapped { $0.cloned() }
            }
        }
        let rest = full * columns..<all.count
        memory.open = rest.isEmpty ? nil : all.sliced(rest).mapped { $0.cloned() }
        memory.count += tokens.count
        return out.sliced(2, all.count - tokens.count..<all.count)
    }

    func step(_ token: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor {
        let open = memory.open?.appending(token) ?? token
        let column = open.count - 1
        let terms = parts.compactMap { part -> CombinerTerm? in
            guard part == .ownRow else { return memory.closed[part]?.fromColumn(column) }
            let keys = CombinerSummaries(keys: open.k, values: open.v, present: open.real)
            return CombinerTerm(.row, .all, keys.mapped { $0.unsqueezed(2) })
        }
        let out = attend(token.q.unsqueezed(2), terms, row: 0, column: column).squeezed(2)
        memory.open = open
        memory.count += 1
        guard open.count == columns else { return out }
        let grid = open.rows(of: columns)
        for part in parts where part.isOfOneRow {
            memory.closed[part] = term(part, grid).after(memory.closed[part])
        }
        close(grid, &memory)
        if keepsLastRow { memory.lastRow = open }
        memory.open = nil
        return out
    }

    private var keepsLastRow: Bool { parts.contains(.right) || parts.contains(.rows) }

    /// After full rows, whose other parts are in the memory already: the spans above the next row.
    private func close(_ rows: CombinerTokens, _ memory: inout CombinerMemory) {
        guard parts.contains(.above), let column = memory.closed[.column]?.summaries else { return }
        let new = rows.q.transposed(2, 3)
        let queries = memory.queries.map { concatenate([$0, new], dim: 3) } ?? new.cloned()
        memory.queries = queries
        let lines = CombinerTokens(q: queries, k: column.keys, v: column.values, real: column.present)
        memory.closed[.above] = CombinerTerm(.row, .others, pooling.summaries(of: lines).mapped { $0.unsqueezed(2) })
    }

    /// The spans above each of some rows, after those in the memory.
    private func above(_ rows: CombinerTokens, _ memory: CombinerMemory) -> CombinerTerm {
        guard let queries = memory.queries, let column = memory.closed[.column]?.summaries else {
            return term(.above, rows)
        }
        let past = CombinerTokens(q: queries, k: column.keys, v: column.values, real: column.present)
        let lines = past.appending(rows.turned, 3)
        let first = queries.size(3)
        let each = (first..<first + rows.count).map { row in
            pooling.summaries(of: lines.mapped { $0.sliced(3, 0..<row) })
        }
        let present = each.compactMap(\.present)
        return CombinerTerm(
            .row, .others,
            CombinerSummaries(
                keys: stack(each.map(\.keys), dim: 2), values: stack(each.map(\.values), dim: 2),
                present: present.isEmpty ? nil : stack(present, dim: 2)))
    }
}

/// Keys that go into a softmax together, and who looks at which.
struct CombinerTerm {
    /// Whom the keys are for; with that, their shape.
    enum Place {
        /// Queries of the same row: `[batch, heads, rows, keys, ·]`.
        case row
        /// Queries of the same column: `[batch, heads, columns, keys, ·]`, one key for each row.
        case column
        /// All queries: `[batch, heads, keys, ·]`, one key for each row.
        case everywhere
    }

    /// Which keys a query looks at, by its place among them (in its row, or of its row).
    enum Sight { case all, upToOwn, earlier, others }

    let place: Place
    var sight: Sight
    var summaries: CombinerSummaries

    init(_ place: Place, _ sight: Sight, _ summaries: CombinerSummaries) {
        self.place = place
        self.sight = sight
        self.summaries = summaries
    }

    private var keyDim: Int { place == .everywhere ? 2 : 3 }

    /// Scores for each query.
    var width: Int { summaries.keys.size(keyDim) }

    var tensors: [String: Tensor] { summaries.tensors }

    func mapped(_ body: (Tensor) -> Tensor) -> CombinerTerm { CombinerTerm(place, sight, summaries.mapped(body)) }

    /// Whether every query looks at something here.
    var isAlwaysSeen: Bool { summaries.present == nil && place == .row && (sight == .upToOwn || sight == .all) }

    // MARK: Attention

    /// Of queries `[batch, heads, rows, columns, headDim]`: `[batch, heads, rows, columns, keys]`.
    func scores(_ q: Tensor) -> Tensor {
        switch place {
        case .row: return matmul(q, summaries.keys.transposed())
        case .column: return matmul(q.transposed(2, 3), summaries.keys.transposed()).transposed(2, 3)
        case .everywhere:
            let scores = matmul(q.flattened(2, 3), summaries.keys.transposed())
            return scores.reshaped(q.size(0), q.size(1), q.size(2), q.size(3), width)
        }
    }

    /// Σ weight · value: `[batch, heads, rows, columns, valueDim]`.
    func weighted(_ weights: Tensor) -> Tensor {
        switch place {
        case .row: return matmul(weights, summaries.values)
        case .column: return matmul(weights.transposed(2, 3), summaries.values).transposed(2, 3)
        case .everywhere:
            let sums = matmul(weights.flattened(2, 3), summaries.values)
            return sums.reshaped(weights.size(0), weights.size(1), weights.size(2), weights.size(3), sums.size(3))
        }
    }

    /// Where there is something to look at, `[batch or 1, 1, rows or 1, columns or 1, keys or 1]`; nil: everywhere.
    func visible(_ q: Tensor, _ row: Int, _ column: Int) -> Tensor? {
        let present = summaries.present.map {
            switch place {
            case .row: $0.unsqueezed(3)
            case .column: $0.unsqueezed(2)
            case .everywhere: $0.unsqueezed(2).unsqueezed(2)
            }
        }
        guard let sighted = sighted(q, row, column) else { return present }
        return present.map { ($0 .&& sighted) } ?? sighted
    }

    private func sighted(_ q: Tensor, _ row: Int, _ column: Int) -> Tensor? {
        let range = place == .row ? column..<column + q.size(3) : row..<row + q.size(2)
        let own = Tensor.arange(range, device: q.device).unsqueezed(1)
        let keys = Tensor.arange(0..<width, device: q.device).unsqueezed(0)
        let matrix: Tensor
        switch sight {
        case .all: return nil
        case .upToOwn: matrix = (keys .<= own)
        case .earlier: matrix = (keys .< own)
        case .others: matrix = (keys .!= own)
        }
        let (rows, columns) = place == .row ? (1, range.count) : (range.count, 1)
        return matrix.reshaped(1, 1, rows, columns, width)
    }

    /// The part that some rows of queries can look at, when the first of all stands in `row`; nil when there is none.
    func looked(atBy rows: Range<Int>, from row: Int) -> CombinerTerm? {
        // A tensor that is alike in all rows, or for all keys, stays as it is.
        func cut(_ dim: Int, _ range: Range<Int>) -> CombinerTerm {
            mapped { $0.size(dim) == 1 || range == 0..<$0.size(dim) ? $0 : $0.sliced(dim, range) }
        }
        if place == .row { return cut(2, rows) }
        guard sight == .earlier else { return self }
        let last = min(width, row + rows.upperBound - 1)
        return last > 0 ? cut(keyDim, 0..<last) : nil
    }

    // MARK: Streaming

    /// Behind the keys of earlier rows.
    func after(_ past: CombinerTerm?) -> CombinerTerm {
        guard let past, place != .row else { return self }
        func joined(_ a: Tensor, _ b: Tensor) -> Tensor { concatenate([a, b], dim: keyDim) }
        let (old, new) = (past.summaries, summaries)
        return CombinerTerm(
            place, sight,
            CombinerSummaries(
                keys: joined(old.keys, new.keys), values: joined(old.values, new.values),
                present: old.present.flatMap { old in new.present.map { joined(old, $0) } }))
    }

    /// The keys of the first rows, in memory of their own.
    func first(_ rows: Int) -> CombinerTerm { mapped { $0.sliced(keyDim, 0..<rows).cloned() } }

    /// All keys, for one query in a column.
    func fromColumn(_ column: Int) -> CombinerTerm {
        switch place {
        case .row: return self
        case .everywhere: return CombinerTerm(place, .all, summaries)
        case .column: return CombinerTerm(place, .all, summaries.mapped { $0.sliced(2, column..<column + 1) })
        }
    }
}

/// The key of a row as one of its tokens sees it: LN(x + W_o v̄) W_kᵀ, for the layer's input x and v̄ of all heads.
public final class CombinerRowKey: Module {
    /// W_o, from all heads' v̄ to the model.
    public let output: Linear
    public let norm: LayerNorm
    /// W_k, from the model to all heads' k̄.
    public let key: Linear

    public init(modelDim: Int, innerDim: Int, epsilon: Double = 1e-6, using generator: RandomGenerator) {
        output = Linear(innerDim, modelDim, bias: false, using: generator)
        norm = LayerNorm(modelDim, epsilon: epsilon)
        key = Linear(modelDim, innerDim, bias: false, using: generator)
        super.init()
    }

    /// v̄ `[batch, heads, rows, columns, headDim]` and x `[batch, 1, rows, columns, modelDim]` to k̄ of v̄'s shape.
    func callAsFunction(_ values: Tensor, _ x: Tensor) -> Tensor {
        let dtype = key.weight.value.dtype
        let merged = values.permuted(0, 2, 3, 1, 4).flattened(3, 4).to(dtype)
        let keys = key(norm(x.squeezed(1).to(dtype) + output(merged)))
        let shape = values.shape
        return keys.reshaped(shape[0], shape[2], shape[3], shape[1], shape[4]).permuted(0, 3, 1, 2, 4).to(values.dtype)
    }
}
