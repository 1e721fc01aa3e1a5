import Inference
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct TokenGeneratorTests {
    private func model(_ mixer: String, position: PositionKind = .sinusoidal) throws -> LanguageModel {
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(mixer))
        (configuration.layers, configuration.modelDim, configuration.heads) = (2, 8, 2)
        configuration.position = position
        let model = try LanguageModel(configuration, vocabulary: 13, maximumLength: 64, using: RandomGenerator(seed: 3))
        model.to(.float64)
        model.evaluate()
        return model
    }

    private func greedy() throws -> TokenSampler {
        try TokenSampler(SamplingOptions(temperature: 0), using: RandomGenerator(seed: 1))
    }

    @Test(arguments: MixerCatalogue.entries.filter { $0.causal && $0.streaming != .none }.map(\.name))
    func greedyIsTheParallelModelsChoice(_ mixer: String) throws {
        let model = try model(mixer)
        // What streams with some of its options only, and not with those it has when none are given, says so.
        guard (try? model.initialState()) != nil else {
            #expect(throws: ConfigurationError.self) { try model.initialState() }
            return
        }
        for prompt in [[5], [1, 2, 3, 4, 5, 6, 7]] {
            var tokens = try TokenGenerator(model, prompt: prompt, sampler: greedy())
            #expect(tokens.position == prompt.count)
            var ids = prompt
            for _ in 0..<20 {
                let logits = withNoGrad { model(Tensor(ids, shape: [1, ids.count])) }
                ids.append(logits.selected(1, -1).argmax(-1).integerItem())
                #expect(tokens.next() == ids.last)
            }
            // The last token has not been taken up: nobody asked for what follows it.
            #expect(tokens.position == ids.count - 1)
        }
    }

    @Test func longPromptsGoInPieces() throws {
        let model = try model("linear")
        let count = TokenGenerator.prefillPiece + 5
        let prompt: [Int64] = Tensor.random(in: 0..<13, [count], using: RandomGenerator(seed: 2)).scalars()
        var tokens = try TokenGenerator(model, prompt: prompt.map(Int.init), sampler: greedy())
        let expected = withNoGrad { model(Tensor(prompt, shape: [1, count])) }.selected(1, -1).argmax(-1).integerItem()
        #expect(tokens.next() == expected)
    }

    @Test func copiesGoOnByThemselves() throws {
        var tokens = try TokenGenerator(model("softmax"), prompt: [1, 2], sampler: greedy())
        _ = tokens.next()
        var copy = tokens
        let ahead = (0..<10).map { _ in copy.next() }
        let after = (0..<10).map { _ in tokens.next() }
        #expect(ahead == after)
    }

    @Test func learnedPositionsEndWithAMessage() async {
        let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
            var configuration = ModelConfiguration(mixer: try MixerConfiguration("linear"))
            (configuration.layers, configuration.modelDim, configuration.heads) = (1, 8, 2)
            let model = try LanguageModel(
                configuration, vocabulary: 13, maximumLength: 4, using: RandomGenerator(seed: 3))
            let sampler = try TokenSampler(SamplingOptions(temperature: 0), using: RandomGenerator(seed: 1))
            _ = try TokenGenerator(model, prompt: [1, 2, 3, 4, 5], sampler: sampler)
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("maximumLength 4"), "\(text)")
    }

    @Test func modelsThatCannotStreamAreRefused() throws {
        let options = MomentumOptions(momentum: 0.9, stepSize: 0.5, weights: .final)
        var configuration = ModelConfiguration(mixer: try MixerConfiguration("momentum", options))
        (configuration.layers, configuration.modelDim, configuration.heads) = (1, 8, 2)
        let model = try LanguageModel(configuration, vocabulary: 13, maximumLength: 4, using: RandomGenerator(seed: 3))
        let sampler = try greedy()
        #expect(throws: ConfigurationError.self) { _ = try TokenGenerator(model, prompt: [1], sampler: sampler) }
    }
}
