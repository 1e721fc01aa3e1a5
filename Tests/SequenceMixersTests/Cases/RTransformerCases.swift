import SequenceMixers

extension MixerCase {
    /// Causal only: the local RNN reads the past.
    static func rTransformer(_ causal: Bool) -> [MixerCase] {
        guard causal else { return [] }
        func make(
            _ note: String, streams: Bool = true, _ change: @escaping @Sendable (inout RTransformerOptions) -> Void
        ) -> MixerCase {
            MixerCase(
                mixer: "r-transformer", note: note, isCausal: true,
                options: {
                    var options = RTransformerOptions()
                    change(&options)
                    return options
                }, streams: streams)
        }
        var linear = make("plain before linear attention") {
            $0.rnn = .plain
            $0.window = 4
            $0.attention = try? MixerConfiguration("linear")
        }
        linear.hasConstantState = true
        return [
            make("two gru") {
                $0.window = 3
                $0.localLayers = 2
            },
            make("lstm of window 9") {
                $0.rnn = .lstm
                $0.window = 9
            },
            make("gru of window 1, no feed-forward") {
                $0.window = 1
                $0.feedForwardDim = 0
            },
            linear,
            make("plain before momentum attention that cannot stream", streams: false) {
                $0.rnn = .plain
                $0.window = 2
                $0.attention = try? MixerConfiguration(
                    "momentum", MomentumOptions(momentum: 0.8, stepSize: 0.7, weights: .final))
            },
        ]
    }
}
