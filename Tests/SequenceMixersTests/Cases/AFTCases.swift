import SequenceMixers
import TorchNN

extension MixerCase {
    static func aft(_ causal: Bool) -> [MixerCase] {
        func make(
            _ note: String, _ form: AFTForm, paddings: Set<Padding> = [.right], streams: Bool = true,
            _ change: (inout AFTOptions) -> Void = { _ in }
        ) -> MixerCase {
            var options = AFTOptions(form)
            if form == .full || form == .local { options.maximumLength = 320 }
            change(&options)
            let fixed = options
            return MixerCase(
                mixer: "aft", note: note, isCausal: causal, options: { fixed }, streams: causal && streams,
                paddings: paddings)
        }
        var cases = [
            make("simple", .simple, paddings: Set(Padding.allCases)),
            make("local", .local) {
                $0.window = 5
                $0.biasDim = 3
                $0.hiddenDim = 12
            },
            make("local by a matrix, window 1", .local) {
                $0.window = 1
                $0.factorized = false
            },
            make("full", .full, streams: false) { $0.biasDim = 4 },
            make("full by a matrix, tanh", .full, streams: false) {
                $0.factorized = false
                $0.queryActivation = .tanh
            },
            make("conv", .conv, paddings: [.right, .left]) { $0.kernel = 7 },
        ]
        if causal {
            cases.append(make("conv of an even kernel", .conv, paddings: [.right, .left]) { $0.kernel = 4 })
            return cases
        }
        cases.append(make("conv of one tap", .conv, paddings: [.right, .left]) { $0.kernel = 1 })
        cases.append(
            make("conv on a grid", .conv) {
                $0.kernel = 3
                $0.gridWidth = 8
            })
        return cases
    }
}
