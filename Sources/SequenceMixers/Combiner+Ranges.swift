// Combiner attention with fixed spans, where every query sees a few ranges of keys: its own span among all tokens, and the
// summaries of other spans behind them. No scores are kept.
import Torch

extension CombinerGrid {
    /// Whether the fused form serves: the other patterns look at columns, and an observer wants to see scores.
    func isRanged(_ tokens: CombinerTokens) -> Bool {
        parts == [.ownRow, .spans] && observer == nil && tokens.q.device == .cpu
    }

    /// What ``parallel(_:)`` is, in one softmax over ranges.
    func ranged(_ tokens: CombinerTokens) -> Tensor {
        let (count, span) = (tokens.count, min(columns, tokens.count))
        let spans = (count + span - 1) / span
        let real = tokens.real.map { $0.squeezed(1).expanded(to: [tokens.q.size(0), -1]) }
        let ranges = intervals(count, span, spans)
        // A single span has no others to look at.
        if spans == 1 && !includesOwn {
            return intervalAttention(
                tokens.q, tokens.k, tokens.v, intervals: ranges, keyMask: real, scale: tokens.scale)
        }
        let isPlain = pooling.summary.activation == .identity
        let (keys, values) = spanSummaries(
            queries: pooling.activated(tokens.q, pooling.query),
            pooledKeys: isPlain ? nil : pooling.activated(tokens.k, pooling.key), tokens.k, tokens.v, paddingMask: real,
            span: span, pooling: pooling.summary.pooling, scale: tokens.scale)
        let present = real.map { real in
            real.padded(1, after: spans * span - count).reshaped(real.size(0), spans, span).any(2)
        }
        return intervalAttention(
            tokens.q, keys, values, intervals: ranges,
            keyMask: real.flatMap { real in present.map { concatenate([real, $0], dim: 1) } }, scale: tokens.scale)
    }

    private func intervals(_ count: Int, _ span: Int, _ spans: Int) -> Tensor {
        ranges([span], queries: count) { i in
            let own = i.floorDivided(by: span)
            let (start, end) = (own * span, (own + 1) * span)
            let (first, last) = (Tensor([count]), Tensor([count + spans]))
            if isCausal { return [(start, i + 1), (first, own + count)] }
            let tokens = (start: start, end: end.masked(where: end .> count, with: Double(count)))
            if includesOwn { return [tokens, (first, last)] }
            return [tokens, (first, own + count), (own + (count + 1), last)]
        }
    }
}

extension CombinerSummary {
    var pooling: SpanPooling {
        switch pool {
        case .max: .max
        case .mean: .mean
        case .sum: .sum
        }
    }
}
