// Attention over the pairs of a sparse pattern, block by block.
//
// The pattern is compiled once for a length: every atom becomes parts, each an order of queries and one of keys in which what
// is seen lies in few blocks. One softmax goes over all parts,
//
//   out_i = Σ_parts Σ_j e_ij v_j / Σ_parts Σ_j e_ij,   e_ij = exp(s_ij - m_i),
//
// with the maximum m_i carried from part to part. A pair that several atoms contain counts in the first of them only. The
// backward pass computes the scores again from m_i and the sum, so that nothing of the size of the scores is kept.
import Foundation
import Torch

/// A sparse pattern for one length and some of the heads.
final class SparsePlan {
    private let heads: Int
    /// Whether heads have lists of their own; then the blocks of all heads stand in one row, else heads count as batch.
    private let isPerHead: Bool
    private let parts: [CompiledPart]

    /// - Parameter heads: the indices of those that the plan is for.
    init(_ pattern: SparsePattern, length: Int, heads: [Int], isCausal: Bool) {
        self.heads = heads.count
        let regions = heads.map { pattern.regions(length: length, head: $0, isCausal: isCausal) }
        isPerHead = regions.joined().contains(where: \.isPerHead)
        let alternatives = (isPerHead ? regions : Array(regions.prefix(1))).map { regions -> [SparsePart] in
            let own = regions.flatMap { $0.parts() }
            return regions.contains(where: \.containsDiagonal) ? own : own + [SparseRegion.diagonal(length)]
        }
        parts = (alternatives.first ?? []).indices.map { index in
            CompiledPart(
                alternatives.map { $0[index] }, earlier: alternatives.map { Array($0[..<index]) }, isCausal: isCausal)
        }
    }

    /// q, k `[batch, heads, length, d]`, v `[batch, heads, length, e]`; `paddingMask` `[batch, length]` is true for real keys.
    /// Time O(visited pairs (d + e)), memory O(length (d + e)), gradients included.
    func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        let scale = 1 / Double(max(q.size(3), 1)).squareRoot()
        // Sums leave the range of half precision.
        let sums = v.dtype.accumulator
        return withCustomGradient([q.to(sums), k.to(sums), v.to(sums)]) { inputs in
            let (q, k, v) = (inputs[0], inputs[1], inputs[2])
            let rows = self.forward(q * scale, k, v, paddingMask)
            let (peak, sum) = (rows.peak, rows.sum.clamped(min: 1))  // a row has one weight of 1, or none
            let out = rows.out / sum
            let pullback = { (gradients: [Tensor?]) -> [Tensor?] in
                guard let gradient = gradients[0] else { return [nil, nil, nil] }
                let g = gradient / sum
                let delta = (g * out).sum(-1, keepDim: true)
                let found = self.backward(q * scale, k, v, paddingMask, peak: finite(peak), g: g, delta: delta)
                return [found.q * scale, found.k, found.v]
            }
            return ([out], pullback)
        }[0].to(v.dtype)
    }

    // MARK: Forward

    private func forward(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?) -> SoftmaxRows {
        // There is a first part: every query sees itself.
        parts.dropFirst().reduce(forward(parts[0], q, k, v, mask)) { $0.merged(with: forward($1, q, k, v, mask)) }
    }

    private func forward(_ part: CompiledPart, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?) -> SoftmaxRows {
        let (queries, keys, values) = (blocks(q, part.queries), blocks(k, part.keys), blocks(v, part.keys))
        let real = mask.map { realBlocks($0, part.keys) }
        let shape = Array(queries.shape.dropLast())
        let peaks = Tensor.full(shape + [1], -Double.infinity, dtype: q.dtype, device: q.device)
        let sums = Tensor.zeros(shape + [1], dtype: q.dtype, device: q.device)
        let outs = Tensor.zeros(shape + [v.size(3)], dtype: q.dtype, device: q.device)
        for group in part.groups {
            let scores = group.scores(queries.sliced(1, group.tiles), group.gathered(keys), real)
            let peak = scores.maximum(-1, keepDim: true)
            let weights = (scores - finite(peak)).exp()
            peaks.copyInPlace(1, group.tiles, from: peak)
            sums.copyInPlace(1, group.tiles, from: weights.sum(-1, keepDim: true))
            outs.copyInPlace(1, group.tiles, from: matmul(weights, group.gathered(values)))
        }
        return SoftmaxRows(
            peak: restored(peaks, part.queries, missing: -Double.infinity), sum: restored(sums, part.queries),
            out: restored(outs, part.queries))
    }

    // MARK: Backward

    /// With g_i = dout_i / Σ_j e_ij and δ_i = g_i·out_i:  dv_j = Σ_i e_ij g_i,  ds_ij = e_ij (g_i·v_j - δ_i),
    /// dq_i = Σ_j ds_ij k_j,  dk_j = Σ_i ds_ij q_i.
    private func backward(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?, peak: Tensor, g: Tensor, delta: Tensor
    ) -> (q: Tensor, k: Tensor, v: Tensor) {
        var total = (q: Tensor.zeros(like: q), k: Tensor.zeros(like: k), v: Tensor.zeros(like: v))
        for part in parts {
            let (queries, keys, values) = (blocks(q, part.queries), blocks(k, part.keys), blocks(v, part.keys))
            let (gs, deltas, peaks) = (blocks(g, part.queries), blocks(delta, part.queries), blocks(peak, part.queries))
            let real = mask.map { realBlocks($0, part.keys) }
            let (dq, dk, dv) = (Tensor.zeros(like: queries), Tensor.zeros(like: keys), Tensor.zeros(like: values))
            for group in part.groups {
                let tile = { (x: Tensor) in x.sliced(1, group.tiles) }
                let (someKeys, someQueries, someGs) = (group.gathered(keys), tile(queries), tile(gs))
                let weights = (group.scores(someQueries, someKeys, real) - tile(peaks)).exp()
                let slopes = weights * (matmul(someGs, group.gathered(values).transposed()) - tile(deltas))
                dq.copyInPlace(1, group.tiles, from: matmul(slopes, someKeys))
                group.add(matmul(slopes.transposed(), someQueries), to: dk)
                group.add(matmul(weights.transposed(), someGs), to: dv)
            }
            total.q += restored(dq, part.queries)
            total.k += restored(dk, part.keys)
            total.v += restored(dv, part.keys)
        }
        return total
    }

    // MARK: Blocks

    /// x `[batch, heads, length, d]` as `[batch · heads, blocks, block, d]`, or `[batch, heads · blocks, block, d]`.
    private func blocks(_ x: Tensor, _ layout: SparseLayout) -> Tensor {
        let arranged = layout.arranged(x)
        let leading = isPerHead ? x.size(0) : x.size(0) * x.size(1)
        return arranged.reshaped(leading, -1, layout.block, x.size(3)).contiguous()
    }

    private func restored(_ y: Tensor, _ layout: SparseLayout, missing value: Double = 0) -> Tensor {
        layout.restored(y.reshaped(-1, heads, layout.blockCount * layout.block, y.size(3)), missing: value)
    }

    private func realBlocks(_ mask: Tensor, _ layout: SparseLayout) -> Tensor {
        blocks(mask.reshaped(mask.size(0), 1, mask.size(1), 1).expanded(to: [-1, heads, -1, -1]), layout).squeezed(3)
    }
}

/// What has been seen of a softmax: for every query the largest score, Σ exp(s - peak) and Σ exp(s - peak) v.
private struct SoftmaxRows {
    /// `[batch, heads, length, 1]`, -∞ where nothing was seen.
    let peak: Tensor
    let sum: Tensor
    let out: Tensor

    func merged(with other: SoftmaxRows) -> SoftmaxRows {
        let peak = Torch.maximum(self.peak, other.peak)
        let (a, b) = ((self.peak - finite(peak)).exp(), (other.peak - finite(peak)).exp())
        return SoftmaxRows(peak: peak, sum: sum * a + other.sum * b, out: out * a + other.out * b)
    }
}

/// -∞ replaced by 0, so that exp(-∞ - peak) is 0 where nothing is seen.
private func finite(_ peak: Tensor) -> Tensor { peak.masked(where: peak .== -Double.infinity, with: 0) }

// MARK: - Compiled once for a length

/// A part with its pairs decided, cut into groups of blocks that are evaluated together.
private struct CompiledPart {
    let queries: SparseLayout
    let keys: SparseLayout
    let groups: [BlockGroup]

    /// Scores for one head that a group may have: enough to keep the processor busy, few enough to stay in its cache.
    private static let groupSize = 1 << 16

    /// - Parameters:
    ///   - alternatives: the part for each head, or once for all.
    ///   - earlier: for each of those, the parts that were evaluated before.
    init(_ alternatives: [SparsePart], earlier: [[SparsePart]], isCausal: Bool) {
        (queries, keys) = (alternatives[0].queries, alternatives[0].keys)
        var groups: [BlockGroup] = []
        let (queryPositions, keyPositions) = (queries.positions, keys.positions)
        for (head, part) in alternatives.enumerated() {
            for tiles in Self.grouped(part) {
                let lists = Array(part.lists[tiles])
                let seen = Self.seen(
                    part, earlier[head], queryPositions.sliced(0, tiles), keyPositions, lists, isCausal: isCausal)
                if let group = BlockGroup(
                    tiles, lists, seen, firstTile: head * queries.blockCount, firstBlock: head * keys.blockCount)
                {
                    groups.append(group)
                }
            }
        }
        self.groups = groups
    }

    /// Neighboring blocks of queries that see anything, as many as fit.
    private static func grouped(_ part: SparsePart) -> [Range<Int>] {
        var groups: [Range<Int>] = []
        var (start, width) = (0, 0)
        for (index, list) in part.lists.enumerated() {
            let wider = max(width, list.count)
            let size = (index - start + 1) * part.queries.block * wider * part.keys.block
            if index > start && (list.isEmpty || size > groupSize) {
                groups.append(start..<index)
                (start, width) = (index, list.count)
            } else {
                width = wider
            }
            if list.isEmpty { (start, width) = (index + 1, 0) }
        }
        if start < part.lists.count { groups.append(start..<part.lists.count) }
        return groups
    }

    /// Bool `[tiles, block, keys]`: the pairs of this part in the blocks of the lists, filled up to the longest list.
    private static func seen(
        _ part: SparsePart, _ earlier: [SparsePart], _ positions: Tensor, _ keyPositions: Tensor, _ lists: [[Int]],
        isCausal: Bool
    ) -> Tensor {
        let width = lists.map(\.count).max() ?? 0
        let (filled, isThere) = BlockGroup.filled(lists, width)
        let i = positions.unsqueezed(2)
        let j = keyPositions.indexed(0, filled).reshaped(lists.count, 1, -1)
        let listed = isThere.repeated(part.keys.block, dim: 1).unsqueezed(1)
        var seen = ((part.contains(i, j) .&& listed) .&& ((i .>= 0) .&& (j .>= 0)))
        if isCausal { seen = (seen .&& (j .<= i)) }
        for other in earlier { seen = (seen .&& .!other.contains(i, j)) }
        return seen
    }
}

/// Blocks of queries, for each of them as many blocks of keys, and which of the pairs count.
private struct BlockGroup {
    /// In the row of all heads' blocks.
    let tiles: Range<Int>
    /// `[tiles · width]`, where the keys' blocks are gathered from.
    private let sources: Tensor
    /// Bool `[tiles, block, keys]`, true for what does not count; nil where everything does.
    private let hidden: Tensor?
    /// Where gradients go: every block once, in order, and the runs of neighbors among them.
    private let distinct: Int
    private let places: Tensor
    private let runs: [(from: Range<Int>, to: Range<Int>)]

    /// nil when no pair counts.
    init?(_ tiles: Range<Int>, _ lists: [[Int]], _ seen: Tensor, firstTile: Int, firstBlock: Int) {
        guard seen.any().integerItem() != 0 else { return nil }
        self.tiles = tiles.lowerBound + firstTile..<tiles.upperBound + firstTile
        let width = lists.map(\.count).max() ?? 0
        sources = Self.filled(lists, width).blocks + firstBlock
        hidden = seen.all().integerItem() != 0 ? nil : .!seen
        let blocks = Set(lists.joined()).sorted()
        distinct = blocks.count
        let place = Dictionary(uniqueKeysWithValues: blocks.enumerated().map { ($0.element, $0.offset) })
        places = Tensor(
            lists.flatMap { list in
                (0..<width).map { place[$0 < list.count ? list[$0] : Self.filler(list)] ?? 0 }
            })
        runs = Self.runs(blocks, firstBlock)
    }

    /// The lists as one vector, all as long as `width`, and where they said so themselves `[lists, width]`.
    static func filled(_ lists: [[Int]], _ width: Int) -> (blocks: Tensor, isThere: Tensor) {
        let blocks = lists.flatMap { list in list + Array(repeating: filler(list), count: width - list.count) }
        let isThere = lists.flatMap { list in (0..<width).map { $0 < list.count } }
        return (Tensor(blocks), Tensor(isThere, shape: [lists.count, width]))
    }

    /// What stands for a block that is not there, and is hidden.
    private static func filler(_ list: [Int]) -> Int { list.first ?? 0 }

    private static func runs(_ blocks: [Int], _ first: Int) -> [(from: Range<Int>, to: Range<Int>)] {
        var runs: [(from: Range<Int>, to: Range<Int>)] = []
        var start = 0
        for end in 1..<blocks.count + 1 where end == blocks.count || blocks[end] != blocks[end - 1] + 1 {
            runs.append((start..<end, first + blocks[start]..<first + blocks[end - 1] + 1))
            start = end
        }
        return runs
    }

    /// x `[leading, blocks, block, d]` → `[leading, tiles, keys, d]`.
    func gathered(_ x: Tensor) -> Tensor {
        x.indexed(1, sources.to(x.device)).reshaped(x.size(0), tiles.count, -1, x.size(3))
    }

    /// q·k `[leading, tiles, block, keys]`, -∞ where the pair does not count or the key is padded.
    func scores(_ queries: Tensor, _ keys: Tensor, _ real: Tensor?) -> Tensor {
        var scores = matmul(queries, keys.transposed())
        if let hidden { scores = scores.masked(where: hidden.to(scores.device), with: -Double.infinity) }
        guard let real else { return scores }
        let realKeys = real.indexed(1, sources.to(real.device)).reshaped(real.size(0), tiles.count, 1, -1)
        return scores.masked(where: .!realKeys, with: -Double.infinity)
    }

    /// Adds `[leading, tiles, keys, d]` to the blocks that they were gathered from.
    func add(_ gradient: Tensor, to blocks: Tensor) {
        let (leading, block, width) = (blocks.size(0), blocks.size(2), blocks.size(3))
        let collected = Tensor.zeros([leading, distinct, block, width], dtype: blocks.dtype, device: blocks.device)
            .indexAdded(1, places.to(blocks.device), gradient.reshaped(leading, -1, block, width))
        for run in runs { blocks.sliced(1, run.to).addInPlace(collected.sliced(1, run.from)) }
    }
}

// MARK: - Plans by length

/// A sparse pattern with what has been compiled of it: passes of the CPU's kernel where few ranges say it, otherwise plans.
final class SparseEvaluator {
    private struct Key: Hashable {
        let length: Int
        let heads: Int
        let seed: Int
        let onProcessor: Bool
    }

    private enum Compiled {
        case passes([IntervalPass])
        case plans(Plans)
    }

    private struct Plans {
        let ofChoices: [SparsePlan]
        /// Where each head is found when the choices' heads stand one after the other; nil when they stand as they are.
        let order: Tensor?
    }

    private let pattern: SparsePattern
    private let isCausal: Bool
    private var compiled: [Key: Compiled] = [:]

    init(_ pattern: SparsePattern, isCausal: Bool) {
        self.pattern = pattern
        self.isCausal = isCausal
    }

    /// - Parameter seed: of the random blocks that have none of their own.
    func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, seed: Int) -> Tensor {
        let heads = q.size(1)
        let key = Key(length: q.size(2), heads: heads, seed: seed, onProcessor: q.device == .cpu)
        switch compiled(for: key) {
        case .passes(let passes):
            let scale = 1 / Double(max(q.size(3), 1)).squareRoot()
            return intervalAttention(q, k, v, passes: passes, keyMask: paddingMask, scale: scale)
        case .plans(let plans): return planned(q, k, v, paddingMask, plans)
        }
    }

    private func planned(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, _ plans: Plans) -> Tensor {
        let heads = q.size(1)
        let choices = plans.ofChoices.count
        guard choices > 1 else {
            return plans.ofChoices.first?.attention(q, k, v, paddingMask: paddingMask) ?? v
        }
        let outs = plans.ofChoices.enumerated().map { choice, plan in
            let own = { (x: Tensor) in x.sliced(1, choice..<heads, step: choices) }
            return plan.attention(own(q), own(k), own(v), paddingMask: paddingMask)
        }
        let together = concatenate(outs, dim: 1)
        return plans.order.map { together.indexed(1, $0.to(together.device)) } ?? together
    }

    private func compiled(for key: Key) -> Compiled {
        if let made = compiled[key] { return made }
        // Enough for the lengths of training and evaluation; a stream of many lengths would fill the memory.
        if compiled.count >= 4 { compiled = [:] }
        let passes =
            key.onProcessor
            ? pattern.seeded(key.seed).passes(length: key.length, heads: key.heads, isCausal: isCausal) : nil
        let made = passes.map(Compiled.passes) ?? .plans(make(key))
        compiled[key] = made
        return made
    }

    private func make(_ key: Key) -> Plans {
        let pattern = pattern.seeded(key.seed)
        let choices = min(pattern.choices.count, key.heads)
        let heads = (0..<choices).map { Array(stride(from: $0, to: key.heads, by: choices)) }
        let made = heads.map { SparsePlan(pattern, length: key.length, heads: $0, isCausal: isCausal) }
        let standing = heads.flatMap { $0 }
        let order = standing.indices.sorted { standing[$0] < standing[$1] }
        return Plans(ofChoices: made, order: order == Array(standing.indices) ? nil : Tensor(order))
    }
}
