import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

/// Every refusal of a mixer's settings, by its text.
@Suite struct MixerOptionsTests {
    private func refusal(_ name: String, _ json: String, causal: Bool = true, rotary: Bool = false, dim: Int = 8) throws
        -> String
    {
        let error = #expect(throws: ConfigurationError.self, "\(json)") {
            let context = try MixerContext(
                modelDim: dim, heads: 2, isCausal: causal, usesRotary: rotary, generator: RandomGenerator(seed: 1))
            _ = try MixerConfiguration(name, json: json).build(context)
        }
        return try #require(error).description
    }

    @Test(arguments: [
        ("\"scale\": 0", "softmax: scale must be above 0, not 0.0"),
        ("\"scale\": -2", "softmax: scale must be above 0, not -2.0"),
    ]) func softmax(_ json: String, _ text: String) throws { #expect(try refusal("softmax", json) == text) }

    @Test(arguments: [
        ("\"epsilon\": -1", "linear: epsilon must be finite and not negative, is -1.0"),
        ("\"temperature\": 0", "linear: temperature must be above 0, not 0.0"),
        ("\"features\": 8", "linear: featureMap 'elu+1' takes no features"),
        ("\"temperature\": 1", "linear: featureMap 'elu+1' takes no temperature"),
        ("\"orthogonal\": true, \"featureMap\": \"relu\"", "linear: featureMap 'relu' takes no orthogonal"),
        ("\"stabilize\": true", "linear: stabilize belongs to featureMap favor, not 'elu+1'"),
        (
            "\"smoothing\": 1, \"featureMap\": \"rff\"",
            "linear: smoothing belongs to featureMap smoothed-rff, not 'rff'"
        ),
        (
            "\"stabilize\": true, \"featureMap\": \"favor\"",
            "linear: stabilize takes a maximum over the whole sequence, so causal attention cannot have it"
        ),
        (
            "\"features\": 7, \"featureMap\": \"favor\"",
            "linear: features must be even and positive for 'favor', not 7"
        ),
        ("\"features\": 0, \"featureMap\": \"rff\"", "linear: features must be even and positive for 'rff', not 0"),
        (
            "\"features\": 8, \"featureMap\": \"smoothed-rff\"",
            "linear: features must be odd and positive for 'smoothed-rff', not 8"
        ),
        ("\"redrawEvery\": 5", "linear: featureMap 'elu+1' takes no redrawEvery"),
        ("\"redrawEvery\": 0, \"featureMap\": \"favor\"", "linear: redrawEvery must be at least 1, not 0"),
        (
            "\"features\": 0, \"featureMap\": \"generalized-relu\"",
            "linear: features must be positive for 'generalized-relu', not 0"
        ),
    ]) func linear(_ json: String, _ text: String) throws { #expect(try refusal("linear", json) == text) }

    @Test(arguments: [
        ("\"momentum\": 1", true, "momentum: momentum must be at least 0 and below 1, not 1.0"),
        ("\"momentum\": -0.1", true, "momentum: momentum must be at least 0 and below 1, not -0.1"),
        ("\"stepSize\": 0", true, "momentum: stepSize must be above 0, not 0.0"),
        ("\"epsilon\": -1", true, "momentum: epsilon must be finite and not negative, is -1.0"),
        ("\"maximumMomentum\": 1", true, "momentum: maximumMomentum must be at least 0 and below 1, not 1.0"),
        (
            "\"weights\": \"heavy-ball\"", false,
            "momentum: weights 'heavy-ball' is causal; a bidirectional model needs 'final'"
        ),
        (
            "\"weights\": \"adaptive\"", false,
            "momentum: weights 'adaptive' is causal; a bidirectional model needs 'final'"
        ),
        (
            "\"normalized\": false", true,
            "momentum: normalized: false is a bidirectional form; a causal model needs true"
        ),
        (
            "\"weights\": \"adaptive\", \"momentum\": 0.9", true,
            "momentum: momentum would be ignored: weights 'adaptive' find their own"
        ),
        (
            "\"maximumMomentum\": 0.9", true,
            "momentum: maximumMomentum would be ignored: it belongs to weights 'adaptive'"
        ),
        (
            "\"weightLength\": \"padded\"", true,
            "momentum: weightLength would be ignored: it belongs to weights 'final'"
        ),
        (
            "\"normalized\": false, \"epsilon\": 1e-6", false,
            "momentum: epsilon would be ignored: without normalized there is no denominator"
        ),
    ]) func momentum(_ json: String, _ causal: Bool, _ text: String) throws {
        #expect(try refusal("momentum", json, causal: causal) == text)
    }

    @Test func mixersThatDoNotExist() throws {
        let names = MixerCatalogue.entries.map(\.name).joined(separator: ", ")
        #expect(names.hasPrefix("softmax, linear, momentum, "))
        #expect(
            try refusal("sofmax", "") == "unknown mixer 'sofmax'; did you mean 'softmax'? (there are: \(names))")
        #expect(try refusal("xyzzy", "") == "unknown mixer 'xyzzy' (there are: \(names))")
    }

    @Test func rotaryPositions() throws {
        #expect(
            try refusal("linear", "", rotary: true)
                == "mixer 'linear' takes no rotary positions; use position: learned or sinusoidal")
        #expect(
            try refusal("softmax", "", rotary: true, dim: 6)
                == "rotary positions need an even number of channels a head, not 3")
    }

    @Test func optionsOfAnotherMixer() {
        #expect(throws: ConfigurationError("mixer 'softmax' takes SoftmaxOptions, not LinearOptions")) {
            try MixerConfiguration("softmax", LinearOptions())
        }
    }

    @Test(arguments: [
        (0, 1, "modelDim must be above 0, not 0"), (8, 0, "heads must be above 0, not 0"),
        (8, 3, "modelDim 8 is not a multiple of heads 3"),
    ]) func contexts(_ modelDim: Int, _ heads: Int, _ text: String) {
        #expect(throws: ConfigurationError(text)) {
            try MixerContext(modelDim: modelDim, heads: heads, isCausal: true, generator: RandomGenerator(seed: 1))
        }
    }

    @Test(arguments: MixerCase.all) func configurationsSurviveJSON(_ mixer: MixerCase) throws {
        let configuration = try MixerConfiguration(mixer.mixer, mixer.options())
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        let data = try encoder.encode(configuration)
        let again = try JSONDecoder().decode(MixerConfiguration.self, from: data)
        #expect(again.name == mixer.mixer)
        let encodedAgain = try encoder.encode(again)
        #expect(encodedAgain == data)
        // It builds the same function.
        let trial = Trial(7, lengths: 6...6)
        let context = try MixerContext(
            modelDim: 6, heads: 2, isCausal: mixer.isCausal, maximumLength: mixer.fixedLength ?? mixer.maximumLength,
            generator: RandomGenerator(seed: 3))
        let layer = try again.build(context)
        layer.evaluate()
        layer.to(.float64)
        let x = trial.normal([1, mixer.fixedLength ?? 6, 6])
        let found = layer(x)
        let original = try mixer.layer(heads: 2, headDim: 3, seed: 3)
        let expected = original(x)
        #expect(found.isIdentical(to: expected))
    }

    @Test func orthogonalFeaturesAre() {
        let omega = FeatureMap.drawOmega(
            headDim: 5, columns: 12, orthogonal: true, using: RandomGenerator(seed: 1))
        #expect(omega.shape == [5, 12])
        for block in [0..<5, 5..<10, 10..<12] {
            let products = matmul(omega.sliced(1, block).transposed(), omega.sliced(1, block))
            let offDiagonal = products - products * Tensor.eye(block.count)
            #expect(offDiagonal.abs().maximum().item() < 1e-4)
            #expect(products.diagonal().minimum().item() > 0.01)
        }
    }
}
