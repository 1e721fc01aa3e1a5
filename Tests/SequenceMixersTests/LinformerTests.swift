import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct LinformerTests {
    private func context(causal: Bool = false, maximumLength: Int? = 20, layers: Int = 1) throws -> MixerContext {
        try .small(causal: causal, maximumLength: maximumLength, layers: layers)
    }

    private func build(_ json: String, _ context: MixerContext) throws -> LinformerAttention {
        try #require(MixerConfiguration("linformer", json: json).build(context) as? LinformerAttention)
    }

    private func normal(_ shape: [Int], seed: UInt64 = 2, _ dtype: DType = .float64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: dtype)
    }

    // MARK: Settings

    @Test(arguments: [
        ("\"projectedLength\": 0", "projectedLength must be from 1 to 10000000, not 0"),
        ("\"projectedLength\": [3, -1]", "projectedLength must be from 1 to 10000000, not -1"),
        ("\"projection\": \"mean-pool\", \"window\": 0", "window must be from 1 to 10000000, not 0"),
        ("\"maximumLength\": 0", "maximumLength must be from 1 to 10000000, not 0"),
        ("\"maximumLength\": 19", "maximumLength 19 is below the model's 20"),
        ("\"window\": 4", "window belongs to pooling and convolution, not to projection linear"),
        (
            "\"projection\": \"max-pool\", \"sharing\": \"kv\"",
            "sharing kv belongs to projection linear, not max-pool"
        ),
        (
            "\"projection\": \"max-pool\", \"window\": 4, \"projectedLength\": 5",
            "window and projectedLength say the same; give one of them"
        ),
        (
            "\"projection\": \"convolution\", \"projectBeforeLinear\": true",
            "a convolution compresses the keys and values of heads, so projectBeforeLinear is false"
        ),
        (
            "\"projectedLength\": [4, 3], \"sharing\": \"layerwise\"",
            "sharing layerwise takes one projectedLength for all layers"
        ),
        ("\"projectedLength\": [4, 3]", "projectedLength lists 2 sizes, but there are 1 layers"),
    ]) func refusals(_ json: String, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json, context()) }
        #expect(try #require(error).description == "linformer: \(text)")
    }

    @Test func maximumLengthIsNeeded() throws {
        let unlimited = try context(maximumLength: nil)
        for (json, text) in [
            ("", "projection linear needs a maximumLength; neither it nor the model has one"),
            (
                "\"projection\": \"max-pool\"",
                "projection max-pool needs a window or a maximumLength; there is neither"
            ),
        ] {
            let error = #expect(throws: ConfigurationError.self) { try build(json, unlimited) }
            #expect(try #require(error).description == "linformer: \(text)")
        }
        #expect(try build("\"maximumLength\": 7", unlimited).core.projection.maximumLength == 7)
        #expect(try build("\"projection\": \"mean-pool\", \"window\": 3", unlimited).core.projection.window == 3)
    }

    @Test func causalIsRefusedWithTheReason() throws {
        let error = #expect(throws: ConfigurationError.self) { try build("", context(causal: true)) }
        #expect(
            try #require(error).description
                == "mixer 'linformer' has no causal form: each of its compressed rows mixes all positions, "
                + "those to come with those before")
    }

    @Test func sizesThatAreNone() {
        let error = #expect(throws: DecodingError.self) { try build("\"projectedLength\": \"many\"", context()) }
        #expect("\(error as Any)".contains("expected a whole number, or a list of one for each layer"))
    }

    // MARK: What is shared

    /// A model of 12 layers with 12 heads has 24, 12 and 1 matrices; ours 3 layers and 2 heads.
    @Test(arguments: [("none", 3 * 2 * 2), ("headwise", 3 * 2), ("kv", 3), ("layerwise", 1)])
    func matricesOfAModel(_ sharing: String, _ count: Int) throws {
        var context = try context(layers: 3)
        let stack = Stack(
            try (0..<3).map { layer in
                context.layer = layer
                return try build("\"sharing\": \"\(sharing)\", \"projectedLength\": 5", context)
            })
        let layers = 3 * (4 * 64 + 4 * 8)
        #expect(stack.parameterCount() == layers + count * 5 * 20)
        let projections = stack.mixers.map(\.core.projection)
        #expect((projections[0] === projections[2]) == (sharing == "layerwise"))
    }

    private final class Stack: Module {
        let mixers: [LinformerAttention]

        init(_ mixers: [LinformerAttention]) {
            self.mixers = mixers
            super.init()
        }
    }

    @Test func everyLayerHasItsLength() throws {
        var context = try context(layers: 3)
        for (layer, size) in [7, 3, 1].enumerated() {
            context.layer = layer
            let mixer = try build("\"projectedLength\": [7, 3, 1]", context)
            #expect(mixer.core.projection.key?.value.shape == [size, 20])
        }
        #expect(try build("", context).core.projection.key?.value.shape == [5, 20])
        #expect(try build("", self.context(maximumLength: 4096)).core.projection.key?.value.shape == [128, 4096])
    }

    // MARK: Lengths

    @Test func longerSequencesAreRefused() throws {
        for json in ["", "\"projectBeforeLinear\": false", "\"sharing\": \"none\""] {
            let layer = try build(json, context())
            #expect(layer(normal([1, 20, 8], .float32)).isAllFinite)
            let error = #expect(throws: TorchError.self) {
                try withTorchErrors { layer(self.normal([1, 21, 8], .float32)) }
            }
            #expect(
                try #require(error).description.contains("21 tokens is longer than the maximumLength of 20"))
        }
    }

    /// Pooling and convolution have no parameters for positions, so they go on beyond the length they were made for.
    @Test(arguments: ["mean-pool", "max-pool", "convolution"]) func windowsTakeAnyLength(_ projection: String) throws {
        let layer = try build("\"projection\": \"\(projection)\", \"projectedLength\": 5", context())
        #expect(layer.core.projection.window == 4)
        for length in [1, 4, 21, 57] { #expect(layer(normal([2, length, 8], .float32)).isAllFinite) }
    }

    /// E acts on the input before the biased layer: what the order of the two changes is the bias times E's row sums.
    @Test func theOrderOfProjectionAndLayerMatters() throws {
        let before = try build("\"sharing\": \"kv\"", context())
        let after = try build("\"sharing\": \"kv\", \"projectBeforeLinear\": false", context())
        for layer in [before, after] { layer.to(.float64) }
        _ = try after.load(before.stateDictionary())
        let x = normal([1, 9, 8])
        #expect(before(x).deviation(from: after(x)) > 1e-4)
        for layer in [before, after] {
            for linear in [layer.key, layer.value] { linear.bias?.value = .zeros([8], dtype: .float64) }
        }
        #expect(before(x).deviation(from: after(x)) < 1e-12)
    }

    // MARK: The core

    /// Queries see nothing where all keys are padded.
    @Test func fullyPaddedSequencesGiveZero() throws {
        for projection in [
            LinformerProjection(shape: [3, 9], isShared: false, using: RandomGenerator(seed: 3)),
            LinformerProjection(shape: [2, 3, 9], isShared: true, using: RandomGenerator(seed: 3)),
            LinformerProjection(pooling: .meanPool, window: 4), LinformerProjection(pooling: .maxPool, window: 4),
            LinformerProjection(keyDim: 4, valueDim: 5, window: 4, using: RandomGenerator(seed: 3)),
        ] {
            let core = LinformerCore(projection)
            core.to(.float64)
            let inputs = [normal([2, 2, 7, 4]), normal([2, 2, 9, 4]), normal([2, 2, 9, 5])].map { $0.requiringGrad() }
            let mask = Tensor([false, true], shape: [2, 1]).expanded(to: [-1, 9])
            for out in [
                core(inputs[0], inputs[1], inputs[2], paddingMask: mask),
                core.reference(inputs[0], inputs[1], inputs[2], paddingMask: mask),
            ] {
                #expect(out.shape == [2, 2, 7, 5])
                #expect(out.selected(0, 0).abs().maximum().item() == 0)
                #expect(out.selected(0, 1).abs().maximum().item() > 0)
                for gradient in gradients(of: [out.sum()], withRespectTo: inputs) {
                    let gradient = try #require(gradient)
                    #expect(gradient.isAllFinite && gradient.selected(0, 0).abs().maximum().item() == 0)
                }
            }
        }
    }
}
