import SequenceMixers

extension MixerCase {
    static func revisitingLinformer(_ causal: Bool) -> [MixerCase] {
        RevisitingLinformerForm.allCases.filter { !causal || $0 == .separable }.map { form in
            MixerCase(
                mixer: "revisiting-linformer", note: form.rawValue, isCausal: causal,
                options: { RevisitingLinformerOptions(form) }, streams: causal)
        }
    }
}
