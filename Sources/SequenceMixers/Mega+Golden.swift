// Builds what a golden file of `mega` describes.
import Torch

extension MegaOptions {
    /// The average alone, or a layer or block, by the file's variant.
    static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        let layers = ["softmax", "laplace", "relu2"].flatMap { function in
            ["causal", "bidirectional"].flatMap { ["mega-\(function)-\($0)", "mega-chunk-\(function)-\($0)"] }
        }
        try golden.expect(variants: ["ema-causal", "ema-bidirectional"] + layers)
        let x = try golden.tensor("x")
        try golden.check("d_model", x.size(2))
        try golden.check("length", x.size(1))
        _ = try golden.settings.double("dropout", or: 0, expecting: [0])
        // In these files 1 marks padding.
        let mask = golden.optionalTensor("padding_mask").map { $0 .== 0 }
        if golden.variant.hasPrefix("ema-") { return .evaluation(try goldenAverage(golden, x, mask)) }
        let mega = Mega(try goldenSettings(golden, x), using: RandomGenerator(seed: 0))
        return .evaluation(GoldenEvaluation(mega, paddingMask: mask, parameterName: parameterName))
    }

    private static func goldenAverage(_ golden: GoldenCase, _ x: Tensor, _ mask: Tensor?) throws -> GoldenEvaluation {
        let settings = golden.settings
        let ema = MegaEMA(
            modelDim: x.size(2), emaDim: try settings.int("n_dim"), isBidirectional: try settings.bool("bidirectional"),
            truncation: try settings.optionalInt("truncation"), using: RandomGenerator(seed: 0))
        let hasState = golden.optionalTensor("final_state") != nil
        let name = { (name: String) in String(parameterName(name).dropFirst("ema.".count)) }
        return GoldenEvaluation(ema, parameterName: name) { inputs, usesReference in
            var outputs = ["out": ema(inputs[0], paddingMask: mask, form: usesReference ? .recurrent : nil)]
            if hasState {
                outputs["final_state"] = ema.state(
                    after: inputs[0], paddingMask: mask, form: usesReference ? .recurrent : .scan)
            }
            return outputs
        }
    }

    private static func goldenSettings(_ golden: GoldenCase, _ x: Tensor) throws -> Mega.Settings {
        let settings = golden.settings
        func choice<Choice>(_ key: String, _ names: [String: Choice]) throws -> Choice {
            let name = try settings.string(key, or: "", expecting: names.keys.sorted())
            guard let choice = names[name] else { throw ConfigurationError("unknown \(key) '\(name)'") }
            return choice
        }
        // -1 stands for none.
        let chunk = try settings.optionalInt("chunk").flatMap { $0 > 0 ? $0 : nil }
        let isCausal = try settings.bool("causal_attention")
        var result = Mega.Settings(
            modelDim: x.size(2), queryDim: try settings.int("z_dim"), valueDim: try settings.int("v_dim"), chunk: chunk,
            maximumLength: try settings.optionalInt("max_positions") ?? chunk ?? x.size(1), isCausal: isCausal)
        result.isBidirectional = try settings.bool("bidirectional")
        result.emaDim = try settings.int("n_dim")
        result.attention = try choice(
            "attn_fn", Dictionary(uniqueKeysWithValues: MegaAttentionFunction.allCases.map { ($0.rawValue, $0) }))
        result.relativeBias = try choice(
            "rel_pos", Dictionary(uniqueKeysWithValues: MegaBias.allCases.map { ($0.rawValue, $0) }))
        // A file has no place for the running averages of a batch norm.
        result.norm = try choice(
            "norm", ["layernorm": .layerNorm, "scalenorm": .scaleNorm, "rmsnorm": MegaNorm.rmsNorm])
        result.isPrenorm = try settings.bool("prenorm")
        result.feedForwardDim = try settings.optionalInt("ffn_dim") ?? 0
        result.truncation = try settings.optionalInt("truncation")
        try checkVariant(golden.variant, result)
        return result
    }

    /// Refuses settings that contradict the variant's name.
    private static func checkVariant(_ variant: String, _ settings: Mega.Settings) throws {
        let words = [
            "mega", settings.chunk == nil ? nil : "chunk", settings.attention.rawValue,
            settings.hasCausalAttention ? "causal" : "bidirectional",
        ]
        let name = words.compactMap { $0 }.joined(separator: "-")
        guard name == variant else {
            throw ConfigurationError("the settings are those of '\(name)', but the variant is '\(variant)'")
        }
    }

    /// The golden files' names of parameters, or how they begin, and ours.
    private static func parameterName(_ name: String) -> String {
        let beginnings = [
            ("ema.alpha_logit", "ema.alphaLogit"), ("ema.delta_logit", "ema.deltaLogit"), ("v.", "value."),
            ("z.", "shared."), ("qk.scale", "queryKeyScale"), ("qk.offset", "queryKeyOffset"),
            ("update_gate.", "updateGate."), ("reset_gate.", "resetGate."), ("h_x.", "candidateFromAverage."),
            ("h_o.", "candidateFromAttention."), ("rel_pos.", "attention.relativeBias."),
            ("ffn.fc1.", "feedForward.up."), ("ffn.fc2.", "feedForward.down."), ("ffn.norm.", "feedForward.norm."),
        ]
        guard let (theirs, ours) = beginnings.first(where: { name.hasPrefix($0.0) }) else { return name }
        return ours + name.dropFirst(theirs.count)
    }
}
