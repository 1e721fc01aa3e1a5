import Testing
import Torch
import TorchNN

@Suite struct LayerTests {
    private let golden: Golden
    private let generator = RandomGenerator(seed: 1)

    init() throws { golden = try Golden() }

    /// Loads the case's weights, then compares the output and every gradient.
    private func check(_ name: String, _ module: Module, input: String = "x", _ body: (Tensor) -> Tensor) throws {
        module.to(.float64)
        let weights = golden.names(name, startingWith: "").filter { $0 == "weight" || $0 == "bias" }
        try module.load(
            Dictionary(uniqueKeysWithValues: weights.map { ($0, try golden.tensor("\(name).\($0)")) }))
        let given =
            input == "indices"
            ? try golden.tensor("\(name).\(input)").to(.int64) : try golden.tensor("\(name).\(input)")
        let x = given.dtype.isFloatingPoint ? given.requiringGrad() : given
        let out = body(x)
        expectClose(out, try golden.tensor("\(name).out"), "\(name).out")
        out.backward(gradient: try golden.tensor("\(name).cotangent"))
        let parameters = Dictionary(uniqueKeysWithValues: module.namedParameters().map { ($0.name, $0.parameter) })
        let gradients = golden.names(name, startingWith: "grad.")
        #expect(!gradients.isEmpty)
        for gradient in gradients {
            let found = try #require(
                gradient == input ? x.grad : parameters[gradient]?.grad, "no gradient of \(gradient)")
            expectClose(found, try golden.tensor("\(name).grad.\(gradient)"), "\(name).grad.\(gradient)")
        }
    }

    @Test func layersAndTheirGradientsAreThoseOfPyTorch() throws {
        let linear = Linear(5, 4, using: generator)
        try check("linear", linear) { linear($0) }
        let layerNorm = LayerNorm(5)
        try check("layerNorm", layerNorm) { layerNorm($0) }
        let rmsNorm = RMSNorm(5)
        try check("rmsNorm", rmsNorm) { rmsNorm($0) }
        let conv = Conv1d(4, 6, taps: 3, stride: 2, padding: .symmetric(3), dilation: 2, groups: 2, using: generator)
        try check("conv", conv) { conv($0) }
        let causal = Conv1d(3, 5, taps: 4, padding: .causal, dilation: 2, using: generator)
        try check("causalConv", causal) { causal($0) }
        let embedding = Embedding(7, 3, paddingIndex: 2, using: generator)
        #expect(embedding.weight.value[2].abs().maximum().item() == 0)
        try check("embedding", embedding, input: "indices") { embedding($0) }
    }

    @Test func rotaryEmbeddingTurnsPairs() throws {
        let interleaved = RotaryEmbedding(6, pairing: .interleaved)
        try check("rotaryInterleaved", interleaved) { interleaved($0, offset: 5) }
        let halves = RotaryEmbedding(6)
        try check("rotaryHalves", halves) { halves($0, offset: 5) }
    }

    @Test(arguments: [RotaryEmbedding.Pairing.halves, .interleaved])
    func rotatedScoresDependOnTheDistanceAlone(_ pairing: RotaryEmbedding.Pairing) {
        let rotary = RotaryEmbedding(8, pairing: pairing)
        let q = Tensor.randomNormal([1, 1, 1, 8], using: generator, dtype: .float64)
        let k = Tensor.randomNormal([1, 1, 1, 8], using: generator, dtype: .float64)
        func score(_ m: Int, _ n: Int) -> Tensor { (rotary(q, offset: m) * rotary(k, offset: n)).sum() }
        expectClose(score(17, 12), score(1005, 1000), tolerance: 1e-10)
        #expect(score(17, 12).relativeError(to: score(17, 13)) > 1e-6)
    }

    @Test func positionsContinueAtAnyOffset() throws {
        let sinusoidal = SinusoidalPositionalEmbedding(5)
        sinusoidal.to(.float64)
        expectClose(sinusoidal(length: 4, offset: 3), try golden.tensor("sinusoidal.out"))
        let whole = sinusoidal(length: 50)
        let learned = LearnedPositionalEmbedding(maximumLength: 50, dim: 5, using: generator)
        let rotary = RotaryEmbedding(4)
        let x = Tensor.randomNormal([2, 3, 50, 4], using: generator)
        let turned = rotary(x)
        for offset in [0, 1, 17, 49] {
            #expect(sinusoidal(length: 50 - offset, offset: offset).isIdentical(to: whole[offset...]))
            #expect(learned(length: 50 - offset, offset: offset).isIdentical(to: learned.weight.value[offset...]))
            let tail = rotary(x[.all, .all, offset...], offset: offset)
            expectClose(tail, turned[.all, .all, offset...], tolerance: 1e-6)
        }
        #expect(sinusoidal.stateDictionary().isEmpty)
    }

    @Test func activationsAreThoseOfPyTorch() throws {
        let x = Tensor.arange(from: -4.0, to: 4.5, step: 1)
        for activation in Activation.allCases {
            expectClose(activation(x), try golden.tensor("activation.\(activation.rawValue)"), activation.rawValue)
        }
    }

    @Test func wrongShapesNameTheLayer() {
        let x = Tensor.zeros([2, 3, 7])
        let linear = Linear(5, 4, using: generator)
        let norm = LayerNorm(5)
        let conv = Conv1d(4, 4, taps: 2, using: generator)
        let learned = LearnedPositionalEmbedding(maximumLength: 4, dim: 2, using: generator)
        let embedding = Embedding(3, 2, using: generator)
        let messages = [
            (misuse { _ = linear(x) }, "Linear: expected an input [..., 5], got [2, 3, 7]"),
            (misuse { _ = norm(x) }, "LayerNorm: expected an input [..., 5], got [2, 3, 7]"),
            (misuse { _ = RMSNorm(6)(x) }, "RMSNorm: expected an input [..., 6], got [2, 3, 7]"),
            (misuse { _ = conv(x) }, "Conv1d: expected an input [batch, 4, length], got [2, 3, 7]"),
            (
                misuse { _ = RotaryEmbedding(4)(x) },
                "RotaryEmbedding: expected an input [..., length, 4], got [2, 3, 7]"
            ),
            (
                misuse { _ = learned(length: 3, offset: 2) },
                "LearnedPositionalEmbedding: 3 positions from 2 on do not lie within maximumLength 4"
            ),
            (
                misuse { _ = embedding(Tensor.zeros([2])) },
                "Embedding: expected whole numbers as indices, got float32 [2]"
            ),
        ]
        for (message, expected) in messages { #expect(message == expected) }
        #expect(misuse { _ = embedding(Tensor([3])) }?.contains("index out of range") == true)
    }

    @Test func impossibleSettingsAreRefused() {
        let g = generator
        let messages = [
            misuse { _ = Linear(0, 4, using: g) }, misuse { _ = Linear(4, -1, using: g) },
            misuse { _ = Embedding(0, 4, using: g) }, misuse { _ = Embedding(3, 4, paddingIndex: 3, using: g) },
            misuse { _ = LayerNorm(0) }, misuse { _ = RMSNorm(-2) }, misuse { _ = LayerNorm(2, epsilon: -.infinity) },
            misuse { _ = Dropout(1, using: g) }, misuse { _ = Dropout(-0.1, using: g) },
            misuse { _ = Dropout(.nan, using: g) }, misuse { _ = Conv1d(4, 4, taps: 0, using: g) },
            misuse { _ = Conv1d(4, 6, taps: 2, groups: 3, using: g) }, misuse { _ = RotaryEmbedding(3) },
            misuse { _ = SinusoidalPositionalEmbedding(0) },
            misuse { _ = LearnedPositionalEmbedding(maximumLength: 0, dim: 4, using: g) },
        ]
        for (index, message) in messages.enumerated() { #expect(message != nil, "case \(index) was accepted") }
        #expect(messages[0] == "Linear: expected positive sizes, got 0 inputs, 4 outputs")
    }
}
