import SequenceMixers
import SequenceModels
import Torch
import TorchNN

/// Golden files of the Reformer's reversible stack.
enum ReversibleSubject {
    static func evaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let x = try golden.tensor("x")
        guard x.rank == 3 else { throw ConfigurationError("x should be [batch, length, model_dim], not \(x.shape)") }
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        let kinds = try golden.settings.strings("layers")
        let configuration = try configuration(golden.settings, modelDim: x.size(2), layers: kinds.count)
        try golden.check("head_dim", configuration.modelDim / configuration.heads)
        let generator = RandomGenerator(seed: 0)
        let mixers = try kinds.enumerated().map { try mixer($1, $0, golden, configuration, generator) }
        if !kinds.contains("lsh") {
            golden.settings.describe(
                "rounds", "buckets", "logit_scale", "within_bucket", "unique_pairs", "key_norm_eps", "self_mask")
        }
        if !kinds.contains("local") { golden.settings.describe("wrap") }
        let encoder = SequenceEncoder(configuration, mixers: mixers, using: generator)
        let mask = try golden.paddingMask()
        return GoldenEvaluation(encoder, parameterName: rename) { inputs, usesReference in
            // The plain graph is what the one without activations is judged by.
            encoder.keepsActivations = usesReference
            for mixer in mixers { (mixer as? any ReferenceEvaluating)?.usesReference = usesReference }
            return ["out": encoder(inputs[0], paddingMask: mask)]
        }
    }

    private static func configuration(_ settings: GoldenSettings, modelDim: Int, layers: Int) throws
        -> ModelConfiguration
    {
        var configuration = ModelConfiguration(mixer: try MixerConfiguration("reformer"))
        configuration.modelDim = modelDim
        configuration.layers = layers
        configuration.heads = try settings.int("heads")
        configuration.feedForwardDim = try settings.int("ff_dim")
        configuration.normEpsilon = try settings.optionalDouble("layer_norm_eps") ?? 1e-12
        let activation = try settings.string("activation", or: "relu", expecting: ["relu", "gelu"])
        configuration.activation = activation == "relu" ? .relu : .gelu
        configuration.residual = ResidualConfiguration(.reversible)
        try configuration.validate()
        return configuration
    }

    private static func mixer(
        _ kind: String, _ index: Int, _ golden: GoldenCase, _ configuration: ModelConfiguration,
        _ generator: RandomGenerator
    ) throws -> any SequenceMixer {
        let (modelDim, heads) = (configuration.modelDim, configuration.heads)
        switch kind {
        case "lsh":
            let core = try LSHCore(golden, rotations: "rotations.\(index)")
            return LSHAttention(core, modelDim: modelDim, heads: heads, using: generator)
        case "local":
            let core = try LocalChunkCore(golden)
            return Attention(core, modelDim: modelDim, heads: heads, bias: false, using: generator)
        default: throw ConfigurationError("unknown layer '\(kind)'; known: lsh, local")
        }
    }

    private static let names = [
        ("attention.norm", "mixerNorm"), ("attention.w_qk", "mixer.queryKey.weight"),
        ("attention.w_q", "mixer.query.weight"), ("attention.w_k", "mixer.key.weight"),
        ("attention.w_v", "mixer.value.weight"), ("attention.w_o", "mixer.output.weight"),
        ("ff.norm", "feedForwardNorm"), ("ff.w1", "feedForward.up.weight"), ("ff.b1", "feedForward.up.bias"),
        ("ff.w2", "feedForward.down.weight"), ("ff.b2", "feedForward.down.bias"),
    ]

    /// `layers.0.attention.w_o` → `blocks.0.mixer.output.weight`, and so on.
    private static func rename(_ name: String) -> String {
        let path = name.hasPrefix("layers.") ? "blocks." + name.dropFirst("layers.".count) : name
        guard let (old, new) = names.first(where: { path.contains(".\($0.0)") }) else { return path }
        return path.replacing(old, with: new)
    }
}
