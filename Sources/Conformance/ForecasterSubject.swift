import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// Golden files of SAMformer: whole forecasters, and steps of training them with SAM.
enum ForecasterSubject {
    static func evaluation(_ golden: GoldenCase) throws -> GoldenEvaluation {
        try golden.expect(variants: ["paper", "pytorch-demo", "sam-optimizer"])
        let isTraining = golden.variant == "sam-optimizer"
        let x = try golden.tensor("x")
        guard x.rank == (isTraining ? 4 : 3) else {
            throw ConfigurationError("x should have \(isTraining ? 4 : 3) dimensions, not the shape \(x.shape)")
        }
        try golden.check("channels", x.size(-2))
        try golden.check("lookback", x.size(-1))
        let forecaster = try forecaster(golden, channels: x.size(-2), lookback: x.size(-1))
        if isTraining { return try training(golden, forecaster, x) }
        try golden.check("batch", x.size(0))
        return GoldenEvaluation(forecaster, parameterName: path) { inputs, usesReference in
            forecaster.usesReference = usesReference
            return ["out": forecaster(inputs[0])]
        }
    }

    private static func forecaster(_ golden: GoldenCase, channels: Int, lookback: Int) throws -> Forecaster {
        let settings = golden.settings
        let form = try settings.string("variant", or: golden.variant, expecting: ["paper", "pytorch-demo"])
        guard golden.variant == "sam-optimizer" || golden.variant == form else {
            throw ConfigurationError("setting 'variant' is '\(form)', the file's variant '\(golden.variant)'")
        }
        let options = SamformerOptions(
            form: form == "paper" ? .paper : .pytorchDemo, attentionDim: try settings.int("d_attn"))
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(golden.system, options))
        configuration.layers = 1
        configuration.modelDim = lookback
        configuration.heads = 1
        configuration.feedForwardDim = 0
        configuration.finalNorm = false
        configuration.position = .none
        let (epsilon, inverse) = (
            try settings.optionalDouble("revin_eps") ?? 1e-5, try settings.optionalDouble("denorm_eps") ?? 0
        )
        let hasNorm = try settings.bool("use_revin")
        let norm =
            hasNorm ? ReversibleInstanceNorm(channels, epsilon: epsilon, inverseEpsilon: inverse) : nil
        return try Forecaster(
            configuration,
            ForecastShape(channels: channels, lookback: lookback, horizon: try settings.int("horizon")), norm: norm,
            using: RandomGenerator(seed: 0))
    }

    /// Steps of SAM around Adam on the batches `x[t]`, `y[t]`: each step's loss, the norm of the first gradient, and
    /// what becomes of the parameters.
    private static func training(_ golden: GoldenCase, _ forecaster: Forecaster, _ x: Tensor) throws -> GoldenEvaluation
    {
        let (settings, y) = (golden.settings, try golden.tensor("y"))
        try golden.check("steps", x.size(0))
        _ = try settings.string(
            "loss", or: "mean squared error over all elements", expecting: ["mean squared error over all elements"])
        let decay = "L2 added to the gradient (torch.optim.Adam)"
        _ = try settings.string("weight_decay_kind", or: decay, expecting: [decay])
        let betas = try settings.array("betas").map { value -> Double in
            guard case .number(let number) = value, (0..<1).contains(number) else {
                throw ConfigurationError("setting 'betas' should be two numbers from 0 to 1")
            }
            return number
        }
        guard betas.count == 2 else { throw ConfigurationError("setting 'betas' should be two numbers from 0 to 1") }
        let (rate, rho) = (try settings.double("lr"), try settings.double("rho"))
        let epsilon = try settings.optionalDouble("adam_eps") ?? 1e-8
        let weightDecay = try settings.optionalDouble("weight_decay") ?? 0
        return GoldenEvaluation(forecaster, parameterName: path) { inputs, usesReference in
            forecaster.usesReference = usesReference
            let adam = Adam(
                forecaster.namedParameters(), learningRate: rate, betas: (betas[0], betas[1]), epsilon: epsilon,
                weightDecay: weightDecay)
            let sam = SAM(adam, forecaster.parameters(), rho: rho)
            var norms: [Tensor] = []
            let losses = (0..<x.size(0)).map { step in
                let (past, future) = (inputs[0].detached().selected(0, step), y.selected(0, step))
                return sam.step {
                    sam.zeroGradients()
                    let loss = (forecaster(past) - future).square().mean()
                    loss.backward()
                    norms.append(globalNorm(forecaster.parameters().compactMap(\.grad)))
                    return loss.detached()
                }
            }
            var outputs = ["losses": stack(losses)]
            if let first = norms.first { outputs["grad_first.norm"] = first.unsqueezed(0) }
            for (name, value) in finalValues(golden, forecaster) { outputs["final.\(name)"] = value }
            return outputs
        }
    }

    private static func finalValues(_ golden: GoldenCase, _ forecaster: Forecaster) -> [String: Tensor] {
        let values = Dictionary(
            uniqueKeysWithValues: forecaster.namedParameters().map { ($0.name, $0.parameter.value.detached()) })
        let names = golden.tensors(prefixed: "param.").keys
        return Dictionary(uniqueKeysWithValues: names.compactMap { name in values[path(name)].map { (name, $0) } })
    }

    private static func path(_ name: String) -> String {
        let parts = [
            ("revin.", "norm."), ("forecaster.", "head."), ("queries.", "encoder.blocks.0.mixer.query."),
            ("keys.", "encoder.blocks.0.mixer.key."), ("values.", "encoder.blocks.0.mixer.value."),
            ("attn_out.", "encoder.blocks.0.mixer.output."),
        ]
        let part = parts.first { name.hasPrefix($0.0) }
        return part.map { $0.1 + name.dropFirst($0.0.count) } ?? name
    }
}
