import SequenceMixers
import TorchNN

extension MixerCase {
    static func sparseMLP(_ causal: Bool) -> [MixerCase] {
        guard !causal else { return [] }
        func make(_ note: String, length: Int, _ change: (inout SparseMLPOptions) -> Void = { _ in }) -> MixerCase {
            var options = SparseMLPOptions()
            options.length = length
            change(&options)
            let fixed = options
            return MixerCase(
                mixer: "sparse-mlp", note: note, isCausal: false, options: { fixed }, streams: false,
                fixedLength: length, isBatchIndependent: options.capacityFactor == nil, isSmooth: false)
        }
        return [
            make("", length: 9),
            make("one token", length: 1) { $0.tokenChoices = 2 },
            make("without re-represent layers", length: 37) {
                $0.reRepresent = false
                $0.tokenChoices = 3
                $0.channelChoices = 1
                $0.tokenHiddenDim = 5
                $0.channelHiddenDim = 7
                $0.activation = .silu
                $0.noise = false
            },
            make("tight capacity", length: 12) {
                $0.capacityFactor = 0.6
                $0.representedLength = 5
                $0.representedDim = 3
                $0.tokenExperts = 3
                $0.channelExperts = 5
                $0.balance = 0
            },
            make("capacity with priority", length: 20) {
                $0.capacityFactor = 1
                $0.batchPriority = true
                $0.tokenChoices = 2
                $0.epsilon = 1e-5
            },
            make("one expert", length: 6) {
                $0.tokenExperts = 1
                $0.channelExperts = 1
                $0.channelChoices = 1
            },
        ]
    }
}
