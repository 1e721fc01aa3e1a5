import SequenceMixers

extension MixerCase {
    static func reformer(_ causal: Bool) -> [MixerCase] {
        func make(
            _ note: String, _ kind: ReformerOptions.Kind, streams: Bool = false, paddings: Set<Padding>,
            _ change: @escaping @Sendable (inout ReformerOptions) -> Void
        ) -> MixerCase {
            MixerCase(
                mixer: "reformer", note: note, isCausal: causal,
                options: {
                    var options = ReformerOptions()
                    options.attention = kind
                    change(&options)
                    return options
                }, streams: streams, paddings: paddings, seesOnlyThePast: kind == .local)
        }
        let all = Set(Padding.allCases)
        var cases = [
            make("lsh", .lsh, paddings: all) {
                ($0.chunk, $0.buckets) = (8, BucketFactors(4))
            },
            make("lsh of 4 rounds", .lsh, paddings: all) {
                ($0.chunk, $0.buckets, $0.rounds, $0.logitScale) = (5, BucketFactors(4, 2, 2), 4, .sqrt)
                ($0.chunksBefore, $0.chunksAfter) = (1, 1)
            },
            make("lsh within buckets", .lsh, paddings: all) {
                ($0.chunk, $0.buckets, $0.rounds) = (6, BucketFactors(6), 3)
                ($0.withinBucket, $0.uniquePairs) = (true, true)
            },
            make("lsh of unique pairs", .lsh, paddings: all) {
                ($0.chunk, $0.buckets, $0.rounds, $0.evaluationRounds) = (4, BucketFactors(4), 1, 3)
                ($0.chunksBefore, $0.chunksAfter, $0.uniquePairs) = (2, 0, true)
            },
            make("lsh of own chunks", .lsh, paddings: all) {
                ($0.chunk, $0.buckets, $0.rounds, $0.chunksBefore) = (1, BucketFactors(8), 3, 0)
                $0.redraw = false
            },
            // Rounds of the padded length: how much padding there is shows.
            make("lsh of padded rounds", .lsh, paddings: []) {
                ($0.chunk, $0.buckets, $0.roundLength) = (8, BucketFactors(4), .padded)
            },
            // Chunks of positions: padding before or between tokens moves them.
            make("local", .local, streams: causal, paddings: [.right]) { $0.chunk = 7 },
            make("local of three chunks", .local, streams: causal, paddings: [.right]) {
                ($0.chunk, $0.localChunk, $0.chunksBefore) = (64, 5, 2)
                $0.layers = [.local, .lsh]
                $0.attention = nil
            },
        ]
        if !causal {
            cases.append(
                make("local that wraps", .local, paddings: [.right]) {
                    ($0.chunk, $0.wrap, $0.chunksAfter) = (5, true, 1)
                })
            cases.append(
                make("local that wraps at the padded end", .local, paddings: []) {
                    ($0.chunk, $0.wrap, $0.roundLength) = (5, true, .padded)
                })
        }
        return cases
    }
}
