// The log-sparse Combiner: query i weighs itself and, for each bit l of i that is set, the 2^l tokens before the place where
// the bits below l are 0. These blocks tile everything before i; a block of one token stands for itself.
import Torch
import TorchNN

struct CombinerLogsparse: CombinerForm {
    /// Tokens that stand together, and what is known of them as one.
    struct Block {
        var tokens: CombinerTokens
        /// `[batch, heads, ·]`
        var summary: CombinerSummaries
    }

    let pooling: CombinerPooling
    let observer: (([Int]) -> Void)?

    /// Each level is a few products over the whole sequence: L log L in time; of each only its scores are kept.
    func parallel(_ tokens: CombinerTokens) -> Tensor {
        let count = tokens.count
        let levels = bits(of: count - 1)
        let whole = padded(tokens, to: 1 << levels)
        observer?([tokens.q.size(0), tokens.q.size(1), count, 1 + levels])

        var own = (tokens.q * tokens.k).sum(-1) * tokens.scale
        if let real = tokens.real { own = own.masked(where: .!real, with: excludedScore) }
        let blocks = (0..<levels).map { level in summaries(of: firstHalves(whole, level)) }
        let scores = blocks.enumerated().map { level, block in self.scores(whole, block, level).sliced(2, 0..<count) }
        let weights = stack([own] + scores, dim: 3).softmax()  // [batch, heads, count, 1 + levels]

        var out = weights.sliced(3, 0..<1) * tokens.v
        for (level, block) in blocks.enumerated() {
            out += weighted(weights.selected(3, 1 + level), block, level).sliced(2, 0..<count)
        }
        // Together the blocks are everything up to the query.
        guard let real = tokens.real else { return out }
        return out.masked(where: (real.to(.int64).cumulativeSum(2) .== 0).unsqueezed(3), with: 0)
    }

    /// The number of binary digits; none of 0.
    private func bits(of number: Int) -> Int { Int.bitWidth - number.leadingZeroBitCount }

    private func padded(_ tokens: CombinerTokens, to length: Int) -> CombinerTokens {
        let row = tokens.rows(of: length)
        return CombinerTokens(
            q: row.q.squeezed(2), k: row.k.squeezed(2), v: row.v.squeezed(2), real: row.real?.squeezed(2))
    }

    /// The blocks of 2^l tokens at even places `[batch, heads, pairs, 2^l, ·]`; the block behind each looks at it.
    private func firstHalves(_ tokens: CombinerTokens, _ level: Int) -> CombinerTokens {
        tokens.mapped { half($0, 0, level) }
    }

    /// `[batch, heads, pairs · 2 · 2^l, …]` to `[batch, heads, pairs, 2^l, …]`, the first or second half of each pair.
    private func half(_ x: Tensor, _ index: Int, _ level: Int) -> Tensor {
        var shape = x.shape
        shape.replaceSubrange(2..<3, with: [-1, 2, 1 << level])
        return x.reshaped(to: shape).selected(3, index)
    }

    private func summaries(of blocks: CombinerTokens) -> CombinerSummaries {
        let dim = blocks.q.rank - 2
        guard blocks.q.size(dim) == 1 else { return pooling.summaries(of: blocks) }
        return CombinerSummaries(
            keys: blocks.k.squeezed(dim), values: blocks.v.squeezed(dim), present: blocks.real?.squeezed(-1))
    }

    /// The score of each token's block of one level, `[batch, heads, padded length]`.
    private func scores(_ tokens: CombinerTokens, _ blocks: CombinerSummaries, _ level: Int) -> Tensor {
        let queries = half(tokens.q, 1, level)  // [batch, heads, pairs, 2^l, headDim]
        var scores = matmul(queries, blocks.keys.unsqueezed(4)).squeezed(4) * tokens.scale
        if let present = blocks.present {
            scores = scores.masked(where: (.!present).unsqueezed(3), with: excludedScore)
        }
        // The first half of a pair has no block of this level.
        return scores.unsqueezed(3).padded(3, before: 1, value: excludedScore).flattened(2, 4)
    }

    /// Weights `[batch, heads, length]` times the values of each token's block, `[batch, heads, padded length, valueDim]`.
    private func weighted(_ weights: Tensor, _ blocks: CombinerSummaries, _ level: Int) -> Tensor {
        let length = blocks.values.size(2) << (level + 1)
        let behind = half(weights.padded(2, after: length - weights.size(2)), 1, level)
        let sums = matmul(behind.unsqueezed(4), blocks.values.unsqueezed(3))  // [batch, heads, pairs, 2^l, valueDim]
        return sums.unsqueezed(3).padded(3, before: 1).flattened(2, 4)
    }

    // MARK: Streaming

    /// Pieces after the first are evaluated with all that was before them.
    func prefill(_ tokens: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor {
        let past = memory.blocks.dropFirst().reduce(memory.blocks.first?.tokens) { $0?.appending($1.tokens) }
        let all = past?.appending(tokens) ?? tokens
        let out = parallel(all).sliced(2, memory.count..<all.count)
        memory.count = all.count
        memory.blocks = []
        var start = 0
        for level in (0..<bits(of: all.count)).reversed() where (all.count >> level).isMultiple(of: 2) == false {
            let end = start + (1 << level)
            let block = all.sliced(start..<end).mapped { $0.cloned() }
            memory.blocks.append(Block(tokens: block, summary: summaries(of: block)))
            start = end
        }
        return out
    }

    /// The blocks are a binary counter: a token joins them as one of its own, and equal ones become one of twice the length.
    func step(_ token: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor {
        var new = Block(tokens: token, summary: summaries(of: token))
        let seen = [new] + memory.blocks
        let keys = stack(seen.map(\.summary.keys), dim: 2)  // [batch, heads, blocks, headDim]
        let values = stack(seen.map(\.summary.values), dim: 2)
        var scores = matmul(token.q, keys.transposed()) * token.scale
        let present = seen.compactMap(\.summary.present)
        if present.count == seen.count {
            scores = scores.masked(where: .!stack(present, dim: 2).unsqueezed(2), with: excludedScore)
        }
        while let last = memory.blocks.last, last.tokens.count == new.tokens.count {
            new.tokens = last.tokens.appending(new.tokens)
            memory.blocks.removeLast()
        }
        new.summary = summaries(of: new.tokens)
        memory.blocks.append(new)
        memory.count += 1
        return matmul(scores.softmax(), values)
    }
}
