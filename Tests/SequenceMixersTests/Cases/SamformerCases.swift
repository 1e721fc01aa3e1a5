import SequenceMixers

extension MixerCase {
    static func samformer(_ causal: Bool) -> [MixerCase] {
        guard !causal else { return [] }
        return [
            ("", SamformerOptions()), ("pytorch-demo", SamformerOptions(form: .pytorchDemo, attentionDim: 3)),
            ("linear", SamformerOptions(form: .linear)),
        ].map { note, options in
            MixerCase(mixer: "samformer", note: note, isCausal: false, options: { options }, streams: false)
        }
    }
}
