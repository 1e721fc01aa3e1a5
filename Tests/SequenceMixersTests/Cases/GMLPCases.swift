import SequenceMixers
import TorchNN

extension MixerCase {
    static func gmlp(_ causal: Bool) -> [MixerCase] {
        func make(_ note: String, _ change: (inout GMLPOptions) -> Void = { _ in }) -> MixerCase {
            var options = GMLPOptions()
            options.maximumLength = 320
            change(&options)
            let fixed = options
            return MixerCase(
                mixer: "gmlp", note: note, isCausal: causal, options: { fixed }, streams: causal, paddings: [.right])
        }
        return [
            make(""),
            make("dense, two heads, attention") {
                $0.spatial = .dense
                $0.spatialHeads = 2
                $0.hiddenDim = 12
                $0.attentionDim = 3
            },
            make("three heads, silu") {
                $0.spatialHeads = 3
                $0.hiddenDim = 18
                $0.activation = .silu
                $0.epsilon = 1e-6
            },
        ]
    }
}
