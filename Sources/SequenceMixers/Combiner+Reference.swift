// The Combiner's equations, literally: for each query its D_i and S_i, for each span its k̄ and v̄, one softmax over both.
import Torch
import TorchNN

/// What a query looks at: positions one by one, and groups of others.
struct CombinerSight {
    enum Group: Hashable {
        /// Positions `first`, `first + step`, and so on, as one.
        case span(first: Int, step: Int, count: Int)
        /// The row of a position, as the token there sees it.
        case row(of: Int)
    }

    var direct: [Int] = []
    var groups: [Group] = []

    mutating func add(first: Int, step: Int, count: Int) {
        if count > 0 { groups.append(.span(first: first, step: step, count: count)) }
    }
}

extension CombinerPattern {
    /// D_i and S_i of query i in a sequence of `length`.
    func sight(of i: Int, _ length: Int, isCausal: Bool) -> CombinerSight {
        switch self {
        case .fixed(let span, let includesOwn): fixedSight(i, length, span, isCausal, includesOwn)
        case .logsparse: logsparseSight(i)
        case .axialVertical(let columns), .axialHorizontal(let columns), .mixture(let columns, _):
            axialSight(i, length, columns, isCausal)
        case .axialRowmajor(let columns, _, let includesOwn): rowmajorSight(i, length, columns, isCausal, includesOwn)
        }
    }

    private func fixedSight(_ i: Int, _ length: Int, _ span: Int, _ isCausal: Bool, _ includesOwn: Bool)
        -> CombinerSight
    {
        var sight = CombinerSight()
        for start in stride(from: 0, to: length, by: span) {
            let end = min(start + span, length)
            let isOwn = (start..<end).contains(i)
            if isOwn { sight.direct = Array(start..<(isCausal ? i + 1 : end)) }
            if isOwn ? includesOwn : !isCausal || start < i { sight.add(first: start, step: 1, count: end - start) }
        }
        return sight
    }

    private func logsparseSight(_ i: Int) -> CombinerSight {
        var sight = CombinerSight(direct: i.isMultiple(of: 2) ? [i] : [i - 1, i])
        for level in 1..<Int.bitWidth - 1 where (i >> level) & 1 == 1 {
            sight.add(first: ((i >> level) - 1) << level, step: 1, count: 1 << level)
        }
        return sight
    }

    private func axialSight(_ i: Int, _ length: Int, _ columns: Int, _ isCausal: Bool) -> CombinerSight {
        let (row, column) = (i / columns, i % columns)
        var sight = CombinerSight()
        for j in 0..<(isCausal ? i + 1 : length) where j / columns == row || j % columns == column {
            sight.direct.append(j)
        }
        var isVertical = true
        var isHorizontal = true
        if case .axialVertical = self { isHorizontal = false }
        if case .axialHorizontal = self { isVertical = false }
        for other in 0..<columns where isVertical && other != column {
            sight.add(first: other, step: columns, count: min(row, count(other, length, columns)))
            let below = count(other, length, columns) - row - 1
            if !isCausal { sight.add(first: (row + 1) * columns + other, step: columns, count: below) }
        }
        for start in stride(from: 0, to: isCausal ? row * columns : length, by: columns) where isHorizontal {
            if start / columns == row { continue }
            sight.add(first: start, step: 1, count: min(column, length - start))
            sight.add(first: start + column + 1, step: 1, count: min(start + columns, length) - start - column - 1)
        }
        return sight
    }

    /// How many tokens a column has.
    private func count(_ column: Int, _ length: Int, _ columns: Int) -> Int {
        column < length ? (length - column - 1) / columns + 1 : 0
    }

    private func rowmajorSight(_ i: Int, _ length: Int, _ columns: Int, _ isCausal: Bool, _ includesOwn: Bool)
        -> CombinerSight
    {
        let row = i / columns
        let last = isCausal ? i + 1 : min((row + 1) * columns, length)
        var sight = CombinerSight(direct: Array(row * columns..<last))
        for j in stride(from: i % columns, to: isCausal ? row * columns : length, by: columns)
        where j / columns != row || includesOwn {
            sight.groups.append(.row(of: j))
        }
        return sight
    }
}

extension CombinerCore {
    func referenceOutput(of tokens: CombinerTokens) -> Tensor {
        guard accepts(tokens) else { return tokens.v }
        let wide = tokens.widened()
        guard case .mixture(let columns, .average) = pattern else {
            return literal(wide, pattern).to(tokens.v.dtype)
        }
        let vertical = literal(wide, .axialVertical(columns: columns))
        return ((vertical + literal(wide, .axialHorizontal(columns: columns))) / 2).to(tokens.v.dtype)
    }

    private func literal(_ tokens: CombinerTokens, _ pattern: CombinerPattern) -> Tensor {
        let length = tokens.count
        let sights = (0..<length).map { pattern.sight(of: $0, length, isCausal: isCausal) }
        var places: [CombinerSight.Group: Int] = [:]
        var groups: [CombinerSummaries] = []
        for group in sights.flatMap(\.groups) where places[group] == nil {
            places[group] = groups.count
            groups.append(summary(of: group, tokens))
        }
        let keys = concatenate([tokens.k] + groups.map { $0.keys.unsqueezed(2) }, dim: 2)
        let values = concatenate([tokens.v] + groups.map { $0.values.unsqueezed(2) }, dim: 2)

        var isSeen = [Bool](repeating: false, count: length * (length + groups.count))
        for (i, sight) in sights.enumerated() {
            let row = i * (length + groups.count)
            for j in sight.direct { isSeen[row + j] = true }
            for group in sight.groups { isSeen[row + length + (places[group] ?? 0)] = true }
        }
        var visible = Tensor(isSeen, shape: [length, length + groups.count], device: tokens.q.device)
        if let real = tokens.real {
            let present = concatenate([real] + groups.compactMap { $0.present?.unsqueezed(2) }, dim: 2)
            visible = (visible .&& present.unsqueezed(2))
        }
        let logits = matmul(tokens.q, keys.transposed()) * tokens.scale
        let blind = .!visible.any(-1, keepDim: true)
        let scores = logits.masked(where: .!visible, with: -Double.infinity).masked(where: blind, with: 0)
        return matmul(scores.softmax().masked(where: blind, with: 0), values)
    }

    private func summary(of group: CombinerSight.Group, _ tokens: CombinerTokens) -> CombinerSummaries {
        switch group {
        case .row(let position): return rowSummary(position, tokens)
        case .span(let first, let step, let count):
            let positions = Tensor((0..<count).map { first + step * $0 }, device: tokens.q.device)
            return spanSummary(tokens.mapped { $0.indexed(2, positions) })
        }
    }

    /// k̄ and v̄ of the span that these tokens are.
    private func spanSummary(_ span: CombinerTokens) -> CombinerSummaries {
        let real = span.real ?? .ones([1, 1, span.count], dtype: .bool, device: span.q.device)
        let query = pooled(pooling.activated(span.q, pooling.query), real)  // q̄ [batch, heads, 1, headDim]
        let (weights, present) = softmax(matmul(query, span.k.transposed()) * span.scale, real)
        return CombinerSummaries(
            keys: pooled(pooling.activated(span.k, pooling.key), real).squeezed(2),
            values: matmul(weights, span.v).squeezed(2), present: present)
    }

    /// The pool over the real tokens of one span, kept as dimension 2.
    private func pooled(_ x: Tensor, _ real: Tensor) -> Tensor {
        let isPadding = (.!real).unsqueezed(3)
        let sum = x.masked(where: isPadding, with: 0).sum(2, keepDim: true)
        switch pooling.summary.pool {
        case .sum: return sum
        case .mean: return sum / real.to(x.dtype).sum(2, keepDim: true).unsqueezed(3).clamped(min: 1)
        case .max:
            let isEmpty = (.!real.any(2, keepDim: true)).unsqueezed(3)
            let largest = x.masked(where: isPadding, with: -Double.infinity).maximum(2, keepDim: true)
            return largest.masked(where: isEmpty, with: 0)
        }
    }

    /// k̄ and v̄ of a row, as the token at one of its positions sees it.
    private func rowSummary(_ position: Int, _ tokens: CombinerTokens) -> CombinerSummaries {
        let start = position / pattern.size * pattern.size
        let row = tokens.sliced(start..<min(start + pattern.size, tokens.count))
        let own = tokens.sliced(position..<position + 1)
        let real = row.real ?? .ones([1, 1, row.count], dtype: .bool, device: row.q.device)
        let weights = softmax(matmul(own.q, row.k.transposed()) * tokens.scale, real).weights
        let values = matmul(weights, row.v)  // [batch, heads, 1, valueDim]
        let keys: Tensor
        switch pattern {
        case .axialRowmajor(_, .wsum, _): keys = matmul(weights, row.k)
        case .axialRowmajor(_, .proj, _):
            guard let rowKey, let x = own.x else { fatalError("CombinerCore: row keys by projection need the layer") }
            keys = rowKey(values.unsqueezed(2), x.unsqueezed(2)).squeezed(2)
        default: keys = own.k
        }
        return CombinerSummaries(keys: keys.squeezed(2), values: values.squeezed(2), present: own.real?.squeezed(2))
    }

    /// Over the real tokens: zeros where there are none, which `present` says, `[batch or 1, 1]`.
    private func softmax(_ logits: Tensor, _ real: Tensor) -> (weights: Tensor, present: Tensor) {
        let present = real.any(2, keepDim: true).unsqueezed(3)
        let masked = logits.masked(where: (.!real).unsqueezed(2), with: -Double.infinity)
        let weights = masked.masked(where: .!present, with: 0).softmax().masked(where: .!present, with: 0)
        return (weights, present.squeezed(3).squeezed(2))
    }
}
