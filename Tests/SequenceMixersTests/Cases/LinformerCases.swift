import SequenceMixers

extension MixerCase {
    /// Positions are columns of a matrix, or places in a window, so padding belongs after the real tokens.
    static func linformer(_ causal: Bool) -> [MixerCase] {
        if causal { return [] }
        func make(_ note: String, _ options: LinformerOptions) -> MixerCase {
            MixerCase(
                mixer: "linformer", note: note, isCausal: false, options: { options }, streams: false,
                paddings: [.right])
        }
        func linear(_ sharing: LinformerSharing?, before: Bool?) -> LinformerOptions {
            LinformerOptions(
                .linear, projectedLength: 6, maximumLength: 310, sharing: sharing, projectBeforeLinear: before)
        }
        var list = LinformerOptions(.linear, maximumLength: 310)
        list.projectedLength = .each([5])
        var window = LinformerOptions(.convolution)
        window.window = 4
        return [
            make("linear", LinformerOptions(.linear, maximumLength: 310)),
            make("linear, a list of lengths", list),
            make("linear, none shared", linear(.perHead, before: true)),
            make("linear after, none shared", linear(.perHead, before: false)),
            make("linear after, headwise", linear(.headwise, before: false)),
            make("linear, kv", linear(.keyValue, before: nil)),
            make("linear after, layerwise", linear(.layerwise, before: false)),
            make("mean-pool", LinformerOptions(.meanPool, projectedLength: 60, maximumLength: 310)),
            make(
                "mean-pool before",
                LinformerOptions(.meanPool, projectedLength: 103, maximumLength: 310, projectBeforeLinear: true)),
            make("max-pool", LinformerOptions(.maxPool, projectedLength: 103, maximumLength: 310)),
            make(
                "max-pool before",
                LinformerOptions(.maxPool, projectedLength: 60, maximumLength: 310, projectBeforeLinear: true)),
            make("convolution", window),
        ]
    }
}
