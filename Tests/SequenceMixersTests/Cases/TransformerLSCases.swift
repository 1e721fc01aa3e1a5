import SequenceMixers

extension MixerCase {
    static func transformerLS(_ causal: Bool) -> [MixerCase] {
        // Windows and segments stand at fixed positions, so padding on the left moves them. With very few channels the norms
        // leave little but signs.
        func make(
            _ note: String, fixedLength: Int? = nil, _ change: @escaping @Sendable (inout TransformerLSOptions) -> Void
        )
            -> MixerCase
        {
            MixerCase(
                mixer: "transformer-ls", note: note, isCausal: causal,
                options: {
                    var options = TransformerLSOptions()
                    change(&options)
                    return options
                }, streams: causal, paddings: [.right], fixedLength: fixedLength, headDimMultiple: 4)
        }
        if causal {
            return [
                make("") { $0.chunk = 7 },
                make("small segments") { ($0.window, $0.chunk, $0.rank) = (6, 4, 2) },
                make("without positions") { ($0.window, $0.chunk, $0.positions) = (5, 3, LongShortPositionKind.none) },
            ]
        }
        return [
            make("") { _ in },
            make("odd window") { ($0.window, $0.rank) = (5, 3) },
            make("cls") { ($0.window, $0.rank, $0.cls) = (4, 3, true) },
            make("grid", fixedLength: 6) { ($0.window, $0.rank, $0.side, $0.globalTokens) = (1, 2, 2, 2) },
        ]
    }
}
