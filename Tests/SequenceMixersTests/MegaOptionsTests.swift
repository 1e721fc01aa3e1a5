import SequenceMixers
import Testing
import Torch
import TorchNN

/// Every refusal of Mega's settings, by its text, and what the settings build.
@Suite struct MegaOptionsTests {
    private func build(_ json: String, causal: Bool, maximumLength: Int? = nil) throws -> any SequenceMixer {
        try MixerConfiguration("mega", json: json).build(
            .small(modelDim: 10, causal: causal, maximumLength: maximumLength))
    }

    @Test(arguments: [
        ("\"chunk\": -1", "chunk must be from 0 to 10000000, not -1"),
        ("\"chunk\": 10000001", "chunk must be from 0 to 10000000, not 10000001"),
        ("\"chunk\": 0, \"maximumLength\": 0", "maximumLength must be from 1 to 10000000, not 0"),
        ("\"queryDim\": 0", "queryDim must be from 1 to 10000000, not 0"),
        ("\"valueDim\": 0", "valueDim must be from 1 to 10000000, not 0"),
        ("\"emaDim\": 0", "emaDim must be from 1 to 10000000, not 0"),
        ("\"truncation\": 0", "truncation must be from 1 to 10000000, not 0"),
        ("\"feedForwardDim\": -3", "feedForwardDim must be from 0 to 10000000, not -3"),
        ("\"dropout\": 1", "dropout must be at least 0 and below 1, not 1.0"),
        ("\"hiddenDropout\": -0.1", "hiddenDropout must be at least 0 and below 1, not -0.1"),
        ("\"attentionDropout\": 2", "attentionDropout must be at least 0 and below 1, not 2.0"),
        (
            "\"chunk\": 0",
            "relativeBias simple without chunks needs a maximumLength; give one, or relativeBias rotary"
        ),
        (
            "\"maximumLength\": 9",
            "maximumLength would be ignored: it belongs to relativeBias simple without chunks"
        ),
        (
            "\"chunk\": 0, \"relativeBias\": \"rotary\", \"maximumLength\": 9",
            "maximumLength would be ignored: it belongs to relativeBias simple without chunks"
        ),
        ("\"relativeBias\": \"rotary\", \"queryDim\": 5", "relativeBias rotary needs an even queryDim, not 5"),
        ("\"featureDropout\": true", "featureDropout would be ignored: dropout and hiddenDropout are 0"),
        (
            "\"norm\": \"batch-norm\"",
            "norm batch-norm takes averages over whole sequences, so a causal model cannot have it"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json, causal: true) }
        #expect(try #require(error).description == "mega: \(text)")
    }

    @Test func namesThatDoNotExist() {
        let error = #expect(throws: DecodingError.self) { try build("\"attention\": \"laplce\"", causal: true) }
        #expect("\(error as Any)".contains("did you mean 'laplace'?"))
    }

    @Test func widthsThatAreLeftOut() throws {
        let mega = try #require(build("", causal: true) as? Mega)
        #expect(mega.settings.queryDim == 6 && mega.settings.valueDim == 20)  // half of 10, even; twice 10
        #expect(mega.attention.relativeBias.bias?.value.shape == [255])
        #expect(mega.isWholeBlock)
    }

    @Test func everySettingArrives() throws {
        let json = """
            "attention": "relu2", "relativeBias": "rotary", "chunk": 12, "queryDim": 4, "valueDim": 7, "emaDim": 3, \
            "truncation": 5, "norm": "scale-norm", "prenorm": false, "feedForwardDim": 9, "dropout": 0.1, \
            "hiddenDropout": 0.2, "attentionDropout": 0.3, "featureDropout": true
            """
        let mega = try #require(build(json, causal: false) as? Mega)
        let settings = mega.settings
        #expect(settings.attention == .relu2 && settings.relativeBias == .rotary && settings.chunk == 12)
        #expect(settings.queryDim == 4 && settings.valueDim == 7 && settings.emaDim == 3 && settings.truncation == 5)
        #expect(settings.norm == .scaleNorm && !settings.isPrenorm && settings.feedForwardDim == 9)
        #expect(settings.dropout == 0.1 && settings.hiddenDropout == 0.2 && settings.attentionDropout == 0.3)
        #expect(settings.dropsFeatures && settings.isBidirectional && !settings.hasCausalAttention)
        #expect(mega.ema.alphaLogit.value.shape == [20, 3])
        let names = mega.namedParameters().map(\.name)
        #expect(names.contains("attention.relativeBias.alpha") && names.contains("feedForward.up.weight"))
    }

    @Test func theModelsLengthBoundsASimpleBias() throws {
        let mega = try #require(build("\"chunk\": 0", causal: true, maximumLength: 6) as? Mega)
        #expect(mega(.ones([1, 6, 10])).shape == [1, 6, 10])
        let error = #expect(throws: TorchError.self) { try withTorchErrors { mega(.ones([1, 7, 10])) } }
        #expect(error?.description == "Mega: the relative bias is for up to 6 tokens; got 7")
        var state = mega.initialState(batch: 1)
        _ = mega.prefill(.ones([1, 6, 10]), paddingMask: nil, state: &state)
        let late = #expect(throws: TorchError.self) {
            try withTorchErrors { mega.step(.ones([1, 10]), state: &state) }
        }
        #expect(late?.description == "Mega: the relative bias is for up to 6 tokens; got 7")
        let own = try #require(build("\"chunk\": 0, \"maximumLength\": 9", causal: true, maximumLength: 6) as? Mega)
        #expect(own.attention.relativeBias.maximumLength == 9)
    }
}
