import Torch
import TorchNN

/// Builds what a golden file of Linformer describes.
enum LinformerGolden {
    static func subject(_ golden: GoldenCase) throws -> GoldenSubject {
        let cores = LinformerProjectionKind.allCases.map { "core-\($0.rawValue)" }
        try golden.expect(variants: cores + ["layer"])
        let settings = golden.settings
        if try settings.optionalBool("causal") == true {
            throw ConfigurationError("linformer has no causal form: \(LinformerOptions.whyNotCausal)")
        }
        _ = try settings.double("dropout", or: 0, expecting: [0])
        if golden.variant == "layer" { return .evaluation(try layer(golden)) }
        let name = String(golden.variant.dropFirst("core-".count))
        _ = try settings.string("projection", or: name, expecting: [name])
        guard let kind = LinformerProjectionKind(rawValue: name) else {
            throw ConfigurationError("unknown projection '\(name)'")
        }
        let (k, v) = (try golden.tensor("k"), try golden.tensor("v"))
        let projection = try projection(golden, kind, length: k.size(2), keyDim: k.size(3), valueDim: v.size(3))
        return .core(LinformerCore(projection), parameterName: parameterName)
    }

    private static func layer(_ golden: GoldenCase) throws -> GoldenEvaluation {
        let settings = golden.settings
        let x = try golden.tensor("x")
        let heads = try settings.int("heads")
        guard heads > 0, x.size(2).isMultiple(of: heads) else {
            throw ConfigurationError("model_dim \(x.size(2)) is not a multiple of heads \(heads)")
        }
        let headDim = x.size(2) / heads
        try golden.check("batch", x.size(0))
        try golden.check("length", x.size(1))
        try golden.check("model_dim", x.size(2))
        try golden.check("head_dim", headDim)
        try golden.check("value_dim", headDim)
        let kinds = LinformerProjectionKind.allCases.map(\.rawValue)
        let name = try settings.string("projection", or: "linear", expecting: kinds)
        guard let kind = LinformerProjectionKind(rawValue: name) else {
            throw ConfigurationError("unknown projection '\(name)'")
        }
        let projectsInput = try settings.optionalBool("project_before_linear") ?? (kind == .linear)
        if projectsInput && kind == .convolution {
            throw ConfigurationError("setting 'project_before_linear' is true, but a convolution acts on heads")
        }
        let projection = try projection(golden, kind, length: x.size(1), keyDim: headDim, valueDim: headDim)
        let layer = LinformerAttention(
            LinformerCore(projection), modelDim: x.size(2), heads: heads, projectsInput: projectsInput,
            bias: try settings.optionalBool("bias") ?? true, using: RandomGenerator(seed: 0))
        return GoldenEvaluation(layer, paddingMask: try golden.paddingMask()) { name in
            let ours = parameterName(name)
            return ours.hasPrefix("projection.") ? "core.\(ours)" : ours
        }
    }

    private static func projection(
        _ golden: GoldenCase, _ kind: LinformerProjectionKind, length: Int, keyDim: Int, valueDim: Int
    ) throws -> LinformerProjection {
        let generator = RandomGenerator(seed: 0)
        switch kind {
        case .linear: return try matrices(golden, generator)
        case .meanPool, .maxPool: return LinformerProjection(pooling: kind, window: try window(golden, length))
        case .convolution:
            let size = try golden.tensor("param.conv_k.weight").size(-1)
            guard try window(golden, length) == size else {
                throw ConfigurationError("the settings' window is not the \(size) taps of conv_k")
            }
            return LinformerProjection(keyDim: keyDim, valueDim: valueDim, window: size, using: generator)
        }
    }

    private static func matrices(_ golden: GoldenCase, _ generator: RandomGenerator) throws -> LinformerProjection {
        let key = try golden.tensor("param.E")
        guard (2...3).contains(key.rank) else {
            throw ConfigurationError("expected E [k, length] or [heads, k, length], found \(key.shape)")
        }
        let isShared = golden.optionalTensor("param.F") == nil
        try golden.check("projected_length", key.size(-2))
        try golden.check("max_length", key.size(-1))
        if let name = try golden.settings.optionalString("sharing") {
            guard let sharing = LinformerSharing(rawValue: name) else {
                throw ConfigurationError("unknown sharing '\(name)'")
            }
            let isPerHead = try key.rank == 3 && key.size(0) == golden.settings.int("heads")
            guard sharing.isOneMatrix == isShared, sharing != .perHead || isPerHead else {
                throw ConfigurationError("sharing '\(name)' does not fit E \(key.shape)\(isShared ? "" : " and F")")
            }
        }
        return LinformerProjection(shape: key.shape, isShared: isShared, using: generator)
    }

    /// s = ⌈n / k⌉, of the longest sequence where the file names one.
    private static func window(_ golden: GoldenCase, _ length: Int) throws -> Int {
        let settings = golden.settings
        let longest = try settings.optionalInt("max_length") ?? length
        let rows = try settings.optionalInt("projected_length")
        guard rows ?? 1 > 0 else { throw ConfigurationError("setting 'projected_length' must be at least 1") }
        let worked = rows.map { (longest + $0 - 1) / $0 }
        guard let size = try settings.optionalInt("window") ?? worked, size > 0 else {
            throw ConfigurationError("the settings have no key 'window'")
        }
        if let worked, worked != size {
            throw ConfigurationError(
                "setting 'window' is \(size), but \(longest) tokens in \(rows ?? 0) rows make \(worked)")
        }
        try golden.check("windows", (length + size - 1) / size)
        return size
    }

    private static func parameterName(_ name: String) -> String {
        let names = [
            "E": "projection.key", "F": "projection.value", "conv_k": "projection.keyConvolution",
            "conv_v": "projection.valueConvolution", "q_proj": "query", "k_proj": "key", "v_proj": "value",
            "out_proj": "output",
        ]
        let head = name.prefix { $0 != "." }
        return names[String(head)].map { $0 + name.dropFirst(head.count) } ?? name
    }
}
