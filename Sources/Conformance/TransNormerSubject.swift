// TransNormer's two models as golden files have them: diagonal attention, then norm attention, each block with a gated
// feed-forward layer, and norms without weights.
import SequenceMixers
import SequenceModels
import Torch
import TorchNN

enum TransNormerSubject {
    static func evaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let x = try golden.tensor("x")
        let configuration = try configuration(golden, x)
        let mixers = try mixers(golden, configuration)
        let encoder = SequenceEncoder(configuration, mixers: mixers, using: RandomGenerator(seed: 0))
        let mask = try golden.paddingMask()
        return GoldenEvaluation(encoder, parameterName: rename) { inputs, usesReference in
            for block in encoder.blocks { (block.mixer as? any ReferenceEvaluating)?.usesReference = usesReference }
            return ["out": encoder(inputs[0], paddingMask: mask)]
        }
    }

    private static func configuration(_ golden: GoldenCase, _ x: Tensor) throws -> ModelConfiguration {
        let settings = golden.settings
        var configuration = ModelConfiguration(mixer: try MixerConfiguration("transnormer"))
        configuration.layers = try settings.int("layers")
        configuration.modelDim = x.size(2)
        configuration.heads = try settings.int("heads")
        configuration.feedForwardDim = try settings.optionalInt("glu_dim")
        configuration.gatedFeedForward = true
        configuration.activation =
            settings.contains("glu_activation") ? try TransNormerOptions.named(settings, "glu_activation") : .silu
        configuration.norm = try settings.optionalBool("prenorm") ?? true ? .pre : .post
        _ = try settings.string("norm", or: "simple-rms", expecting: ["simple-rms"])
        configuration.normalization = .simpleRMSNorm
        configuration.normEpsilon = try settings.optionalDouble("norm_eps") ?? 1e-8
        configuration.finalNorm = try settings.optionalBool("final_norm") ?? true
        _ = try settings.double("dropout", or: 0, expecting: [0])
        try configuration.validate()
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        try golden.check("head_dim", x.size(2) / configuration.heads)
        return configuration
    }

    private static func mixers(_ golden: GoldenCase, _ configuration: ModelConfiguration) throws
        -> [any SequenceMixer]
    {
        let settings = golden.settings
        let variant: TransNormerVariant = golden.variant == "transnormer-t1" ? .t1 : .t2
        let name = variant.rawValue.uppercased()
        _ = try settings.string("variant", or: name, expecting: [name])
        let norm: TransNormerActivation =
            settings.contains("norm_activation")
            ? try TransNormerOptions.named(settings, "norm_activation") : variant.normActivation
        let diag: DiagActivation =
            settings.contains("diag_activation")
            ? try TransNormerOptions.named(settings, "diag_activation") : variant.diagActivation
        try TransNormerOptions.check(settings, diag)
        let diagonal = try settings.optionalInt("diag_layers") ?? configuration.layers / 2
        guard (0...configuration.layers).contains(diagonal) else {
            throw ConfigurationError("setting 'diag_layers' is \(diagonal), of \(configuration.layers) layers")
        }
        let (causal, block) = (try settings.bool("causal"), try settings.optionalInt("block") ?? 64)
        let position = try settings.optionalBool("lrpe") ?? true ? TransNormerPositionKind.lrpe : .absent
        let generator = RandomGenerator(seed: 0)
        return try (0..<configuration.layers).map { layer in
            let mixer: any TransNormerAttention & SequenceMixer =
                layer < diagonal
                ? DiagAttention(
                    modelDim: configuration.modelDim, heads: configuration.heads, isCausal: causal, activation: diag,
                    block: block, position: position, epsilon: configuration.normEpsilon, using: generator)
                : NormAttention(
                    modelDim: configuration.modelDim, heads: configuration.heads, isCausal: causal, activation: norm,
                    position: position, epsilon: configuration.normEpsilon, using: generator)
            if let reflection = mixer.position.reflection {
                reflection.value = try golden.tensor("buffer.layer\(layer).attn.lrpe.v")
            }
            return mixer
        }
    }

    /// `layer0.attn.q_proj.weight` → `blocks.0.mixer.query.weight`, and so on.
    private static func rename(_ name: String) -> String {
        let parts = name.split(separator: ".", maxSplits: 2).map(String.init)
        guard parts.count == 3, parts[0].hasPrefix("layer") else { return name }
        let block = "blocks.\(parts[0].dropFirst(5))"
        if parts[1] == "attn" { return "\(block).mixer.\(TransNormerOptions.parameterName(parts[2]))" }
        let gated = ["l1": "gate", "l2": "up", "l3": "down"]
        guard parts[1] == "glu", let dot = parts[2].firstIndex(of: "."), let ours = gated[String(parts[2][..<dot])]
        else { return name }
        return "\(block).feedForward.\(ours)\(parts[2][dot...])"
    }
}
