import SequenceMixers
import Testing
import Torch
import TorchNN

/// Every refusal of the settings of `aft` and `gmlp`, by its text, and what the settings build.
@Suite struct AFTOptionsTests {
    private func build(_ json: String, causal: Bool = true, maximumLength: Int? = nil) throws -> any SequenceMixer {
        try MixerConfiguration("aft", json: json).build(.small(causal: causal, maximumLength: maximumLength))
    }

    @Test(arguments: [
        ("\"window\": 3", true, "window would be ignored: it belongs to form 'local'"),
        ("\"kernel\": 3", true, "kernel would be ignored: it belongs to form 'conv'"),
        ("\"gridWidth\": 3, \"form\": \"local\"", true, "gridWidth would be ignored: it belongs to form 'conv'"),
        (
            "\"factorized\": true, \"form\": \"conv\"", true,
            "factorized would be ignored: it belongs to forms 'full' and 'local'"
        ),
        ("\"biasDim\": 4", true, "biasDim would be ignored: it belongs to forms 'full' and 'local'"),
        ("\"maximumLength\": 4", true, "maximumLength would be ignored: it belongs to forms 'full' and 'local'"),
        (
            "\"form\": \"full\", \"factorized\": false, \"biasDim\": 4", true,
            "biasDim would be ignored: it is the width of factors"
        ),
        ("\"form\": \"local\", \"window\": 0", true, "window must be from 1 to 10000000, not 0"),
        ("\"form\": \"conv\", \"kernel\": -1", true, "kernel must be from 1 to 10000000, not -1"),
        ("\"form\": \"conv\", \"gridWidth\": 0", false, "gridWidth must be from 1 to 10000000, not 0"),
        ("\"hiddenDim\": 0", true, "hiddenDim must be from 1 to 10000000, not 0"),
        ("\"hiddenDim\": 7", true, "hiddenDim 7 is not a multiple of heads 2"),
        ("\"form\": \"conv\", \"kernel\": 4", false, "kernel must be odd in a bidirectional model, not 4"),
        (
            "\"form\": \"conv\", \"gridWidth\": 4", true,
            "a kernel on a grid has no causal form, as it reaches into the rows below; leave gridWidth out"
        ),
        (
            "\"form\": \"full\"", true, "form 'full' has biases for pairs of positions, so it needs a maximumLength"
        ),
        (
            "\"form\": \"full\", \"factorized\": false, \"maximumLength\": 70000", true,
            "without factorized there would be 70000² biases, for at most 65536 positions"
        ),
    ]) func refusals(_ json: String, _ causal: Bool, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json, causal: causal) }
        #expect(try #require(error).description == "aft: \(text)")
    }

    @Test func aShorterMaximumThanTheModels() {
        #expect(throws: ConfigurationError("aft: maximumLength 5 is below the model's 9")) {
            try build("\"form\": \"full\", \"maximumLength\": 5", maximumLength: 9)
        }
    }

    @Test func whatIsLeftOut() throws {
        let simple = try #require(try build("") as? AFT)
        #expect(simple.core.parameters().isEmpty && simple.canStream)
        let local = try #require(try build("\"form\": \"local\"", maximumLength: 20) as? AFT)
        guard case .pairs(let pairs) = local.core.bias else { throw ConfigurationError("not of pairs") }
        #expect(pairs.window == 32 && pairs.u?.value.shape == [20, 64] && pairs.maximumLength == 20)
        let conv = try #require(try build("\"form\": \"conv\"") as? AFT)
        guard case .taps(let taps) = conv.core.bias else { throw ConfigurationError("not of taps") }
        #expect(taps.kernel == 11 && taps.w.value.shape == [2, 11] && conv.key.outputs == 2)
        let wide = try #require(
            try build("\"form\": \"conv\", \"gridWidth\": 3, \"hiddenDim\": 6", causal: false) as? AFT)
        #expect(wide.core.namedParameters().map(\.name) == ["bias.w", "bias.gamma", "bias.beta"])
        #expect(wide.value.outputs == 6)
    }

    @Test func fullSaysWhyItCannotStream() throws {
        let layer = try #require(try build("\"form\": \"full\"", maximumLength: 9) as? AFT)
        #expect(!layer.canStream)
        var state = layer.initialState(batch: 1)
        let error = #expect(throws: TorchError.self) {
            try withTorchErrors { layer.prefill(.ones([1, 3, 8]), paddingMask: nil, state: &state) }
        }
        #expect(error?.description.contains("form 'full' weighs every key anew at each position") == true)
    }
}

@Suite struct GMLPOptionsTests {
    private func build(_ json: String, causal: Bool = true, maximumLength: Int? = nil) throws -> any SequenceMixer {
        try MixerConfiguration("gmlp", json: json).build(.small(causal: causal, maximumLength: maximumLength))
    }

    @Test(arguments: [
        ("", "its weights are for positions, so it needs a maximumLength"),
        ("\"maximumLength\": 0", "maximumLength must be from 1 to 10000000, not 0"),
        ("\"hiddenDim\": -2", "hiddenDim must be from 1 to 10000000, not -2"),
        ("\"spatialHeads\": 0", "spatialHeads must be from 1 to 10000000, not 0"),
        ("\"attentionDim\": 0", "attentionDim must be from 1 to 10000000, not 0"),
        ("\"epsilon\": 0", "epsilon must be above 0, not 0.0"),
        ("\"hiddenDim\": 7", "hiddenDim 7 is not a multiple of twice the 1 spatialHeads"),
        ("\"hiddenDim\": 10, \"spatialHeads\": 2", "hiddenDim 10 is not a multiple of twice the 2 spatialHeads"),
        (
            "\"spatial\": \"dense\", \"maximumLength\": 70000",
            "dense weights would be 70000² a head, for at most 65536 positions"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json) }
        #expect(try #require(error).description == "gmlp: \(text)")
    }

    @Test func aShorterMaximumThanTheModels() {
        #expect(throws: ConfigurationError("gmlp: maximumLength 5 is below the model's 9")) {
            try build("\"maximumLength\": 5", maximumLength: 9)
        }
    }

    @Test func whatIsLeftOut() throws {
        let block = try #require(try build("", maximumLength: 10) as? GMLP)
        #expect(block.gating.weight.value.shape == [19] && block.input.outputs == 48 && block.attention == nil)
        #expect(block.isWholeBlock)
        #expect(block.gating.weight.value.abs().maximum().item() <= 1e-4)
        let small = try #require(
            try build("\"spatial\": \"dense\", \"attentionDim\": 3, \"hiddenDim\": 6", maximumLength: 10) as? GMLP)
        #expect(small.gating.weight.value.shape == [10, 10])
        #expect(small.attention?.queryKeyValue.weight.value.shape == [9, 8])
    }
}
