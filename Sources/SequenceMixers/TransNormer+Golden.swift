import Torch
import TorchNN

extension TransNormerOptions {
    /// Of one layer; whole models are the conformance runner's.
    static func goldenEvaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        try golden.expect(variants: ["norm-attention", "diag-attention", "transnormer-t1", "transnormer-t2"])
        let settings = golden.settings
        let x = try golden.tensor("x")
        let heads = try settings.int("heads")
        guard heads > 0, x.size(2).isMultiple(of: heads) else {
            throw ConfigurationError("model_dim \(x.size(2)) is not a multiple of heads \(heads)")
        }
        let isNorm = golden.variant == "norm-attention"
        let kind = isNorm ? "norm" : "diag"
        _ = try settings.string("attention", or: kind, expecting: [kind])
        _ = try settings.string("norm", or: "simple-rms", expecting: ["simple-rms"])
        _ = try settings.double("dropout", or: 0, expecting: [0])
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        try golden.check("head_dim", x.size(2) / heads)
        let (causal, epsilon) = (try settings.bool("causal"), try settings.optionalDouble("norm_eps") ?? 1e-8)
        let position = try settings.optionalBool("lrpe") ?? true ? TransNormerPositionKind.lrpe : .absent
        let generator = RandomGenerator(seed: 0)
        let layer: any TransNormerAttention & SequenceMixer
        if isNorm {
            layer = NormAttention(
                modelDim: x.size(2), heads: heads, isCausal: causal, activation: try named(settings, "activation"),
                position: position, epsilon: epsilon, using: generator)
        } else {
            let activation: DiagActivation = try named(settings, "activation")
            try check(settings, activation)
            layer = DiagAttention(
                modelDim: x.size(2), heads: heads, isCausal: causal, activation: activation,
                block: try settings.int("block"), position: position, epsilon: epsilon, using: generator)
        }
        if let reflection = layer.position.reflection { reflection.value = try golden.tensor("buffer.lrpe.v") }
        return try GoldenEvaluation(layer, paddingMask: golden.paddingMask(), parameterName: parameterName)
    }

    /// The golden files' name of a layer's parameter to ours.
    public static func parameterName(_ name: String) -> String {
        let parts = ["q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output", "lrpe": "position"]
        guard let dot = name.firstIndex(of: "."), let ours = parts[String(name[..<dot])] else { return name }
        return ours + name[dot...]
    }

    /// A choice by its name in a golden file's settings.
    public static func named<Choice: NamedChoice>(_ settings: GoldenSettings, _ key: String) throws -> Choice {
        let name = try settings.string(key)
        guard let choice = Choice(rawValue: name) else {
            let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
            throw ConfigurationError("setting '\(key)' is '\(name)'; known: \(known)")
        }
        return choice
    }

    /// Refuses a setting `softmax` that contradicts the activation of diagonal attention.
    public static func check(_ settings: GoldenSettings, _ activation: DiagActivation) throws {
        if let softmax = try settings.optionalBool("softmax"), softmax != (activation == .softmax) {
            throw ConfigurationError("setting 'softmax' is \(softmax), but the activation is '\(activation.rawValue)'")
        }
    }
}
