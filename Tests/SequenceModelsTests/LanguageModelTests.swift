import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct LanguageModelTests {
    /// Every causal mixer that streams.
    enum Mixer: CaseIterable {
        case softmax, linear, heavyBall, adaptive

        func configuration() throws -> MixerConfiguration {
            switch self {
            case .softmax: try MixerConfiguration("softmax")
            case .linear: try MixerConfiguration("linear")
            case .heavyBall: try MixerConfiguration("momentum", MomentumOptions(momentum: 0.9, stepSize: 0.5))
            case .adaptive:
                try MixerConfiguration("momentum", MomentumOptions(momentum: nil, stepSize: 0.6, weights: .adaptive))
            }
        }
    }

    @Test(arguments: Mixer.allCases, PositionKind.allCases)
    func streamingIsTheParallelForm(_ mixer: Mixer, _ position: PositionKind) throws {
        if position == .rotary && mixer != .softmax { return }
        for residual in residualKinds {
            for norm in NormPlacement.allCases {
                var configuration = smallConfiguration(try mixer.configuration())
                (configuration.position, configuration.residual, configuration.norm) = (position, residual, norm)
                configuration.finalNorm = norm == .pre
                let model = try LanguageModel(
                    configuration, vocabulary: 11, maximumLength: 20, using: RandomGenerator(seed: 3))
                model.to(.float64)
                model.evaluate()
                let ids = randomIds([2, 20], seed: 4)
                try withNoGrad {
                    let expected = model(ids)
                    #expect(expected.shape == [2, 20, 11])
                    var state = try model.initialState(batch: 2)
                    let first = model.prefill(ids.sliced(1, 0..<5), state: &state)
                    #expect(first.deviation(from: expected.selected(1, 4)) < 1e-9, "\(residual.kind), \(norm)")
                    let second = model.prefill(ids.sliced(1, 5..<12), state: &state)
                    #expect(second.deviation(from: expected.selected(1, 11)) < 1e-9, "\(residual.kind), \(norm)")
                    var copy = state
                    for index in 12..<20 {
                        let logits = model.step(ids.selected(1, index), state: &state)
                        #expect(logits.deviation(from: expected.selected(1, index)) < 1e-9, "token \(index)")
                    }
                    #expect(state.position == 20 && copy.position == 12)
                    let again = model.step(ids.selected(1, 12), state: &copy)
                    #expect(again.deviation(from: expected.selected(1, 12)) < 1e-9, "a copy of the state")
                }
            }
        }
    }

    @Test(arguments: PositionKind.allCases) func positionsMatter(_ position: PositionKind) throws {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        configuration.position = position
        configuration.layers = 1  // a second causal layer sees the order without being told
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 9, using: RandomGenerator(seed: 3))
        model.to(.float64)
        // All tokens alike: only positions can tell the last from the first.
        let logits = model(Tensor([4, 4, 4, 4], shape: [1, 4]))
        let differs = logits.selected(1, 3).deviation(from: logits.selected(1, 0)) > 1e-9
        // Rotary positions turn keys of equal values, which changes no average of them.
        #expect(differs == ![.none, .rotary].contains(position))
        let mixed = model(Tensor([1, 2, 3, 3], shape: [1, 4]))
        let swapped = model(Tensor([2, 1, 3, 3], shape: [1, 4]))
        let seesOrder = mixed.selected(1, 3).deviation(from: swapped.selected(1, 3)) > 1e-9
        #expect(seesOrder == (position != .none))
    }

    @Test func parametersHaveTheirNames() throws {
        var configuration = smallConfiguration(try MixerConfiguration("momentum"))
        configuration.layers = 1
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 9, using: RandomGenerator(seed: 3))
        let shapes = Dictionary(
            uniqueKeysWithValues: model.namedParameters().map { ($0.name, $0.parameter.value.shape) })
        var expected = [
            "embedding.token.weight": [11, 8], "embedding.learned.weight": [9, 8], "head.weight": [11, 8],
            "head.bias": [11], "encoder.norm.weight": [8], "encoder.norm.bias": [8],
            "encoder.blocks.0.feedForward.up.weight": [12, 8], "encoder.blocks.0.feedForward.up.bias": [12],
            "encoder.blocks.0.feedForward.down.weight": [8, 12], "encoder.blocks.0.feedForward.down.bias": [8],
        ]
        for part in ["query", "key", "value", "output"] {
            expected["encoder.blocks.0.mixer.\(part).weight"] = [8, 8]
            expected["encoder.blocks.0.mixer.\(part).bias"] = [8]
        }
        for norm in ["mixerNorm", "feedForwardNorm"] {
            expected["encoder.blocks.0.\(norm).weight"] = [8]
            expected["encoder.blocks.0.\(norm).bias"] = [8]
        }
        #expect(shapes == expected)
    }

    @Test func randomFeaturesAreSavedWithTheModel() throws {
        var options = LinearOptions()
        options.featureMap = .favor
        let configuration = smallConfiguration(try MixerConfiguration("linear", options))
        let models = try [1, 2].map {
            try LanguageModel(configuration, vocabulary: 11, maximumLength: 9, using: RandomGenerator(seed: $0))
        }
        let saved = models[0].stateDictionary()
        #expect(saved["encoder.blocks.0.mixer.core.featureMap.omega"]?.shape == [4, 4])
        let ids = randomIds([1, 9], seed: 5)
        let before = models[1](ids).isIdentical(to: models[0](ids))
        try models[1].load(saved)
        let after = models[1](ids).isIdentical(to: models[0](ids))
        #expect(!before && after)
    }

    @Test func whatCannotStreamSaysSo() throws {
        let options = MomentumOptions(momentum: 0.9, stepSize: 0.5, weights: .final)
        let configuration = smallConfiguration(try MixerConfiguration("momentum", options))
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 9, using: RandomGenerator(seed: 3))
        let error = #expect(throws: ConfigurationError.self) { _ = try model.initialState() }
        let text = "the mixer of block 0, Attention<MomentumCore>, cannot go token by token as it was configured"
        #expect(error?.description == text)
    }

    @Test func statesListTheirTensors() throws {
        let configuration = smallConfiguration(try MixerConfiguration("momentum"))
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 9, using: RandomGenerator(seed: 3))
        var state = try model.initialState()
        _ = model.prefill(randomIds([1, 4], seed: 1), state: &state)
        let tensors = state.tensors
        #expect(tensors["position"]?.integerItem() == 4)
        #expect(tensors["2.s"]?.shape == [1, 2, 4, 4] && tensors["2.p"]?.shape == [1, 2, 4, 4])
        #expect(tensors.count == 1 + 3 * 4)
    }
}
