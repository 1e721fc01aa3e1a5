import SequenceMixers

extension MixerCase {
    static func mega(_ causal: Bool) -> [MixerCase] {
        // The average decays over holes; chunks, and the len of causal laplace and relu2, count from the start.
        func make(_ note: String, paddings: Set<Padding>, _ change: (inout MegaOptions) -> Void) -> MixerCase {
            var options = MegaOptions()
            change(&options)
            let fixed = options
            return MixerCase(
                mixer: "mega", note: note, isCausal: causal, options: { fixed }, streams: causal, paddings: paddings,
                maximumLength: options.chunk == 0 && options.relativeBias == .simple ? 320 : nil)
        }
        let cases = [
            make("", paddings: [.right]) { _ in },
            make("whole softmax simple", paddings: [.right, .left]) {
                $0.chunk = 0
                $0.emaDim = 3
            },
            make("chunks of laplace, rotary, post-norm", paddings: [.right]) {
                $0.attention = .laplace
                $0.chunk = 7
                $0.relativeBias = .rotary
                $0.norm = .rmsNorm
                $0.prenorm = false
                $0.feedForwardDim = 5
            },
            make("chunks of relu2, truncated", paddings: [.right]) {
                $0.attention = .relu2
                $0.chunk = 16
                $0.truncation = 9
                $0.norm = .scaleNorm
                $0.queryDim = 3
                $0.valueDim = 5
                $0.emaDim = 1
            },
            make("whole relu2 rotary", paddings: causal ? [.right] : [.right, .left]) {
                $0.attention = .relu2
                $0.chunk = 0
                $0.relativeBias = .rotary
                $0.norm = .scaleNorm
                $0.prenorm = false
                $0.emaDim = 2
            },
        ]
        if causal { return cases }
        return cases + [
            make("whole laplace, truncated, batch norm", paddings: [.right, .left]) {
                $0.attention = .laplace
                $0.chunk = 0
                $0.truncation = 1
                $0.norm = .batchNorm
                $0.feedForwardDim = 4
                $0.emaDim = 2
            }
        ]
    }
}
