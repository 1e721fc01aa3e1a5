import SequenceMixers

extension MixerCase {
    static func linear(_ causal: Bool) -> [MixerCase] {
        var cases = FeatureMapKind.allCases.map { kind in
            MixerCase(
                mixer: "linear", note: kind.rawValue, isCausal: causal,
                options: {
                    var options = LinearOptions()
                    options.featureMap = kind
                    return options
                }, streams: causal, inputScale: [.rff, .smoothedRff].contains(kind) ? 0.2 : 1,
                isBounded: kind != .exponential)
        }
        cases.append(
            MixerCase(
                mixer: "linear", note: "favor redrawn", isCausal: causal,
                options: {
                    var options = LinearOptions()
                    options.featureMap = .favor
                    options.redrawEvery = 2
                    return options
                }, streams: causal))
        if !causal {
            cases.append(
                MixerCase(
                    mixer: "linear", note: "favor stabilized", isCausal: false,
                    options: {
                        var options = LinearOptions()
                        options.featureMap = .favor
                        options.stabilize = true
                        return options
                    }, streams: false))
        }
        return cases
    }
}
