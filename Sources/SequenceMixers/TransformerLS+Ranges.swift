// Long-short attention where every query sees a few ranges of keys: those of its window among all tokens, and the mixtures
// behind them. No scores are kept.
import Torch
import TorchNN

extension CausalLongShortAttention {
    /// Whether the fused form serves.
    func isRanged(_ q: Tensor) -> Bool { !usesReference && !isComposed && q.device == .cpu }

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
            q, keys, values, intervals: ranges(past: past, queries: x.size(1), tokens), keyMask: seen.isReal, scale: 1,
            distances: distances.map { $0.ofRanges(seen.keys, tokens: tokens, window: window) })
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

extension LongShortDistances {
    /// What is added to q·k. Tokens of the window and mixtures are at the same distances from the ends of their two ranges as in
    /// the equations; the biases' products with keys and with R need no queries.
    ///
    /// - Parameter keys: of the tokens, and behind them of the mixtures, `[batch, tokens + mixtures, modelDim]`.
    func ofRanges(_ keys: Tensor, tokens: Int, window: Int) -> IntervalDistances {
        let (heads, mixtures) = (contentBias.value.size(0), keys.size(1) - tokens)
        let (near, far) = (projected(0..<min(window, tokens), self.window), projected(0..<mixtures, long))
        let ofWindow = matmul(near, distanceBias.value.unsqueezed(2)).squeezed(2)  // u_r·R
        // u_w of each head in a column of its own, zero where other heads' channels are: one product for all heads.
        let own = Tensor.eye(heads, dtype: keys.dtype).unsqueezed(1)
        let byHead = (contentBias.value.unsqueezed(2) * own).flattened(0, 1)
        let ofTokens = matmul(keys.sliced(1, 0..<tokens), byHead).transposed(1, 2)  // u_w·k
        return IntervalDistances(
            table: concatenate([near, far], dim: 1), bias: ofWindow.padded(1, after: mixtures),
            keyBias: ofTokens.padded(2, after: mixtures), counts: [near.size(1), mixtures])
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
