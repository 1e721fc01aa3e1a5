// Momentum attention. Nguyen, Baraniuk, Kirby, Osher, Wang 2022, "Momentum Transformer", arXiv 2208.00579.
//
// Causal linear attention s_i = s_{i-1} + U_i, U_i = φ(k_i) v_iᵀ, read as gradient descent, gets heavy-ball momentum:
//   p_i = β p_{i-1} - γ U_i,   s_i = s_{i-1} - p_i,   z_i = z_{i-1} + φ(k_i),   out_i = φ(q_i)·s_i / (φ(q_i)·z_i + ε)
// which is s_i = Σ_{j≤i} w(i-j) U_j with w(d) = γ (1 - β^(d+1)) / (1 - β). The denominator keeps weights of one.
// β = 0, γ = 1 is linear attention.
import Foundation
import Torch
import TorchNN

/// Which distance a key's weight depends on.
public enum MomentumWeights: String, NamedChoice {
    /// To the query: the recurrence. Causal, streams.
    case heavyBall = "heavy-ball"
    /// To the end of the sequence, for every query: the authors' parallel training code, and the bidirectional forms.
    case final
    /// The recurrence with a momentum found at each step from the curvature between two steps.
    case adaptive
}

/// Which end of the sequence ``MomentumWeights/final`` counts from.
public enum MomentumLength: String, NamedChoice {
    /// The last real token, so that padding changes nothing.
    case real
    /// The padded length, as the authors' code does.
    case padded
}

/// Momentum attention with a fixed momentum β and step size γ, or (``MomentumWeights/adaptive``) a momentum chosen at each step.
///
/// Time O(N D E), memory O(N (D + E)), gradients included; streaming keeps 2 D E + D numbers a head. The adaptive form is
/// sequential by nature: it goes token by token, and its backward pass keeps O(N D E).
public final class MomentumCore: Module, StreamingCore {
    public let isCausal: Bool
    public let momentum: Double
    public let stepSize: Double
    public let weights: MomentumWeights
    /// Without the denominator, queries and keys are divided by N^(1/4) instead (the authors' Long Range Arena code).
    public let isNormalized: Bool
    public let weightLength: MomentumLength
    public let epsilon: Double
    /// Adaptive: the largest momentum.
    public let maximumMomentum: Double
    private let featureMap = FeatureMap(.eluPlusOne)

    public init(
        isCausal: Bool, momentum: Double, stepSize: Double, weights: MomentumWeights, isNormalized: Bool = true,
        weightLength: MomentumLength = .real, epsilon: Double = 1e-6, maximumMomentum: Double = 0.9999
    ) {
        torchPrecondition(
            (0..<1).contains(momentum), in: "MomentumCore", "momentum must be at least 0 and below 1, not \(momentum)")
        torchPrecondition(
            isCausal ? isNormalized : weights == .final, in: "MomentumCore",
            isCausal ? "the unnormalized form is bidirectional" : "bidirectional momentum attention has weights 'final'"
        )
        self.isCausal = isCausal
        self.momentum = momentum
        self.stepSize = stepSize
        self.weights = weights
        self.isNormalized = isNormalized
        self.weightLength = weightLength
        self.epsilon = epsilon
        self.maximumMomentum = maximumMomentum
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (phiQ, phiK) = (featureMap(q), maskedKeys(featureMap(k), paddingMask))
        switch weights {
        case .heavyBall:
            return causalLinearAttention(phiQ, phiK, v, options).out
        case .final:
            // w_j K_j v_jᵀ = K_j (w_j v_j)ᵀ: the weights go into the values, and linear attention does the rest.
            let weighted = v * finalWeights(k, paddingMask)
            if isCausal {
                return causalLinearAttention(
                    phiQ, phiK, weighted, CausalLinearOptions(normalization: .sum(epsilon: epsilon))
                ).out
            }
            if isNormalized { return LinearCore.bidirectional(phiQ, phiK, weighted, epsilon: epsilon) }
            let sums = v.dtype.accumulator
            let products = matmul(phiK.to(sums).transposed(), weighted.to(sums))
            return (matmul(phiQ.to(sums), products) / lengths(k, paddingMask).sqrt()).to(v.dtype)
        case .adaptive:
            var state = AdaptiveState(stateShape(k, v), features: phiK.size(3))
            return adaptive(phiQ, phiK, v, paddingMask, &state)
        }
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (phiQ, phiK) = (featureMap(q), maskedKeys(featureMap(k), paddingMask))
        let scores = matmul(phiQ, phiK.transposed())  // [batch, heads, n, m]
        switch weights {
        case .heavyBall:
            // w(i-j) as a matrix.
            let index = Tensor.arange(0..<k.size(2), dtype: .float64, device: k.device)
            let distance = index.unsqueezed(1) - index.unsqueezed(0)
            let matrix = (stepSize * geometric((distance + 1).relu())).lowerTriangle().to(q.dtype)
            return matmul(scores * matrix, v) / (scores.lowerTriangle().sum(-1, keepDim: true) + epsilon)
        case .final:
            let visible = isCausal ? scores.lowerTriangle() : scores
            let numerator = matmul(visible, v * finalWeights(k, paddingMask))
            if !isNormalized { return numerator / lengths(k, paddingMask).sqrt() }
            return numerator / (visible.sum(-1, keepDim: true) + epsilon)
        case .adaptive: return adaptiveReference(phiQ, phiK, v, paddingMask)
        }
    }

    private var options: CausalLinearOptions {
        CausalLinearOptions(normalization: .sum(epsilon: epsilon), momentum: momentum, stepSize: stepSize)
    }

    // MARK: Weights by the distance to the end

    /// γ (1 - β^(distance to the end)) / (1 - β): `[batch or 1, 1, m, 1]`
    private func finalWeights(_ k: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let distance: Tensor
        if let mask = paddingMask, weightLength == .real {
            distance = mask.to(.float64).flipped(1).cumulativeSum(1).flipped(1)
        } else {
            let length = k.size(2)
            distance = (Double(length) - Tensor.arange(0..<length, dtype: .float64, device: k.device)).unsqueezed(0)
        }
        return (stepSize * geometric(distance)).unsqueezed(1).unsqueezed(3).to(k.dtype)
    }

    /// (1 - β^m) / (1 - β), without cancellation for β near 1.
    private func geometric(_ m: Tensor) -> Tensor {
        if momentum == 0 { return (m .> 0).to(m.dtype) }
        return (m * log(momentum)).expm1() * (-1 / (1 - momentum))
    }

    /// The number of keys that the unnormalized form divides by: `[batch or 1, 1, 1, 1]`
    private func lengths(_ k: Tensor, _ paddingMask: Tensor?) -> Tensor {
        guard let mask = paddingMask, weightLength == .real else {
            return .full([1, 1, 1, 1], Double(k.size(2)), dtype: k.dtype.accumulator, device: k.device)
        }
        return mask.to(k.dtype.accumulator).sum(1).clamped(min: 1).reshaped(-1, 1, 1, 1)
    }

    // MARK: Streaming

    public var canStream: Bool { isCausal && weights != .final }

    public func initialState(_ shape: CoreShape) -> MomentumState {
        weights == .adaptive
            ? .adaptive(AdaptiveState(shape, features: shape.headDim))
            : .heavyBall(LinearState(shape, features: shape.headDim, hasMomentum: true))
    }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout MomentumState)
        -> Tensor
    {
        check(q, k, v, paddingMask)
        checkStreams()
        let (phiQ, phiK) = (featureMap(q), maskedKeys(featureMap(k), paddingMask))
        switch state {
        case .heavyBall(var linear):
            let out =
                paddingMask.map { heavyBall(phiQ, phiK, v, lengths: realLengths($0), &linear.carried) }
                ?? heavyBall(phiQ, phiK, v, &linear.carried)
            state = .heavyBall(linear)
            return out
        case .adaptive(var adaptiveState):
            let out = adaptive(phiQ, phiK, v, paddingMask, &adaptiveState)
            state = .adaptive(adaptiveState)
            return out
        }
    }

    private func heavyBall(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ carried: inout CausalLinearState) -> Tensor {
        let (out, final) = causalLinearAttention(
            q, k, v, options, initial: carried)
        carried = CausalLinearState(s: final.s, p: final.p ?? carried.p, z: final.z)
        return out
    }

    /// Momentum decays with every token, also with one whose key is masked, so each sequence must stop at its own last real
    /// token: those of one length go together. What is after it in the output is 0.
    private func heavyBall(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, lengths: [Int], _ carried: inout CausalLinearState
    ) -> Tensor {
        let length = q.size(2)
        if lengths.allSatisfy({ $0 == length }) { return heavyBall(q, k, v, &carried) }
        let groups = Dictionary(grouping: lengths.indices) { lengths[$0] }.sorted { $0.key < $1.key }
        var (outputs, states): ([Tensor], [CausalLinearState]) = ([], [])
        for (end, members) in groups {
            let rows = Tensor(members)
            var state = CausalLinearState(
                s: carried.s.indexed(0, rows), p: carried.p?.indexed(0, rows), z: carried.z.indexed(0, rows))
            let part = { (x: Tensor) in x.indexed(0, rows).sliced(2, 0..<end) }
            let out = end == 0 ? part(v) : heavyBall(part(q), part(k), part(v), &state)
            outputs.append(out.padded(2, after: length - end))
            states.append(state)
        }
        let order = groups.flatMap(\.value)
        let back = Tensor(order.indices.sorted { order[$0] < order[$1] })
        let momenta = states.compactMap(\.p)
        carried = CausalLinearState(
            s: concatenate(states.map(\.s)).indexed(0, back),
            p: momenta.isEmpty ? nil : concatenate(momenta).indexed(0, back),
            z: concatenate(states.map(\.z)).indexed(0, back))
        return concatenate(outputs).indexed(0, back)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout MomentumState) -> Tensor {
        checkStreams()
        let (phiQ, phiK) = (featureMap(q), featureMap(k))
        switch state {
        case .heavyBall(var linear):
            let update = phiK.unsqueezed(3) * (v.unsqueezed(2) * -stepSize)
            let p = linear.carried.p.map { $0 * momentum + update } ?? update
            linear.carried = CausalLinearState(s: linear.carried.s - p, p: p, z: linear.carried.z + phiK)
            state = .heavyBall(linear)
            return linear.read(phiQ, epsilon: epsilon)
        case .adaptive(var adaptiveState):
            let out = adaptiveStep(phiQ, phiK, v, &adaptiveState)
            state = .adaptive(adaptiveState)
            return out
        }
    }

    private func checkStreams() {
        torchPrecondition(
            canStream, in: "MomentumCore",
            isCausal
                ? "weights 'final' count from the end of the sequence, so they cannot stream; use 'heavy-ball'"
                : "bidirectional attention cannot stream")
    }

    func stateShape(_ k: Tensor, _ v: Tensor) -> CoreShape {
        CoreShape(
            batch: k.size(0), heads: k.size(1), headDim: k.size(3), valueDim: v.size(3), dtype: k.dtype,
            device: k.device)
    }
}

/// What momentum attention remembers.
public enum MomentumState: StreamingState {
    case heavyBall(LinearState)
    case adaptive(AdaptiveState)

    public var tensors: [String: Tensor] {
        switch self {
        case .heavyBall(let state): state.tensors
        case .adaptive(let state): state.tensors
        }
    }
}

// MARK: - In the catalogue

/// Options of `momentum` in a recipe.
public struct MomentumOptions: MixerOptions {
    /// β, but with weights `adaptive`; left out, 0.9.
    public var momentum: Double?
    /// γ
    public var stepSize = 0.5
    /// Left out: `heavy-ball` when causal, `final` when bidirectional.
    public var weights: MomentumWeights?
    public var normalized = true
    /// With weights `final`; left out, `real`.
    public var weightLength: MomentumLength?
    /// In the denominator, so not without one; left out, 1e-6.
    public var epsilon: Double?
    /// With weights `adaptive`; left out, 0.9999.
    public var maximumMomentum: Double?

    public init() {}

    public init(momentum: Double?, stepSize: Double, weights: MomentumWeights? = nil) {
        self.momentum = momentum
        self.stepSize = stepSize
        self.weights = weights
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        momentum = try container.decodeIfPresent(Double.self, forKey: .momentum)
        stepSize = try container.decodeIfPresent(Double.self, forKey: .stepSize) ?? stepSize
        weights = try container.decodeIfPresent(MomentumWeights.self, forKey: .weights)
        normalized = try container.decodeIfPresent(Bool.self, forKey: .normalized) ?? normalized
        weightLength = try container.decodeIfPresent(MomentumLength.self, forKey: .weightLength)
        epsilon = try container.decodeIfPresent(Double.self, forKey: .epsilon)
        maximumMomentum = try container.decodeIfPresent(Double.self, forKey: .maximumMomentum)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let weights = weights ?? (context.isCausal ? .heavyBall : .final)
        try refuseOutOfRange()
        if !context.isCausal && weights != .final {
            throw ConfigurationError(
                "momentum: weights '\(weights.rawValue)' is causal; a bidirectional model needs 'final'")
        }
        if context.isCausal && !normalized {
            throw ConfigurationError("momentum: normalized: false is a bidirectional form; a causal model needs true")
        }
        try refuseIgnored(weights)
        let core = MomentumCore(
            isCausal: context.isCausal, momentum: weights == .adaptive ? 0 : momentum ?? 0.9, stepSize: stepSize,
            weights: weights, isNormalized: normalized, weightLength: weightLength ?? .real, epsilon: epsilon ?? 1e-6,
            maximumMomentum: maximumMomentum ?? 0.9999)
        return Attention(core, modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    private func refuseOutOfRange() throws {
        for (name, value) in [("momentum", momentum), ("maximumMomentum", maximumMomentum)] {
            if let value, !(0..<1).contains(value) {
                throw ConfigurationError("momentum: \(name) must be at least 0 and below 1, not \(value)")
            }
        }
        guard stepSize > 0, stepSize.isFinite else {
            throw ConfigurationError("momentum: stepSize must be above 0, not \(stepSize)")
        }
        if let epsilon, !(epsilon >= 0 && epsilon.isFinite) {
            throw ConfigurationError("momentum: epsilon must be finite and not negative, is \(epsilon)")
        }
    }

    /// An option that the weights have no use for is a mistake.
    private func refuseIgnored(_ weights: MomentumWeights) throws {
        let ignored: [(name: String, isIgnored: Bool, by: String)] = [
            ("momentum", momentum != nil && weights == .adaptive, "weights 'adaptive' find their own"),
            ("maximumMomentum", maximumMomentum != nil && weights != .adaptive, "it belongs to weights 'adaptive'"),
            ("weightLength", weightLength != nil && weights != .final, "it belongs to weights 'final'"),
            ("epsilon", epsilon != nil && !normalized, "without normalized there is no denominator"),
        ]
        if let option = ignored.first(where: \.isIgnored) {
            throw ConfigurationError("momentum: \(option.name) would be ignored: \(option.by)")
        }
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "momentum", title: "Momentum attention",
        paper: Paper(
            "Momentum Transformer: Closing the Performance Gap Between Self-attention and Its Linearization",
            authors: "Nguyen et al.", year: 2022, arXiv: "2208.00579"),
        causal: true, bidirectional: true, padding: true, crossAttention: true, streaming: .constant,
        time: "O(N D²)", memory: "O(N D)", options: MomentumOptions.self,
        golden: { golden in
            try golden.expect(variants: [
                "causal", "causal-final-weights", "causal-adaptive", "bidirectional", "bidirectional-unnormalized",
                "layer",
                "encoder-momentum-connection", "encoder-adaptive-momentum-connection", "lra-encoder-adaptive",
                "lra-encoder-constant",
            ])
            return .core(try goldenCore(golden.settings))
        })

    private static func goldenCore(_ settings: GoldenSettings) throws -> MomentumCore {
        _ = try settings.double("dropout", or: 0, expecting: [0])
        _ = try settings.string("feature_map", or: "elu+1", expecting: ["elu+1"])
        let name = try settings.string("weights")
        guard let weights = MomentumWeights(rawValue: name) else {
            throw ConfigurationError("unknown weights '\(name)'")
        }
        let lengthName = try settings.optionalString("weight_length") ?? "padded"
        guard let length = MomentumLength(rawValue: lengthName) else {
            throw ConfigurationError("unknown weight_length '\(lengthName)'")
        }
        return try MomentumCore(
            isCausal: settings.bool("causal"), momentum: weights == .adaptive ? 0 : settings.double("momentum"),
            stepSize: settings.double("step_size"), weights: weights,
            isNormalized: settings.optionalBool("normalized") ?? true,
            weightLength: length, epsilon: settings.optionalDouble("eps") ?? 1e-6,
            maximumMomentum: settings.optionalDouble("max_momentum") ?? 0.9999)
    }
}
