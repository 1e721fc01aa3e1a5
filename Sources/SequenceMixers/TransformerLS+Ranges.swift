// Long-short attention where every query sees a few ranges of keys: those of its window among all tokens, and the mixtures
// behind them. No scores are kept.
import Torch
import TorchNN

extension CausalLongShortAttention {
    /// Whether the fused form serves: it knows no distances.
    func isRanged(_ q: Tensor) -> Bool {
        !usesReference && !isComposed && distances == nil && q.device == .cpu
    }

    /// What ``attended(_:_:_:_:cache:paddingMask:)`` is, in one softmax over ranges.
    func ranged(
        _ q: Tensor, _ x: Tensor, _ rawKeys: Tensor, _ rawValues: Tensor, cache: Tensor?, paddingMask: Tensor?
    ) -> Tensor {
        let (tokens, past) = (rawKeys.size(1), rawKeys.size(1) - x.size(1))
        let seen: Mixtures
        if cache == nil {
            let (keys, values) = segmentMixtures(
                rawKeys, rawValues, logits: projections.mixture(x), paddingMask: paddingMask, norms: projections.norms,
                segment: chunk, rank: projections.rank, heads: projections.heads)
            seen = Mixtures(keys: keys, values: values, isReal: paddingMask.map(marked))
        } else {
            let near = Mixtures(
                keys: projections.windowNorm(rawKeys), values: projections.windowNorm(rawValues),
                isReal: paddingMask?.padded(1, before: past, value: 1))
            seen = near.joined(mixtures(x, cache, rawKeys, rawValues, paddingMask))
        }
        let (keys, values) = seen.byHeads(projections.heads)
        return intervalAttention(
            q, keys, values, intervals: ranges(past: past, queries: x.size(1), tokens), keyMask: seen.isReal, scale: 1)
    }

    /// The mask of the tokens, and of the mixtures of all segments but the last.
    private func marked(_ paddingMask: Tensor) -> Tensor {
        let (batch, closed) = (paddingMask.size(0), (paddingMask.size(1) - 1) / chunk)
        let segments = paddingMask.sliced(1, 0..<closed * chunk).reshaped(batch, closed, chunk).any(2)
        return concatenate([paddingMask, segments.repeated(projections.rank, dim: 1)], dim: 1)
    }

    private func ranges(past: Int, queries: Int, _ tokens: Int) -> Tensor {
        ranges([past], queries: queries) { i in
            let end = i + (past + 1)
            let mixtures = (i + past).floorDivided(by: chunk) * projections.rank
            return [(end - window, end), (Tensor([tokens]), mixtures + tokens)]
        }
    }
}

extension LongShortAttention {
    /// Whether the fused form serves: a row of a grid's window is a range of its own.
    func isRanged(_ q: Tensor) -> Bool {
        if case .sequence = shape { !isComposed && q.device == .cpu } else { false }
    }

    /// One softmax over each group's window and what is common to all, for queries of all tokens but the global ones.
    func ranged(_ q: Tensor, _ keys: Tensor, _ values: Tensor, keyMask: Tensor?) -> Tensor {
        let (tokens, all) = (q.size(2), keys.size(2))
        let margin = max(1, window / 2)
        let ranges = ranges([all], queries: tokens) { i in
            let start = i.floorDivided(by: window) * window
            let end = start + (window + margin)
            return [
                (start - margin, end.masked(where: end .> tokens, with: Double(tokens))),
                (Tensor([tokens]), Tensor([all])),
            ]
        }
        return intervalAttention(q, keys, values, intervals: ranges, keyMask: keyMask, scale: 1)
    }
}

extension LongShortProjections {
    /// What the two norms have learned.
    var norms: SegmentNorms {
        func bias(_ norm: LayerNorm) -> Tensor { norm.bias?.value ?? .zeros(like: norm.weight.value) }
        return SegmentNorms(
            tokenGain: windowNorm.weight.value, tokenBias: bias(windowNorm), mixtureGain: longNorm.weight.value,
            mixtureBias: bias(longNorm), epsilon: windowNorm.epsilon)
    }
}
