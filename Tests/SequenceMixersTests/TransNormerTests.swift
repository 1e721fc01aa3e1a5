import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct TransNormerTests {
    private func build(_ json: String, causal: Bool = true, layer: Int = 0, of layers: Int = 1, dim: Int = 8) throws
        -> any SequenceMixer
    {
        try MixerConfiguration("transnormer", json: json).build(
            .small(modelDim: dim, causal: causal, layer: layer, layers: layers))
    }

    @Test(arguments: [
        ("\"block\": 0", "block must be from 1 to 10000000, not 0"),
        ("\"epsilon\": 0", "epsilon must be above 0, not 0.0"),
        ("\"attentionDropout\": 1", "attentionDropout must be at least 0 and below 1, not 1.0"),
        ("\"diagLayers\": 2", "diagLayers must be from 0 to the 1 layers there are, not 2"),
        ("\"attention\": \"norm\", \"block\": 4", "block belongs to diagonal attention, not to attention: norm"),
        (
            "\"attention\": \"norm\", \"diagActivation\": \"relu\"",
            "diagActivation belongs to diagonal attention, not to attention: norm"
        ),
        (
            "\"attention\": \"norm\", \"attentionDropout\": 0.1",
            "attentionDropout belongs to diagonal attention, not to attention: norm"
        ),
        (
            "\"attention\": \"diag\", \"normActivation\": \"elu\"",
            "normActivation belongs to norm attention, not to attention: diag"
        ),
        (
            "\"attention\": \"diag\", \"diagLayers\": 1",
            "diagLayers belongs to attention: stack, not diag"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json) }
        #expect(try #require(error).description == "transnormer: \(text)")
    }

    /// Diagonal attention in the first half of the blocks, rounded down; the variant says which functions.
    @Test(arguments: [("", 5, 2), ("\"diagLayers\": 4", 5, 4), ("\"diagLayers\": 0", 2, 0)])
    func stacksOfTheTwoVariants(_ json: String, _ layers: Int, _ diagonal: Int) throws {
        for (variant, norm, diag) in [
            ("t1", TransNormerActivation.elu, DiagActivation.relu), ("t2", .onePlusElu, .softmax),
        ] {
            let settings = "\"variant\": \"\(variant)\"\(json.isEmpty ? "" : ", ")\(json)"
            for layer in 0..<layers {
                let mixer = try build(settings, layer: layer, of: layers)
                if layer < diagonal {
                    let attention = try #require(mixer as? DiagAttention)
                    #expect(attention.activation == diag && attention.block == 64)
                } else {
                    #expect(try #require(mixer as? NormAttention).activation == norm)
                }
            }
        }
    }

    /// With blocks as long as the sequence and no positions, T2's diagonal attention is softmax attention.
    @Test(arguments: [true, false]) func oneBlockIsFullAttention(_ causal: Bool) throws {
        let layer = try #require(
            build("\"attention\": \"diag\", \"position\": \"none\"", causal: causal) as? DiagAttention)
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: causal, generator: RandomGenerator(seed: 2))
        let full = try MixerConfiguration("softmax").build(context)
        _ = try full.load(layer.stateDictionary())
        let x = Tensor.randomNormal([2, 64, 8], using: RandomGenerator(seed: 3))
        #expect(layer(x).deviation(from: full(x)) < 1e-5)
    }

    /// The reflection keeps lengths, the rotation distances; the odd channel is not turned.
    @Test(arguments: [1, 2, 5, 6]) func positionsAreRelative(_ headDim: Int) throws {
        let generator = RandomGenerator(seed: 4)
        for kind in TransNormerPositionKind.allCases {
            let position = TransNormerPosition(kind, headDim: headDim, using: generator)
            position.to(.float64)
            let (q, k) = (
                Tensor.randomNormal([1, 1, 1, headDim], using: generator, dtype: .float64),
                Tensor.randomNormal([1, 1, 1, headDim], using: generator, dtype: .float64)
            )
            func place(_ i: Int) -> Tensor { Tensor([i], shape: [1, 1, 1]) }
            func product(_ i: Int, _ j: Int) -> Double {
                (position(q, at: place(i)) * position(k, at: place(j))).sum().item()
            }
            #expect((product(7, 3) - product(1004, 1000)).magnitude < 1e-9)
            #expect((product(5, 5) - (q * k).sum().item()).magnitude < 1e-5)
            #expect(position.parameterCount() == (kind == .lrpe ? headDim / 2 : 0))
        }
    }

    /// Its first angles are 10000^(-2i/e), as its fixed ones are, and the trained ones get a gradient.
    @Test func anglesAreTrained() throws {
        let layer = try #require(build("\"attention\": \"norm\"", dim: 12) as? NormAttention)
        let theta = try #require(layer.position.theta)
        let values: [Float] = theta.value.scalars()
        for (index, value) in values.enumerated() {
            #expect((Double(value) - pow(10_000.0, -Double(2 * index) / 6)).magnitude < 1e-6)
        }
        layer(Tensor.randomNormal([1, 9, 12], using: RandomGenerator(seed: 5))).sum().backward()
        #expect(try #require(theta.grad).abs().minimum().item() > 0)
    }

    /// Inputs whose cubes have squares beyond single precision.
    @Test func largeSumsAreNormalized() throws {
        let layer = try build("\"attention\": \"norm\"")
        let x = (Tensor.randomNormal([1, 500, 8], using: RandomGenerator(seed: 6)) * 1e7).requiringGrad()
        let out = layer(x)
        #expect(out.isAllFinite && out.abs().maximum().item() < 10)
        #expect(try #require(gradients(of: [out.sum()], withRespectTo: [x])[0]).isAllFinite)
    }

    @Test func dropoutIsForTraining() throws {
        let layer = try build("\"attention\": \"diag\", \"attentionDropout\": 0.5")
        let x = Tensor.randomNormal([1, 20, 8], using: RandomGenerator(seed: 7))
        #expect(!layer(x).isIdentical(to: layer(x)))
        layer.evaluate()
        #expect(layer(x).isIdentical(to: layer(x)))
    }

    /// A prompt padded between and before its tokens leaves the padded places out of the state.
    @Test(arguments: ["norm", "diag"]) func holesInAPromptAreNotRemembered(_ kind: String) throws {
        let layer = try #require(
            build("\"attention\": \"\(kind)\"\(kind == "diag" ? ", \"block\": 6" : "")") as? any StreamingMixer)
        layer.to(.float64)
        let mask = Tensor([false, true, true, false, true, true, true, false, true], shape: [1, 9])
        let (one, other) = (
            Tensor.randomNormal([1, 12, 8], using: RandomGenerator(seed: 8), dtype: .float64),
            Tensor.randomNormal([1, 12, 8], using: RandomGenerator(seed: 9), dtype: .float64)
        )
        let garbage = one.cloned()
        garbage.copyInPlace(
            1, 0..<9, from: select(mask.unsqueezed(2), one.sliced(1, 0..<9), other.sliced(1, 0..<9)))
        let all = concatenate([mask, Tensor.ones([1, 3], dtype: .bool)], dim: 1)
        let expected = layer(one, paddingMask: all)
        for x in [one, garbage] {
            var state = layer.anyInitialState(batch: 1)
            var pieces = [layer.prefill(x.sliced(1, 0..<9), paddingMask: mask, anyState: &state)]
            for index in 9..<12 { pieces.append(layer.step(x.selected(1, index), anyState: &state).unsqueezed(1)) }
            let found = concatenate(pieces, dim: 1)
            let real = Tensor([1, 2, 4, 5, 6, 8, 9, 10, 11])
            #expect(found.indexed(1, real).deviation(from: expected.indexed(1, real)) < 1e-9)
        }
    }
}
