import SequenceMixers
import Testing
import Torch
import TorchNN

/// SAMformer's settings and what they build.
@Suite struct SamformerTests {
    private func build(_ json: String, causal: Bool = false) throws -> any SequenceMixer {
        try MixerConfiguration("samformer", json: json).build(
            MixerContext(modelDim: 24, heads: 4, isCausal: causal, generator: RandomGenerator(seed: 1)))
    }

    @Test(arguments: [
        ("\"attentionDim\": 0", "attentionDim must be from 1 to 1000000, not 0"),
        (
            "\"attentionDim\": 3, \"form\": \"linear\"",
            "attentionDim 3 would be ignored: form 'linear' has no attention"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        #expect(throws: ConfigurationError("samformer: \(text)")) { try build(json) }
    }

    @Test func thereIsNoCausalForm() throws {
        #expect(throws: ConfigurationError("mixer 'samformer' has no causal form")) { try build("", causal: true) }
    }

    @Test func formsHaveTheirLayers() throws {
        let paper = try #require(try build("") as? ChannelAttention)
        #expect(paper.isWholeBlock)
        #expect(paper.query.weight.value.shape == [16, 24] && paper.value.weight.value.shape == [16, 24])
        #expect(paper.output?.weight.value.shape == [24, 16])
        // Glorot's bound, and no bias, as the paper's code begins.
        let largest = try #require(paper.output).weight.value.abs().maximum().item()
        #expect(largest <= (6.0 / 40).squareRoot() && largest > 0.3)
        #expect(paper.key.bias?.value.abs().maximum().item() == 0)

        let demo = try #require(
            try build("\"form\": \"pytorch-demo\", \"attentionDim\": 5") as? ChannelAttention)
        #expect(demo.key.weight.value.shape == [5, 24] && demo.value.weight.value.shape == [24, 24])
        #expect(demo.output == nil)
        #expect((demo.key.bias?.value.abs().maximum().item() ?? 0) > 0)
    }

    @Test func withoutAttentionNothingIsMixed() throws {
        let block = try build("\"form\": \"linear\"")
        let x = Trial(3).normal([2, 5, 24])
        #expect(block(x).isIdentical(to: x) && block.parameterCount() == 0 && block.isWholeBlock)
    }

    @Test func theBiasOfTheKeysHasAGradientOfZero() throws {
        let block = try #require(try build("") as? ChannelAttention)
        block(Trial(3).normal([2, 5, 24], .float32)).square().sum().backward()
        #expect(block.key.bias?.grad?.abs().maximum().item() == 0)
        #expect((block.query.bias?.grad?.abs().maximum().item() ?? 0) > 0)
    }

    /// Channels have no order.
    @Test func permutedChannelsGivePermutedOutputs() throws {
        let block = try build("")
        block.to(.float64)
        let trial = Trial(4)
        let x = trial.normal([2, 7, 24])
        let order = Tensor.randomPermutation(7, using: trial.generator)
        let (found, expected) = (block(x.indexed(1, order)), block(x).indexed(1, order))
        #expect(found.deviation(from: expected) < 1e-12)
    }
}
