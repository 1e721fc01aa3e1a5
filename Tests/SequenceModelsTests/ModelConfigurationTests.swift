import Foundation
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

/// Every refusal of a model's settings by its text, and their way through JSON.
@Suite struct ModelConfigurationTests {
    private func configuration(_ json: String) throws -> ModelConfiguration {
        let text = "{\"mixer\": {\"name\": \"softmax\"}\(json.isEmpty ? "" : ", ")\(json)}"
        return try JSONDecoder().decode(ModelConfiguration.self, from: Data(text.utf8))
    }

    @Test(arguments: [
        ("\"layers\": 0", "layers must be at least 1, not 0"),
        ("\"layers\": 1000000000000", "layers must be at most 100000, not 1000000000000"),
        ("\"modelDim\": -8", "modelDim must be at least 1, not -8"),
        ("\"modelDim\": 9223372036854775807", "modelDim must be at most 1000000, not 9223372036854775807"),
        ("\"heads\": 0", "heads must be at least 1, not 0"),
        ("\"heads\": 3", "modelDim 256 is not a multiple of heads 3"),
        ("\"feedForwardDim\": -1", "feedForwardDim must be at least 0, not -1"),
        ("\"dropout\": 1", "dropout must be at least 0 and below 1, not 1.0"),
        ("\"dropout\": -0.1", "dropout must be at least 0 and below 1, not -0.1"),
        ("\"normEpsilon\": 0", "normEpsilon must be above 0, not 0.0"),
        (
            "\"position\": \"sinusoidal-concatenated\", \"modelDim\": 6, \"heads\": 2",
            "position sinusoidal-concatenated needs modelDim to be a multiple of 4, not 6"
        ),
        (
            "\"position\": \"sinusoidal\", \"modelDim\": 5, \"heads\": 1",
            "position sinusoidal needs an even modelDim, not 5"
        ),
        (
            "\"position\": \"rotary\", \"modelDim\": 6, \"heads\": 2",
            "rotary positions need an even number of channels a head, not 3"
        ),
        ("\"residual\": {\"momentum\": 0.5}", "residual: momentum 0.5 belongs to kind constant, not plain"),
        (
            "\"residual\": {\"kind\": \"adaptive\", \"momentum\": 0.5}",
            "residual: momentum 0.5 belongs to kind constant, not adaptive"
        ),
        (
            "\"residual\": {\"stepSize\": 0.5}",
            "residual: stepSize 0.5 belongs to kinds constant and adaptive, not plain"
        ),
        (
            "\"residual\": {\"kind\": \"constant\", \"delta\": 0.5}",
            "residual: delta 0.5 belongs to kind adaptive, not constant"
        ),
        (
            "\"residual\": {\"kind\": \"constant\", \"momentum\": 1}",
            "residual: momentum must be at least 0 and below 1, not 1.0"
        ),
        ("\"residual\": {\"kind\": \"constant\", \"stepSize\": 0}", "residual: stepSize must be above 0, not 0.0"),
        ("\"residual\": {\"kind\": \"adaptive\", \"delta\": 1}", "residual: delta must be between 0 and 1, not 1.0"),
    ]) func refusals(_ json: String, _ text: String) throws {
        let configuration = try configuration(json)
        let error = #expect(throws: ConfigurationError.self) {
            try SequenceEncoder(configuration, isCausal: true, using: RandomGenerator(seed: 1))
        }
        #expect(error?.description == text)
    }

    @Test func defaultsCanBeBuilt() throws {
        let configuration = try configuration("\"layers\": 1, \"modelDim\": 8, \"heads\": 2")
        #expect(configuration.resolvedFeedForwardDim == 32)
        _ = try LanguageModel(configuration, vocabulary: 5, maximumLength: 4, using: RandomGenerator(seed: 1))
    }

    @Test func descriptionsSurviveJSON() throws {
        var options = MomentumOptions(momentum: 0.7, stepSize: 0.4)
        options.epsilon = 1e-5
        var configuration = smallConfiguration(try MixerConfiguration("momentum", options))
        configuration.norm = .post
        configuration.activation = .geluTanh
        configuration.dropout = 0.1
        configuration.normEpsilon = 1e-6
        configuration.finalNorm = false
        configuration.position = .sinusoidalConcatenated
        configuration.residual = ResidualConfiguration(.adaptive, stepSize: 0.3, delta: 1e-3)
        configuration.pooling = .first
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        for description in [
            ModelDescription(kind: .languageModel, vocabulary: 11, maximumLength: 9, model: configuration),
            ModelDescription(
                kind: .classifier, vocabulary: 11, classes: 3, maximumLength: 9,
                model: smallConfiguration(
                    try MixerConfiguration("linear"))),
        ] {
            let data = try encoder.encode(description)
            let again = try JSONDecoder().decode(ModelDescription.self, from: data)
            let encodedAgain = try encoder.encode(again)
            #expect(encodedAgain == data)
            let models = try [description, again].map { try $0.build(using: RandomGenerator(seed: 4)) }
            for model in models { model.module.evaluate() }
            let ids = randomIds([2, 9], seed: 2)
            let (first, second) = (models[0](ids), models[1](ids))
            #expect(first.isIdentical(to: second))
        }
    }

    @Test func descriptionsThatCannotBeBuilt() throws {
        let model = smallConfiguration(try MixerConfiguration("softmax"))
        for (description, text) in [
            (
                ModelDescription(kind: .languageModel, vocabulary: 0, maximumLength: 9, model: model),
                "vocabulary 0, classes 1 and maximumLength 9 must be above 0"
            ),
            (
                ModelDescription(kind: .languageModel, vocabulary: 3, maximumLength: -1, model: model),
                "vocabulary 3, classes 1 and maximumLength -1 must be above 0"
            ),
            (
                ModelDescription(kind: .classifier, vocabulary: 3, maximumLength: 9, model: model),
                "a classifier's description needs its number of classes"
            ),
        ] {
            let error = #expect(throws: ConfigurationError.self) {
                try description.build(using: RandomGenerator(seed: 1))
            }
            #expect(error?.description == text)
        }
    }
}
