import SequenceMixers

extension MixerCase {
    /// Bidirectional only: the transform takes in the whole sequence.
    static func fourierTransformer(_ causal: Bool) -> [MixerCase] {
        func make(
            _ note: String, _ change: @escaping @Sendable (inout FourierTransformerOptions) -> Void
        ) -> MixerCase {
            MixerCase(
                mixer: "fourier-transformer", note: note, isCausal: false,
                options: {
                    var options = FourierTransformerOptions()
                    change(&options)
                    return options
                }, streams: false)
        }
        if causal { return [] }
        return [
            make("half") { _ in },
            make("ratio 0.3 beside a class token") {
                $0.ratio = 0.3
                $0.keepsFirst = true
            },
            make("8 coefficients, amplitude kept") {
                $0.kept = 8
                $0.keepsAmplitude = true
            },
        ]
    }
}
