// How Sparse-MLP stands in the catalogue, and its golden files.
import Torch
import TorchNN

/// Options of `sparse-mlp` in a recipe. The mixer is a whole block: give the model `feedForwardDim: 0`.
public struct SparseMLPOptions: MixerOptions {
    /// How many blocks at the end of the stack are sparse, the others being those of MLP-Mixer; left out, all.
    public var sparseBlocks: Int?
    /// N and k of the token stage.
    public var tokenExperts = 4
    public var tokenChoices = 1
    /// h_S; left out, half the model's width.
    public var tokenHiddenDim: Int?
    /// N and k of the channel stage.
    public var channelExperts = 4
    public var channelChoices = 2
    /// h_C; left out, four times the model's width.
    public var channelHiddenDim: Int?
    /// Whether the token stage works in a representation of its own.
    public var reRepresent = true
    /// S₁ and C₁ of it; left out, twice the length and half the width.
    public var representedLength: Int?
    public var representedDim: Int?
    /// Room of an expert in shares of an even distribution; left out, there is no limit.
    public var capacityFactor: Double?
    /// Whether the items with the largest weight are served first where room is limited.
    public var batchPriority = false
    /// Whether the choice is disturbed by noise in training.
    public var noise = true
    /// λ of the balance losses; 0 for none.
    public var balance = 0.01
    public var activation: Activation = .gelu
    /// Of the norms.
    public var epsilon = 1e-6
    /// S, the one length of all sequences; left out, the model's maximum length.
    public var length: Int?

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        sparseBlocks = try container.decodeIfPresent(Int.self, forKey: .sparseBlocks)
        tokenExperts = try container.value(.tokenExperts, default: tokenExperts)
        tokenChoices = try container.value(.tokenChoices, default: tokenChoices)
        tokenHiddenDim = try container.decodeIfPresent(Int.self, forKey: .tokenHiddenDim)
        channelExperts = try container.value(.channelExperts, default: channelExperts)
        channelChoices = try container.value(.channelChoices, default: channelChoices)
        channelHiddenDim = try container.decodeIfPresent(Int.self, forKey: .channelHiddenDim)
        reRepresent = try container.value(.reRepresent, default: reRepresent)
        representedLength = try container.decodeIfPresent(Int.self, forKey: .representedLength)
        representedDim = try container.decodeIfPresent(Int.self, forKey: .representedDim)
        capacityFactor = try container.decodeIfPresent(Double.self, forKey: .capacityFactor)
        batchPriority = try container.value(.batchPriority, default: batchPriority)
        noise = try container.value(.noise, default: noise)
        balance = try container.value(.balance, default: balance)
        activation = try container.value(.activation, default: activation)
        epsilon = try container.value(.epsilon, default: epsilon)
        length = try container.decodeIfPresent(Int.self, forKey: .length)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        try validate()
        let (length, modelDim) = (try buildLength(context), context.modelDim)
        let generator = context.generator
        let (tokenHidden, channelHidden) = (tokenHiddenDim ?? max(1, modelDim / 2), channelHiddenDim ?? 4 * modelDim)
        if let sparseBlocks, context.layer < context.layers - sparseBlocks {
            return DenseMLP(
                length: length, modelDim: modelDim, tokenHiddenDim: tokenHidden, channelHiddenDim: channelHidden,
                activation: activation, epsilon: epsilon, using: generator)
        }
        let represented = SparseMLP.Grid(
            length: representedLength ?? 2 * length, modelDim: representedDim ?? max(1, modelDim / 2))
        func experts(_ dim: Int, _ hiddenDim: Int, _ count: Int, _ choices: Int) -> MixtureOfExperts {
            MixtureOfExperts(
                dim, hiddenDim: hiddenDim, experts: count, choices: choices,
                capacity: capacityFactor.map { .factor($0) } ?? .unlimited, hasPriority: batchPriority,
                isNoisy: noise, activation: activation, using: generator)
        }
        return SparseMLP(
            SparseMLP.Grid(length: length, modelDim: modelDim), represented: reRepresent ? represented : nil,
            tokenExperts: experts(
                reRepresent ? represented.length : length, tokenHidden, tokenExperts, tokenChoices),
            channelExperts: experts(modelDim, channelHidden, channelExperts, channelChoices), balance: balance,
            epsilon: epsilon, using: generator)
    }

    private func validate() throws {
        let sizes: [(name: String, value: Int?)] = [
            ("sparseBlocks", sparseBlocks), ("tokenExperts", tokenExperts), ("tokenChoices", tokenChoices),
            ("tokenHiddenDim", tokenHiddenDim), ("channelExperts", channelExperts),
            ("channelChoices", channelChoices), ("channelHiddenDim", channelHiddenDim),
            ("representedLength", representedLength), ("representedDim", representedDim), ("length", length),
        ]
        for (name, value) in sizes {
            if let value, !(1...1_000_000).contains(value) {
                throw ConfigurationError("sparse-mlp: \(name) must be from 1 to 1000000, not \(value)")
            }
        }
        for (name, choices, experts) in [
            ("token", tokenChoices, tokenExperts), ("channel", channelChoices, channelExperts),
        ] where choices > experts {
            throw ConfigurationError("sparse-mlp: \(name)Choices \(choices) is above the \(experts) \(name)Experts")
        }
        if let capacityFactor, !(capacityFactor > 0 && capacityFactor <= 1e6) {
            throw ConfigurationError(
                "sparse-mlp: capacityFactor must be above 0 and at most 1e6, not \(capacityFactor)")
        }
        guard balance >= 0, balance.isFinite else {
            throw ConfigurationError("sparse-mlp: balance must be finite and not negative, is \(balance)")
        }
        guard epsilon > 0, epsilon.isFinite else {
            throw ConfigurationError("sparse-mlp: epsilon must be above 0, not \(epsilon)")
        }
        try refuseIgnored()
    }

    private func refuseIgnored() throws {
        if batchPriority && capacityFactor == nil {
            throw ConfigurationError("sparse-mlp: batchPriority would be ignored without a capacityFactor")
        }
        for (name, isGiven) in [
            ("representedLength", representedLength != nil), ("representedDim", representedDim != nil),
        ] where isGiven && !reRepresent {
            throw ConfigurationError("sparse-mlp: \(name) would be ignored with reRepresent: false")
        }
    }

    private func buildLength(_ context: MixerContext) throws -> Int {
        guard let length = length ?? context.maximumLength else {
            throw ConfigurationError(
                "sparse-mlp: its weights are for positions, so it needs the length of all sequences")
        }
        if let most = context.maximumLength, length != most {
            throw ConfigurationError("sparse-mlp: length \(length) is not the model's \(most)")
        }
        return length
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "sparse-mlp", title: "Sparse-MLP",
        paper: Paper(
            "Cross-token Modeling with Conditional Computation", authors: "Lou et al.", year: 2021,
            arXiv: "2109.02008"),
        causal: false, bidirectional: true, padding: true, crossAttention: false, streaming: .none,
        time: "O(N² D)", memory: "O(N D)",
        remark: """
            A whole block, to be used with feedForwardDim 0, for sequences of one length, such as the patches of an \
            image. Without re-represent layers it takes O(N D h) time for experts of h hidden values. With a \
            capacityFactor the sequences of a batch compete for the experts. Capacity and priority are those of V-MoE, \
            on which the paper builds, and the order of the re-represent layers is a reading: there is no public code.
            """,
        options: SparseMLPOptions.self, golden: { try goldenSubject($0) })
}

// MARK: - Golden files

extension SparseMLPOptions {
    private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        let block = try goldenBlock(golden)
        let tokenNoise = try goldenNoise(golden, "noise_s", block.tokenExperts)
        let channelNoise = try goldenNoise(golden, "noise_c", block.channelExperts)
        return .evaluation(
            GoldenEvaluation(block, parameterName: parameterName) { inputs, usesReference in
                block.usesReference = usesReference
                let (out, token, channel) = block.evaluated(
                    inputs[0], tokenNoise: tokenNoise, channelNoise: channelNoise)
                var outputs = ["out": out]
                for (name, routing) in [("s", token), ("c", channel)] {
                    outputs["moe_\(name).combine"] = routing.combination
                    outputs["moe_\(name).expert_index"] = routing.experts
                    outputs["moe_\(name).kept"] = routing.isKept.to(.int64)
                }
                outputs["aux.token"] = stack([token.importanceLoss, token.loadLoss])
                outputs["aux.channel"] = stack([channel.importanceLoss, channel.loadLoss])
                let total = block.balanceLoss(token) + block.balanceLoss(channel)
                outputs["aux.total"] = total.unsqueezed(0)
                let gates = [block.tokenExperts.gate.value, block.channelExperts.gate.value]
                let found = gradients(of: [total], withRespectTo: gates, keepGraph: true)
                for (name, gradient) in zip(["s", "c"], found) {
                    outputs["grad_aux.param.moe_\(name).gate"] = gradient
                }
                return outputs
            })
    }

    private static func goldenBlock(_ golden: GoldenCase) throws -> SparseMLP {
        let variants = ["sparse-block", "sparse-block-no-re-represent"]
        try golden.expect(variants: variants)
        let settings = golden.settings
        let x = try golden.tensor("x")
        guard x.rank == 3 else { throw ConfigurationError("x should be [batch, patches, channels], not \(x.shape)") }
        try golden.check("batch", x.size(0))
        try golden.check("patches", x.size(1))
        try golden.check("channels", x.size(2))
        let (length, dim) = (try settings.int("S1"), try settings.int("C1"))
        guard length > 0, dim > 0 else { throw ConfigurationError("S1 \(length) and C1 \(dim) should be above 0") }
        let isRepresented = golden.variant == variants[0]
        guard isRepresented || (length == x.size(1) && dim == x.size(2)) else {
            throw ConfigurationError("S1 \(length) and C1 \(dim) need re-represent layers, which the variant has not")
        }
        if try settings.bool("renormalise_top_k") {
            throw ConfigurationError(
                "setting 'renormalise_top_k' is true; the paper's weights are not normalized again")
        }
        _ = try settings.string("routing_group", or: "whole batch", expecting: ["whole batch"])
        if (try? settings.string("noise_std")) == nil {
            _ = try settings.double("noise_std", or: 0, expecting: [0])
        } else {
            _ = try settings.string("noise_std", or: "", expecting: ["1/experts"])
        }
        return SparseMLP(
            SparseMLP.Grid(length: x.size(1), modelDim: x.size(2)),
            represented: isRepresented ? SparseMLP.Grid(length: length, modelDim: dim) : nil,
            tokenExperts: try goldenExperts(settings, "token", length),
            channelExperts: try goldenExperts(settings, "channel", x.size(2)),
            epsilon: try settings.optionalDouble("norm_eps") ?? 1e-6, using: RandomGenerator(seed: 0))
    }

    private static func goldenExperts(_ settings: GoldenSettings, _ stage: String, _ dim: Int) throws
        -> MixtureOfExperts
    {
        let hiddenDim = try settings.int("hidden_\(stage)")
        let (experts, choices) = (try settings.int("experts_\(stage)"), try settings.int("k_\(stage)"))
        guard hiddenDim > 0, choices > 0, choices <= experts else {
            throw ConfigurationError(
                "hidden_\(stage) \(hiddenDim), experts_\(stage) \(experts) and k_\(stage) \(choices) do not fit together"
            )
        }
        let capacity = try settings.optionalInt("capacity_\(stage)")
        if let capacity, capacity < 0 {
            throw ConfigurationError("setting 'capacity_\(stage)' should not be negative, is \(capacity)")
        }
        return MixtureOfExperts(
            dim, hiddenDim: hiddenDim, experts: experts, choices: choices,
            capacity: capacity.map { .count($0) } ?? .unlimited, hasPriority: try settings.bool("batch_priority"),
            activation: try goldenActivation(settings), using: RandomGenerator(seed: 0))
    }

    private static func goldenActivation(_ settings: GoldenSettings) throws -> Activation {
        let names = ["gelu (exact erf)": Activation.gelu, "gelu (tanh)": .geluTanh]
        let name = try settings.optionalString("activation") ?? "gelu"
        guard let activation = names[name] ?? Activation(rawValue: name) else {
            throw ConfigurationError("unknown activation '\(name)'")
        }
        return activation
    }

    /// ε is `[1, items, experts]`, one group of items being the whole batch; without a tensor there is none.
    private static func goldenNoise(_ golden: GoldenCase, _ name: String, _ experts: MixtureOfExperts) throws -> Tensor
    {
        guard let noise = golden.optionalTensor(name) else { return Tensor.zeros([1, experts.experts]) }
        guard noise.rank == 3, noise.size(0) == 1, noise.size(2) == experts.experts else {
            throw ConfigurationError("\(name) should be [1, items, \(experts.experts)], not \(noise.shape)")
        }
        return noise.squeezed(0)
    }

    private static func parameterName(_ name: String) -> String {
        let parts = [
            ("norm1.", "tokenNorm."), ("norm2.", "channelNorm."), ("re_in.", "inward."), ("re_out.", "outward."),
            ("moe_s.", "tokenExperts."), ("moe_c.", "channelExperts."),
        ]
        guard let part = parts.first(where: { name.hasPrefix($0.0) }) else { return name }
        let rest = String(name.dropFirst(part.0.count))
        let weights = ["w1": "up", "b1": "upBias", "w2": "down", "b2": "downBias"]
        return part.1 + (weights[rest] ?? rest)
    }
}
