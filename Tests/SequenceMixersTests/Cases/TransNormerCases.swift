import SequenceMixers

extension MixerCase {
    static func transNormer(_ causal: Bool) -> [MixerCase] {
        func make(
            _ note: String, _ attention: TransNormerKind, _ variant: TransNormerVariant = .t2, block: Int? = nil,
            position: TransNormerPositionKind = .lrpe, normActivation: TransNormerActivation? = nil,
            paddings: Set<Padding>
        ) -> MixerCase {
            MixerCase(
                mixer: "transnormer", note: note, isCausal: causal,
                options: {
                    var options = TransNormerOptions(attention, variant: variant, block: block, position: position)
                    options.normActivation = normActivation
                    return options
                }, streams: causal, paddings: paddings,
                // A single channel is normalized to a constant, whose gradient is a mere trace of ε.
                headDimMultiple: 2)
        }
        return [
            make("stack", .stack, paddings: [.left, .right]),
            make("norm t1", .norm, .t1, paddings: [.left, .right]),
            make("norm silu, rotation", .norm, position: .rotation, normActivation: .silu, paddings: [.left, .right]),
            make(
                "norm relu, no positions", .norm, position: .absent, normActivation: .relu,
                paddings: Set(Padding.allCases)),
            make("norm sigmoid", .norm, position: .rotation, normActivation: .sigmoid, paddings: [.left, .right]),
            make("diag t1, block 7", .diag, .t1, block: 7, paddings: [.right]),
            make("diag t2", .diag, .t2, paddings: [.right]),
            make("diag t2, block 5, rotation", .diag, .t2, block: 5, position: .rotation, paddings: [.right]),
            make("diag t1, block 16, no positions", .diag, .t1, block: 16, position: .absent, paddings: [.right]),
        ]
    }
}
