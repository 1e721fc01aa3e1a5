import SequenceMixers

extension MixerCase {
    static func ngram(_ causal: Bool) -> [MixerCase] {
        guard causal else { return [] }
        return [NGramOptions(), NGramOptions(ngram: 2), NGramOptions(ngram: 40)].map { options in
            MixerCase(
                mixer: "ngram", note: "\(options.ngram)", isCausal: true, options: { options }, streams: true,
                paddings: [.right, .left])
        }
    }
}
