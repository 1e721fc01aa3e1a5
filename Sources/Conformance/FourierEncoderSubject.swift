import SequenceMixers
import SequenceModels
import Torch

/// Golden files of the Fourier Transformer's blocks and encoders.
enum FourierEncoderSubject {
    static let variants = ["lra-encoder-block-cls", "lra-encoder-block-mean", "bart-encoder-global-residual"]

    static func evaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let x = try golden.tensor("x")
        guard x.rank == 3 else { throw ConfigurationError("x should be [batch, length, d_model], not \(x.shape)") }
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("d_model", x.size(2))
        _ = try golden.settings.double("dropout", or: 0, expecting: [0])
        let isBlock = golden.variant.hasPrefix("lra-")
        let configuration = try configuration(golden, modelDim: x.size(2), isBlock: isBlock)
        let shortening = try isBlock ? blockShortening(golden) : encoderShortening(golden.settings)
        let encoder = try FourierEncoder(configuration, shortening, using: RandomGenerator(seed: 0))
        let path = { (name: String) in isBlock ? blockPath(name) : encoderPath(name) }
        return GoldenEvaluation(encoder, parameterName: path) { inputs, usesReference in
            encoder.usesReference = usesReference
            return ["out": encoder(inputs[0], paddingMask: nil).output]
        }
    }

    private static func configuration(_ golden: GoldenCase, modelDim: Int, isBlock: Bool) throws -> ModelConfiguration {
        let settings = golden.settings
        var configuration = ModelConfiguration(mixer: try MixerConfiguration("softmax"))
        configuration.modelDim = modelDim
        configuration.layers = try isBlock ? 1 : settings.int("layers")
        configuration.heads = try settings.int("heads")
        configuration.feedForwardDim = try settings.int("ffn")
        configuration.position = .none
        configuration.finalNorm = false
        configuration.normEpsilon = try settings.optionalDouble("layer_norm_eps") ?? 1e-5
        let norm = try settings.string(
            "norm", or: isBlock ? "pre" : "post", expecting: isBlock ? ["pre"] : ["pre", "post"])
        configuration.norm = norm == "pre" ? .pre : .post
        try golden.check("head_dim", modelDim / max(configuration.heads, 1))
        return configuration
    }

    /// A filter after the block's norm; its residual is what the filter gives.
    private static func blockShortening(_ golden: GoldenCase) throws -> FourierShortening {
        let settings = golden.settings
        let isFirstKept = golden.variant.hasSuffix("-cls")
        _ = try settings.string(
            "pooling", or: isFirstKept ? "CLS" : "MEAN", expecting: [isFirstKept ? "CLS" : "MEAN"])
        var options = try filterOptions(settings)
        options.keepsFirst = isFirstKept
        let hasFilter = try settings.optionalBool("use_filter") ?? true
        return FourierShortening(
            layers: hasFilter ? [0] : [], filter: try options.makeFilter(), placement: .afterNorm,
            hasGlobalResidual: false)
    }

    private static func encoderShortening(_ settings: GoldenSettings) throws -> FourierShortening {
        FourierShortening(
            layers: try settings.ints("filter_layers"), filter: try filterOptions(settings).makeFilter(),
            hasGlobalResidual: try settings.bool("global_residual"))
    }

    private static func filterOptions(_ settings: GoldenSettings) throws -> FourierTransformerOptions {
        var options = FourierTransformerOptions()
        options.ratio = try settings.optionalDouble("ratio")
        options.kept = try settings.optionalInt("kept")
        return options
    }

    private static func blockPath(_ name: String) -> String {
        renamed(
            name,
            [
                ("mha.W_q.", "mixer.query."), ("mha.W_k.", "mixer.key."), ("mha.W_v.", "mixer.value."),
                ("mha.ff.", "mixer.output."), ("norm1.", "mixerNorm."), ("norm2.", "feedForwardNorm."),
                ("mlpblock.0.", "feedForward.up."), ("mlpblock.3.", "feedForward.down."),
            ], "blocks.0.")
    }

    /// `layer1.fc1.weight` → `blocks.1.feedForward.up.weight`
    private static func encoderPath(_ name: String) -> String {
        guard name.hasPrefix("layer"), let dot = name.firstIndex(of: ".") else { return name }
        let index = name[..<dot].dropFirst("layer".count)
        return renamed(
            String(name[name.index(after: dot)...]),
            [
                ("q.", "mixer.query."), ("k.", "mixer.key."), ("v.", "mixer.value."), ("o.", "mixer.output."),
                ("ln1.", "mixerNorm."), ("ln2.", "feedForwardNorm."), ("fc1.", "feedForward.up."),
                ("fc2.", "feedForward.down."),
            ], "blocks.\(index).")
    }

    private static func renamed(_ name: String, _ parts: [(theirs: String, ours: String)], _ prefix: String) -> String {
        guard let part = parts.first(where: { name.hasPrefix($0.theirs) }) else { return name }
        return prefix + part.ours + name.dropFirst(part.theirs.count)
    }
}
