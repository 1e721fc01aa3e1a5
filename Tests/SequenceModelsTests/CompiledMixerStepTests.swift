import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

@testable import SequenceModels

/// Step programs of mixers that look back at windows and chunks, or are whole blocks.
@Suite struct CompiledMixerStepTests {
    struct Case: Sendable, CustomTestStringConvertible {
        /// As in a recipe.
        var mixer: String
        var feedForwardDim: Int?
        var norm = NormPlacement.pre
        var testDescription: String { "\(mixer) \(feedForwardDim ?? -1) \(norm)" }
    }

    static let layers: [String] = [
        #""name": "aft""#,
        #""name": "aft", "form": "conv", "kernel": 4"#,
        #""name": "aft", "form": "conv", "kernel": 1, "queryActivation": "silu""#,
        #""name": "aft", "form": "local", "window": 7"#,
        #""name": "aft", "form": "local", "window": 100, "biasDim": 5"#,
        #""name": "aft", "form": "local", "window": 1"#,
        #""name": "aft", "form": "local", "window": 6, "factorized": false"#,
    ]

    static let wholeBlocks: [String] = [
        #""name": "mega", "chunk": 8"#,
        #""name": "mega", "chunk": 8, "prenorm": false, "feedForwardDim": 20"#,
        #""name": "mega", "chunk": 5, "attention": "laplace", "relativeBias": "rotary", "norm": "scale-norm""#,
        #""name": "mega", "chunk": 0, "attention": "relu2", "norm": "rms-norm", "feedForwardDim": 24"#,
        #""name": "mega", "chunk": 0, "relativeBias": "rotary""#,
        #""name": "mega", "chunk": 0, "relativeBias": "rotary", "attention": "laplace""#,
        #""name": "mega", "chunk": 1, "truncation": 6, "emaDim": 3"#,
        #""name": "mega", "chunk": 64, "truncation": 1"#,
        #""name": "r-transformer""#,
        #""name": "r-transformer", "rnn": "lstm", "window": 3, "localLayers": 2"#,
        #""name": "r-transformer", "rnn": "plain", "window": 1, "attention": {"name": "linear"}"#,
        #""name": "r-transformer", "feedForwardDim": 0, "attention": {"name": "mega", "chunk": 6}"#,
        #""name": "gmlp""#,
        #""name": "gmlp", "spatial": "dense", "hiddenDim": 60, "spatialHeads": 3"#,
        #""name": "gmlp", "spatialHeads": 2, "attentionDim": 10"#,
    ]

    static let cases: [Case] =
        layers.map { Case(mixer: $0) } + wholeBlocks.map { Case(mixer: $0, feedForwardDim: 0) } + [
            Case(mixer: wholeBlocks[0], feedForwardDim: 30),
            Case(mixer: wholeBlocks[0], feedForwardDim: 30, norm: .post),
            Case(mixer: layers[0], norm: .post),
        ]

    private func model(_ setting: Case, modelDim: Int = 36) throws -> LanguageModel {
        let mixer = try JSONDecoder().decode(
            MixerConfiguration.self, from: Data("{\(setting.mixer)}".utf8))
        var configuration = ModelConfiguration(mixer: mixer)
        configuration.layers = 2
        configuration.modelDim = modelDim
        configuration.heads = 3
        configuration.feedForwardDim = setting.feedForwardDim
        configuration.norm = setting.norm
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 70, using: RandomGenerator(seed: 5))
        model.evaluate()
        // Biases that begin at 0 or 1 should count, and small weights, too.
        let generator = RandomGenerator(seed: 9)
        for (name, parameter) in model.namedParameters() where parameter.value.rank > 0 {
            let spread = name.hasSuffix("gating.weight") ? 0.3 : 0.1
            parameter.value = withNoGrad {
                parameter.value + Tensor.randomNormal(parameter.value.shape, using: generator) * spread
            }
        }
        return model
    }

    private static func tokens(_ count: Int, from first: Int = 0) -> [Int] {
        (first..<first + count).map { $0 * $0 % 11 }
    }

    @Test(arguments: cases, [0, 13]) func isTheModelsStep(_ setting: Case, after prompt: Int) throws {
        let model = try model(setting)
        try withNoGrad {
            var state = try model.initialState()
            if prompt > 0 { _ = model.prefill(Tensor(Self.tokens(prompt), shape: [1, prompt]), state: &state) }
            var expected = state
            let tokens = Self.tokens(45, from: prompt)
            let logits = tokens.map { model.step(Tensor([$0]), state: &expected) }
            for isa in KernelInstructions.available {
                var compiled = try #require(model.compiledStep(state))
                try KernelInstructions.with(isa) {
                    let deviations = zip(tokens, logits).map { token, logits in
                        Tensor(compiled(token), shape: logits.shape).deviation(from: logits)
                    }
                    #expect(deviations.max() ?? 1 < 2e-5, "\(isa) \(deviations)")
                }
            }
        }
    }

    @Test(arguments: cases) func copiesGoOnAlone(_ setting: Case) throws {
        let model = try model(setting)
        try withNoGrad {
            var first = try #require(model.compiledStep(try model.initialState()))
            for token in Self.tokens(9) { _ = first(token) }
            var second = first
            let forked = Self.tokens(12).map { second($0) }
            for token in [5, 3, 8] { _ = second(token) }
            #expect(Self.tokens(12).map { first($0) } == forked)
        }
    }

    @Test(arguments: cases) func givesTheSameBitsOnAnyThreads(_ setting: Case) throws {
        // Wide enough that layers are cut into pieces.
        let runs = resultsOnThreads { () -> [[Float]] in
            guard let model = try? model(setting, modelDim: 144) else { return [] }
            var step = (try? model.initialState()).flatMap(model.compiledStep)
            return Self.tokens(30).map { step?($0) ?? [] }
        }
        #expect(runs[0].count == 30 && runs[0].allSatisfy { $0.count == 11 })
        #expect(runs.count == 3 && runs[1] == runs[0] && runs[2] == runs[0])
    }

    @Test(arguments: [#""name": "aft", "form": "local""#, #""name": "gmlp""#, #""name": "mega", "chunk": 0"#])
    func aSequenceThatIsTooLongIsAnError(_ mixer: String) throws {
        let model = try model(Case(mixer: mixer, feedForwardDim: 0))
        try withNoGrad {
            var step = try #require(model.compiledStep(try model.initialState()))
            try withTorchErrors { for token in Self.tokens(70) { _ = step(token) } }
            let full = step
            #expect(throws: TorchError.self) {
                var last = full
                try withTorchErrors { _ = last(1) }
            }
        }
    }
}
