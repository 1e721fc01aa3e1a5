import SequenceMixers

extension MixerCase {
    static func softmax(_ causal: Bool) -> [MixerCase] {
        [
            MixerCase(mixer: "softmax", note: "", isCausal: causal, options: { SoftmaxOptions() }, streams: causal),
            MixerCase(
                mixer: "softmax", note: "scale 0.3", isCausal: causal, options: { SoftmaxOptions(scale: 0.3) },
                streams: causal),
        ]
    }
}
