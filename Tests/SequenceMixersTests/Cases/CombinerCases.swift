import SequenceMixers

extension MixerCase {
    static func combiner(_ causal: Bool) -> [MixerCase] {
        func make(
            _ note: String, _ options: CombinerOptions, _ change: @escaping @Sendable (inout CombinerOptions) -> Void
        )
            -> MixerCase
        {
            MixerCase(
                mixer: "combiner", note: note, isCausal: causal,
                options: {
                    var options = options
                    change(&options)
                    return options
                }, streams: causal,
                // Spans and rows count from the first position.
                paddings: [.right])
        }
        var cases = [
            make("", CombinerOptions()) { _ in },
            make("fixed deepset-mean", CombinerOptions(.fixed, summary: .deepsetMean)) { $0.span = 5 },
            make("fixed relu-sum", CombinerOptions(.fixed, summary: .reluSum)) { $0.span = 1 },
            make("axial-vertical identity-mean", CombinerOptions(.axialVertical, summary: .identityMean)) {
                $0.columns = 7
            },
            make("axial-vertical deepset-max", CombinerOptions(.axialVertical, summary: .deepsetMax)) {
                $0.columns = 1
            },
            make("axial-horizontal relu-max", CombinerOptions(.axialHorizontal, summary: .reluMax)) { $0.columns = 8 },
            make("mixture identity-sum", CombinerOptions(.mixture, summary: .identitySum)) { $0.columns = 9 },
            make("mixture average deepset-sum", CombinerOptions(.mixture, summary: .deepsetSum)) {
                $0.columns = 6
                $0.combine = .average
            },
            make("axial-rowmajor proj", CombinerOptions(.axialRowmajor)) { $0.columns = 5 },
            make("axial-rowmajor wsum", CombinerOptions(.axialRowmajor)) {
                $0.columns = 6
                $0.keySummary = .wsum
            },
            make("axial-rowmajor none", CombinerOptions(.axialRowmajor)) {
                $0.columns = 4
                $0.keySummary = CombinerKeySummary.none
            },
        ]
        if causal {
            cases.append(make("logsparse", CombinerOptions(.logsparse)) { _ in })
            cases.append(make("logsparse relu-mean", CombinerOptions(.logsparse, summary: .reluMean)) { _ in })
        } else {
            cases.append(
                make("fixed with its own span", CombinerOptions()) {
                    $0.span = 6
                    $0.includeOwnSpan = true
                })
            cases.append(
                make("axial-rowmajor with its own row", CombinerOptions(.axialRowmajor)) {
                    $0.columns = 5
                    $0.includeOwnRow = true
                })
        }
        return cases
    }
}
