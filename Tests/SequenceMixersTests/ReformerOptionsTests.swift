import SequenceMixers
import Testing
import Torch
import TorchNN

/// Every refusal of the reformer's settings, by its text, and what they build.
@Suite struct ReformerOptionsTests {
    private func build(_ json: String, causal: Bool = true, layer: Int = 0, maximumLength: Int? = nil) throws
        -> any SequenceMixer
    {
        try MixerConfiguration("reformer", json: json).build(
            .small(causal: causal, maximumLength: maximumLength, layer: layer))
    }

    @Test(arguments: [
        ("\"chunk\": 0", "chunk must be from 1 to 1000000, not 0"),
        ("\"localChunk\": -1, \"attention\": \"local\"", "localChunk must be from 1 to 1000000, not -1"),
        ("\"chunksBefore\": -1", "chunksBefore must be from 0 to 1000, not -1"),
        ("\"chunksAfter\": 2000", "chunksAfter must be from 0 to 1000, not 2000"),
        ("\"rounds\": 0", "rounds must be from 1 to 1000, not 0"),
        ("\"evaluationRounds\": 0", "evaluationRounds must be from 1 to 1000, not 0"),
        (
            "\"buckets\": 5",
            "buckets must be a positive even number, or a list of such factors, of 1000000 at most, not 5"
        ),
        (
            "\"buckets\": [4, 0]",
            "buckets must be a positive even number, or a list of such factors, of 1000000 at most, not 4 · 0"
        ),
        (
            "\"buckets\": [100000, 100000]",
            "buckets must be a positive even number, or a list of such factors, of 1000000 at most, not 100000 · 100000"
        ),
        ("", "set buckets, or a maximum length for the model, from which their number would follow"),
        ("\"layers\": []", "layers must name at least one kind"),
        (
            "\"layers\": [\"lsh\"], \"attention\": \"lsh\"",
            "attention would be ignored, since layers says it for each layer"
        ),
        ("\"attention\": \"local\", \"rounds\": 2", "rounds belongs to lsh attention, which no layer has"),
        ("\"layers\": [\"local\"], \"buckets\": 4", "buckets belongs to lsh attention, which no layer has"),
        (
            "\"attention\": \"local\", \"uniquePairs\": false",
            "uniquePairs belongs to lsh attention, which no layer has"
        ),
        ("\"buckets\": 4, \"localChunk\": 4", "localChunk belongs to local attention, which no layer has"),
        ("\"buckets\": 4, \"wrap\": false", "wrap belongs to local attention, which no layer has"),
        (
            "\"attention\": \"local\", \"wrap\": true",
            "wrap would be ignored: causal attention sees no chunk after its own"
        ),
        (
            "\"attention\": \"local\", \"roundLength\": \"real\"",
            "roundLength belongs to lsh attention, and to local one that wraps"
        ),
        (
            "\"attention\": \"local\", \"chunksAfter\": 1",
            "chunksAfter would be ignored: causal local attention sees none of them"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        let error = #expect(throws: ConfigurationError.self, "\(json)") { try build(json) }
        #expect(error?.description == "reformer: \(text)")
    }

    @Test func layersTakeTurns() throws {
        let json = "\"layers\": [\"local\", \"local\", \"lsh\"], \"chunk\": 16, \"localChunk\": 4, \"buckets\": [4, 2]"
        for layer in 0..<7 {
            let mixer = try build(json, layer: layer)
            if layer % 3 < 2 {
                #expect((mixer as? Attention<LocalChunkCore>)?.core.chunk == 4, "layer \(layer)")
            } else {
                let core = try #require(mixer as? LSHAttention).core
                #expect(core.settings.chunk == 16 && core.factors == [4, 2] && core.bucketCount == 8)
            }
        }
    }

    /// 2 ⌊length / chunk⌋ buckets, those above 128 in two factors, as the authors' code has it.
    @Test(arguments: [
        (1, 64, [2]), (64, 64, [2]), (1000, 64, [30]), (4096, 64, [128]), (4224, 64, [16, 8]), (16_384, 64, [32, 16]),
        (65_536, 64, [64, 32]), (65_536, 256, [32, 16]),
    ]) func bucketsFollowFromTheLength(_ length: Int, _ chunk: Int, _ factors: [Int]) throws {
        #expect(BucketFactors(length: length, chunk: chunk).factors == factors)
        let mixer = try build("\"chunk\": \(chunk)", maximumLength: length)
        #expect(try #require(mixer as? LSHAttention).core.factors == factors)
    }

    @Test func projectionsHaveNoBiases() throws {
        let hashed = try build("\"buckets\": 4")
        #expect(
            hashed.namedParameters().map(\.name) == ["queryKey.weight", "value.weight", "output.weight"])
        #expect(hashed.stateDictionary()["core.rotations"]?.shape == [2, 4, 2, 2])
        let local = try build("\"attention\": \"local\"")
        #expect(
            local.namedParameters().map(\.name) == [
                "query.weight", "key.weight", "value.weight", "output.weight",
            ])
        // Glorot's bound over all heads together.
        for parameter in hashed.parameters() + local.parameters() {
            let largest = parameter.value.abs().maximum().item()
            #expect(largest <= (6.0 / 16).squareRoot() && largest > 0.8 * (6.0 / 16).squareRoot())
        }
    }
}
