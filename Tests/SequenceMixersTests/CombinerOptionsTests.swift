import SequenceMixers
import Testing
import Torch

/// Every refusal of the Combiner's settings, by its text.
@Suite struct CombinerOptionsTests {
    private func build(_ json: String, causal: Bool, maximumLength: Int? = nil) throws -> any SequenceMixer {
        try MixerConfiguration("combiner", json: json).build(.small(causal: causal, maximumLength: maximumLength))
    }

    @Test(arguments: [
        ("\"span\": 0", true, "combiner: span must be above 0, not 0"),
        ("\"variant\": \"mixture\", \"columns\": -3", true, "combiner: columns must be above 0, not -3"),
        (
            "\"variant\": \"axial-rowmajor\", \"normEpsilon\": -1", true,
            "combiner: normEpsilon must be finite and not negative, is -1.0"
        ),
        ("\"columns\": 4", true, "combiner: variant 'fixed' takes no columns"),
        ("\"variant\": \"logsparse\", \"span\": 4", true, "combiner: variant 'logsparse' takes no span"),
        ("\"combine\": \"joint\"", true, "combiner: variant 'fixed' takes no combine"),
        ("\"keySummary\": \"wsum\"", true, "combiner: variant 'fixed' takes no keySummary"),
        (
            "\"variant\": \"axial-rowmajor\", \"summary\": \"relu-max\"", true,
            "combiner: variant 'axial-rowmajor' takes no summary"
        ),
        (
            "\"variant\": \"axial-vertical\", \"normEpsilon\": 1e-5", true,
            "combiner: variant 'axial-vertical' takes no normEpsilon"
        ),
        (
            "\"variant\": \"axial-rowmajor\", \"keySummary\": \"none\", \"normEpsilon\": 1e-5", true,
            "combiner: normEpsilon belongs to keySummary 'proj', not 'none'"
        ),
        (
            "\"variant\": \"axial-horizontal\", \"includeOwnRow\": true", false,
            "combiner: variant 'axial-horizontal' takes no includeOwnRow"
        ),
        ("\"includeOwnSpan\": true", true, "combiner: includeOwnSpan would show a causal query what comes after it"),
        (
            "\"variant\": \"axial-rowmajor\", \"includeOwnRow\": true", true,
            "combiner: includeOwnRow would show a causal query what comes after it"
        ),
        (
            "\"variant\": \"logsparse\"", false,
            "combiner: variant 'logsparse' looks back only; it has no bidirectional form"
        ),
    ]) func refusals(_ json: String, _ causal: Bool, _ text: String) {
        #expect(throws: ConfigurationError(text)) { try build(json, causal: causal) }
    }

    @Test func spansFollowTheModelsLength() throws {
        func pattern(_ json: String, _ maximumLength: Int?) throws -> CombinerPattern {
            let layer = try build(json, causal: true, maximumLength: maximumLength)
            return try #require(layer as? Attention<CombinerCore>).core.pattern
        }
        #expect(try pattern("\"variant\": \"fixed\"", nil) == .fixed(span: 64))
        #expect(try pattern("\"variant\": \"fixed\"", 2000) == .fixed(span: 45))
        #expect(try pattern("\"variant\": \"fixed\", \"span\": 3", 2000) == .fixed(span: 3))
        #expect(try pattern("\"variant\": \"mixture\"", 100) == .mixture(columns: 10, .joint))
    }

    @Test func whatHasNoFormTraps() throws {
        let generator = RandomGenerator(seed: 1)
        for (pattern, isCausal) in [
            (.logsparse, false), (.fixed(span: 3, includesOwnSpan: true), true), (.fixed(span: 0), true),
            (.axialRowmajor(columns: 3, .proj), true),
        ] as [(CombinerPattern, Bool)] {
            #expect(throws: TorchError.self, "\(pattern)") {
                try withTorchErrors {
                    _ = CombinerCore(pattern, isCausal: isCausal, headDim: 4, using: generator)
                }
            }
        }
    }
}
