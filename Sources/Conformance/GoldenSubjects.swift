// Builds what a golden file describes around a mechanism's core: the core itself, a layer, or a whole encoder.
import SequenceMixers
import SequenceModels
import Torch
import TorchNN

enum GoldenCore {
    static func evaluate(
        _ core: any AttentionCore, _ golden: GoldenCase, _ usesReference: Bool,
        _ parameterName: @escaping (String) -> String
    ) throws -> GoldenResult {
        let (q, k, v) = (try golden.tensor("q"), try golden.tensor("k"), try golden.tensor("v"))
        let mask = try golden.paddingMask()
        try golden.check("batch", q.size(0))
        try golden.check("heads", q.size(1))
        try golden.check("head_dim", q.size(3))
        try golden.check("length", q.size(2))
        try golden.check("key_length", k.size(2))
        try golden.check("value_dim", v.size(3))
        let evaluation = GoldenEvaluation(core, inputs: ["q", "k", "v"], parameterName: parameterName) {
            let (q, k, v) = ($0[0], $0[1], $0[2])
            return ["out": $1 ? core.reference(q, k, v, paddingMask: mask) : core(q, k, v, paddingMask: mask)]
        }
        var result = try ModuleEvaluation.evaluate(evaluation, golden, usesReference)
        result.finalState = {
            guard let core = core as? any StreamingCore else {
                throw ConfigurationError("\(golden.system) does not stream")
            }
            return finalState(core, q, k, v, mask)
        }
        return result
    }

    private static func finalState<Core: StreamingCore>(
        _ core: Core, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?
    ) -> [String: Tensor] {
        var state = core.initialState(
            CoreShape(batch: q.size(0), heads: q.size(1), headDim: q.size(3), valueDim: v.size(3), dtype: q.dtype))
        _ = core.prefill(q, k, v, paddingMask: mask, state: &state)
        return state.tensors
    }
}

enum GoldenLayer {
    /// The golden files' names of a layer's parameters, and ours.
    static let names = [("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")]

    static func evaluate(_ core: any AttentionCore, _ golden: GoldenCase, _ usesReference: Bool) throws -> GoldenResult
    {
        let x = try golden.tensor("x")
        let heads = try golden.settings.int("heads")
        try golden.check("batch", x.size(0))
        try golden.check("model_dim", x.size(2))
        try golden.check("length", x.size(1))
        try golden.check("head_dim", x.size(2) / max(heads, 1))
        try golden.check("value_dim", x.size(2) / max(heads, 1))
        try golden.check("key_length", x.size(1))
        let layer = try make(
            core, x.size(2), heads, bias: golden.settings.optionalBool("bias") ?? true, usesReference,
            RandomGenerator(seed: 0))
        let mask = try golden.paddingMask()
        let evaluation = GoldenEvaluation(layer, paddingMask: mask, parameterName: rename)
        return try ModuleEvaluation.evaluate(evaluation, golden, usesReference)
    }

    static func make(
        _ core: any AttentionCore, _ modelDim: Int, _ heads: Int, bias: Bool, _ usesReference: Bool,
        _ generator: RandomGenerator
    ) throws -> any SequenceMixer {
        guard heads > 0, modelDim.isMultiple(of: heads) else {
            throw ConfigurationError("model_dim \(modelDim) is not a multiple of heads \(heads)")
        }
        func attention<Core: AttentionCore>(_ core: Core) -> any SequenceMixer {
            let layer = Attention(core, modelDim: modelDim, heads: heads, bias: bias, using: generator)
            layer.usesReference = usesReference
            return layer
        }
        return attention(core)
    }

    private static func rename(_ name: String) -> String {
        names.reduce(name) { $0.replacing("\($1.0).", with: "\($1.1).") }
    }
}

enum GoldenEncoder {
    static func evaluate(
        _ golden: GoldenCase, _ usesReference: Bool, _ makeCore: () throws -> any AttentionCore
    ) throws -> GoldenResult {
        let settings = golden.settings
        let x = try golden.tensor("x")
        let configuration = try configuration(golden, modelDim: x.size(2))
        let bias = try settings.optionalBool("bias") ?? true
        let generator = RandomGenerator(seed: 0)
        let mixers = try (0..<configuration.layers).map { _ in
            try GoldenLayer.make(
                makeCore(), configuration.modelDim, configuration.heads, bias: bias, usesReference, generator)
        }
        let encoder = SequenceEncoder(configuration, mixers: mixers, using: generator)
        let mask = try golden.paddingMask()
        // The authors' Long Range Arena model ends by clearing the padded positions.
        let clears = golden.variant.hasPrefix("lra-")
        let evaluation = GoldenEvaluation(encoder, parameterName: rename) { inputs, _ in
            let y = encoder(inputs[0], paddingMask: mask)
            guard clears, let mask else { return ["out": y] }
            return ["out": y * mask.to(y.dtype).unsqueezed(2)]
        }
        return try ModuleEvaluation.evaluate(evaluation, golden, usesReference)
    }

    private static func configuration(_ golden: GoldenCase, modelDim: Int) throws -> ModelConfiguration {
        let settings = golden.settings
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(golden.system))
        configuration.modelDim = modelDim
        configuration.layers = try settings.int("layers")
        configuration.heads = try settings.int("heads")
        configuration.feedForwardDim = try settings.int("ffn_dim")
        configuration.norm = try named("norm", settings.string("norm"))
        configuration.activation = try named("activation", settings.string("activation"))
        configuration.normEpsilon = try settings.optionalDouble("layer_norm_eps") ?? 1e-5
        configuration.finalNorm = try settings.optionalBool("final_norm") ?? true
        configuration.residual = try residual(settings)
        try golden.check("batch", golden.tensor("x").size(0))
        try golden.check("model_dim", modelDim)
        try golden.check("head_dim", modelDim / max(configuration.heads, 1))
        try golden.check("value_dim", modelDim / max(configuration.heads, 1))
        try golden.check("key_length", golden.tensor("x").size(1))
        try golden.check("length", golden.tensor("x").size(1))
        try configuration.validate()
        return configuration
    }

    private static func residual(_ settings: GoldenSettings) throws -> ResidualConfiguration {
        guard let name = try settings.optionalString("residual") else { return ResidualConfiguration() }
        return ResidualConfiguration(
            try named("residual", name), momentum: try settings.optionalDouble("residual_momentum"),
            stepSize: try settings.optionalDouble("residual_step_size"),
            delta: try settings.optionalDouble("residual_delta"))
    }

    private static func named<Value: RawRepresentable<String>>(_ key: String, _ name: String) throws -> Value {
        guard let value = Value(rawValue: name) else { throw ConfigurationError("unknown \(key) '\(name)'") }
        return value
    }

    /// `layer0.q_proj.weight` → `blocks.0.mixer.query.weight`, and so on.
    private static func rename(_ name: String) -> String {
        guard name.hasPrefix("layer"), let dot = name.firstIndex(of: ".") else { return name }
        let index = name[name.index(name.startIndex, offsetBy: 5)..<dot]
        let parts =
            GoldenLayer.names.map { ($0.0, "mixer.\($0.1)") } + [
                ("norm1", "mixerNorm"), ("norm2", "feedForwardNorm"), ("ffn.fc1", "feedForward.up"),
                ("ffn.fc2", "feedForward.down"),
            ]
        let rest = String(name[name.index(after: dot)...])
        let renamed = parts.first { rest.hasPrefix($0.0 + ".") }.map { $0.1 + rest.dropFirst($0.0.count) } ?? rest
        return "blocks.\(index).\(renamed)"
    }
}

/// Loads a golden file's parameters into a module and evaluates outputs and gradients.
enum ModuleEvaluation {
    static func evaluate(_ evaluation: GoldenEvaluation, _ golden: GoldenCase, _ usesReference: Bool) throws
        -> GoldenResult
    {
        _ = try golden.settings.optionalString("kind")
        let inputs = try evaluation.inputs.map { try golden.tensor($0).requiringGrad() }
        let names = try load(evaluation, golden, inputs.first?.dtype)
        let outputs = try evaluation.outputs(inputs, usesReference)
        return GoldenResult(
            outputs: outputs, gradients: try gradients(evaluation, golden, inputs, names, of: outputs["out"])
        ) { throw ConfigurationError("a final state belongs to a core") }
    }

    /// Returns the names of the file's parameters.
    private static func load(_ evaluation: GoldenEvaluation, _ golden: GoldenCase, _ dtype: DType?) throws -> [String] {
        guard let module = evaluation.module else { return [] }
        if let dtype { module.to(dtype) }
        let given = golden.tensors(prefixed: "param.")
        var tensors: [String: Tensor] = [:]
        for (name, tensor) in given { tensors[evaluation.parameterName(name)] = tensor }
        // Random features and the like were given when the module was made.
        for (name, buffer) in module.namedBuffers() where buffer.isPersistent { tensors[name] = buffer.value }
        _ = try module.load(tensors, matching: .strict)
        return given.keys.sorted()
    }

    private static func gradients(
        _ evaluation: GoldenEvaluation, _ golden: GoldenCase, _ inputs: [Tensor], _ names: [String], of out: Tensor?
    ) throws -> [String: Tensor] {
        guard let out else { return [:] }
        let cotangent = try golden.tensor("cotangent")
        let own = evaluation.module?.namedParameters() ?? []
        let byName = Dictionary(uniqueKeysWithValues: own.map { ($0.name, $0.parameter.value) })
        let parameters = names.compactMap { byName[evaluation.parameterName($0)] }
        let found = Torch.gradients(of: [out], weightedBy: [cotangent], withRespectTo: inputs + parameters)
        var result: [String: Tensor] = [:]
        for (name, gradient) in zip(evaluation.inputs + names.map { "param.\($0)" }, found) { result[name] = gradient }
        return result
    }
}
