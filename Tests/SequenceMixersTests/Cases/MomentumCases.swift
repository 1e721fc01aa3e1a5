import SequenceMixers

extension MixerCase {
    static func momentum(_ causal: Bool) -> [MixerCase] {
        func make(_ note: String, streams: Bool, ignoresHoles: Bool = true, _ options: MomentumOptions) -> MixerCase {
            MixerCase(
                mixer: "momentum", note: note, isCausal: causal, options: { options }, streams: streams,
                paddings: ignoresHoles ? Set(Padding.allCases) : [.left, .right])
        }
        let final = make("final", streams: false, MomentumOptions(momentum: 0.8, stepSize: 0.7, weights: .final))
        if !causal {
            var unnormalized = MomentumOptions(momentum: 0.9, stepSize: 0.4, weights: .final)
            unnormalized.normalized = false
            return [final, make("final unnormalized", streams: false, unnormalized)]
        }
        return [
            final,
            make(
                "heavy-ball", streams: true, ignoresHoles: false, MomentumOptions(momentum: 0.9, stepSize: 0.5)),
            make(
                "heavy-ball of momentum 0", streams: true, MomentumOptions(momentum: 0, stepSize: 1)),
            make(
                "heavy-ball of momentum 0.999", streams: true, ignoresHoles: false,
                MomentumOptions(momentum: 0.999, stepSize: 0.01)),
            make("adaptive", streams: true, MomentumOptions(momentum: nil, stepSize: 0.6, weights: .adaptive)),
        ]
    }
}
