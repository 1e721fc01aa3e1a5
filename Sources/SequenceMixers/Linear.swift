// Linear attention. Katharopoulos, Vyas, Pappas, Fleuret 2020, "Transformers are RNNs", arXiv 2006.16236.
//
// With Q = φ(q), K = φ(k), and no 1/√D:
//   bidirectional (eq. 6)  out_i = Q_i · Σ_j K_j v_jᵀ / (Q_i · Σ_j K_j + ε)
//   causal (eq. 9)         the same with j ≤ i, which is the recurrence s_i = s_{i-1} + K_i v_iᵀ, z_i = z_{i-1} + K_i
import Foundation
import Torch
import TorchNN

/// Linear attention with any feature map.
///
/// Time O(N F E) for F features and values of width E, memory O(N (F + E)), causal and gradients included; streaming keeps
/// F × E + F numbers a head, whatever the length.
public final class LinearCore: Module, StreamingCore {
    public let isCausal: Bool
    public let featureMap: FeatureMap
    public let epsilon: Double

    public init(isCausal: Bool, featureMap: FeatureMap = FeatureMap(.eluPlusOne), epsilon: Double = 1e-6) {
        self.isCausal = isCausal
        self.featureMap = featureMap
        self.epsilon = epsilon
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (phiQ, phiK) = (featureMap(q), maskedKeys(featureMap(k), paddingMask))
        guard isCausal else { return Self.bidirectional(phiQ, phiK, v, z: phiK, epsilon: epsilon) }
        let (fitK, fitV) = fitted(phiK, v, to: q.size(2))
        return causalLinearAttention(phiQ, fitK, fitV, epsilon: epsilon).out
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let phiK = maskedKeys(featureMap(k), paddingMask)
        var weights = matmul(featureMap(q), phiK.transposed())  // [batch, heads, n, m]
        if isCausal { weights = weights.lowerTriangle() }
        return matmul(weights, v) / (weights.sum(-1, keepDim: true) + epsilon)
    }

    /// Q Σ K_j v_jᵀ / (Q Σ z_j + ε), where z may differ from K by weights.
    static func bidirectional(_ q: Tensor, _ k: Tensor, _ v: Tensor, z: Tensor, epsilon: Double) -> Tensor {
        let products = matmul(k.transposed(), v)  // [batch, heads, features, valueDim]
        let normalizer = matmul(q, z.sum(2).unsqueezed(3)) + epsilon  // [batch, heads, n, 1]
        return matmul(q, products) / normalizer
    }

    /// Causal attention to more, or fewer, keys than queries: cut, or filled up with keys that count for nothing.
    private func fitted(_ k: Tensor, _ v: Tensor, to length: Int) -> (k: Tensor, v: Tensor) {
        let keys = k.size(2)
        if keys >= length { return keys == length ? (k, v) : (k.sliced(2, 0..<length), v.sliced(2, 0..<length)) }
        return (k.padded(2, after: length - keys), v.padded(2, after: length - keys))
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> LinearState {
        let features = featureMap(Tensor.zeros([1, 1, 1, shape.headDim], dtype: shape.dtype, device: shape.device))
            .size(3)
        return LinearState(shape, features: features, hasMomentum: false)
    }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout LinearState) -> Tensor
    {
        check(q, k, v, paddingMask)
        torchPrecondition(isCausal, in: "LinearCore.prefill", "bidirectional attention cannot stream")
        let (out, final) = causalLinearAttention(
            featureMap(q), maskedKeys(featureMap(k), paddingMask), v, epsilon: epsilon, initial: state.carried)
        state.carried = final
        return out
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout LinearState) -> Tensor {
        let (phiQ, phiK) = (featureMap(q.unsqueezed(2)).squeezed(2), featureMap(k.unsqueezed(2)).squeezed(2))
        state.carried.s += phiK.unsqueezed(3) * v.unsqueezed(2)
        state.carried.z += phiK
        return state.read(phiQ, epsilon: epsilon)
    }
}

/// φ(k) with the padded keys set to zero, which takes them out of numerator and denominator.
func maskedKeys(_ k: Tensor, _ paddingMask: Tensor?) -> Tensor {
    guard let paddingMask else { return k }
    return k.masked(where: (.!paddingMask).unsqueezed(1).unsqueezed(3), with: 0)
}

/// What linear and momentum attention remember: s, z, and the momentum p. Its size does not depend on the length.
public struct LinearState: StreamingState {
    var carried: CausalLinearState

    init(_ shape: CoreShape, features: Int, hasMomentum: Bool) {
        let matrix = [shape.batch, shape.heads, features, shape.valueDim]
        // Sums over the sequence leave the range of half precision.
        let dtype: DType = shape.dtype == .float64 ? .float64 : .float32
        carried = CausalLinearState(
            s: .zeros(matrix, dtype: dtype, device: shape.device),
            p: hasMomentum ? .zeros(matrix, dtype: dtype, device: shape.device) : nil,
            z: .zeros([shape.batch, shape.heads, features], dtype: dtype, device: shape.device))
    }

    public var tensors: [String: Tensor] {
        var tensors = ["s": carried.s, "z": carried.z]
        tensors["p"] = carried.p
        return tensors
    }

    /// φq · s / (φq · z + ε), for q `[batch, heads, features]`.
    func read(_ q: Tensor, epsilon: Double) -> Tensor {
        let wide = q.to(carried.s.dtype)
        let numerator = matmul(wide.unsqueezed(2), carried.s).squeezed(2)
        return (numerator / ((wide * carried.z).sum(-1, keepDim: true) + epsilon)).to(q.dtype)
    }
}

// MARK: - In the catalogue

/// Options of `linear` in a recipe.
public struct LinearOptions: MixerOptions {
    public var featureMap: FeatureMapKind = .eluPlusOne
    /// Number of random features F; left out, twice the head's width (and one more for `smoothed-rff`).
    public var features: Int?
    public var temperature: Double?
    public var orthogonal = true
    public var stabilize = false
    public var smoothing = 1.0
    public var epsilon = 1e-6

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        featureMap = try container.decodeIfPresent(FeatureMapKind.self, forKey: .featureMap) ?? featureMap
        features = try container.decodeIfPresent(Int.self, forKey: .features)
        temperature = try container.decodeIfPresent(Double.self, forKey: .temperature)
        orthogonal = try container.decodeIfPresent(Bool.self, forKey: .orthogonal) ?? orthogonal
        stabilize = try container.decodeIfPresent(Bool.self, forKey: .stabilize) ?? stabilize
        smoothing = try container.decodeIfPresent(Double.self, forKey: .smoothing) ?? smoothing
        epsilon = try container.decodeIfPresent(Double.self, forKey: .epsilon) ?? epsilon
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let core = LinearCore(isCausal: context.isCausal, featureMap: try buildFeatureMap(context), epsilon: epsilon)
        return Attention(core, modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    private func buildFeatureMap(_ context: MixerContext) throws -> FeatureMap {
        guard epsilon >= 0 else { throw ConfigurationError("linear: epsilon must not be negative, is \(epsilon)") }
        if let temperature, !(temperature > 0) {
            throw ConfigurationError("linear: temperature must be above 0, not \(temperature)")
        }
        guard featureMap.isRandom else {
            if features != nil {
                throw ConfigurationError("linear: featureMap '\(featureMap.rawValue)' takes no features")
            }
            return FeatureMap(featureMap)
        }
        if stabilize && context.isCausal {
            throw ConfigurationError(
                "linear: stabilize takes a maximum over the whole sequence, so causal attention cannot have it")
        }
        if stabilize && featureMap != .favor {
            throw ConfigurationError("linear: stabilize belongs to featureMap favor")
        }
        let count = features ?? 2 * context.headDim + (featureMap == .smoothedRff ? 1 : 0)
        let odd = featureMap == .smoothedRff
        guard count > (odd ? 2 : 1), featureMap == .generalizedRelu || count.isMultiple(of: 2) != odd else {
            throw ConfigurationError(
                "linear: features must be \(odd ? "odd" : "even") and positive for '\(featureMap.rawValue)', not \(count)"
            )
        }
        let omega = FeatureMap.drawOmega(
            headDim: context.headDim, columns: featureMap.columns(features: count), orthogonal: orthogonal,
            using: context.generator)
        return FeatureMap(
            featureMap, omega: omega, temperature: temperature, stabilizes: stabilize, smoothing: smoothing)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "linear", title: "Linear attention",
        paper: Paper(
            "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
            authors: "Katharopoulos et al.",
            year: 2020, arXiv: "2006.16236"),
        causal: true, bidirectional: true, padding: true, crossAttention: true, streaming: .constant,
        time: "O(N D²)", memory: "O(N D)", options: LinearOptions.self,
        golden: { golden in
            try golden.expect(variants: [
                "bidirectional", "causal", "cross", "favor", "rff", "smoothed-rff", "generalized-relu", "layer",
                "encoder",
            ])
            let settings = golden.settings
            _ = try settings.double("dropout", or: 0, expecting: [0])
            return try .core(
                LinearCore(
                    isCausal: settings.bool("causal"), featureMap: goldenFeatureMap(golden),
                    epsilon: settings.optionalDouble("eps") ?? 1e-6))
        })

    static func goldenFeatureMap(_ golden: GoldenCase) throws -> FeatureMap {
        let settings = golden.settings
        let name = try settings.string("feature_map")
        guard let kind = FeatureMapKind(rawValue: name) else {
            throw ConfigurationError("unknown feature_map '\(name)'")
        }
        guard kind.isRandom else { return FeatureMap(kind) }
        let omega = try golden.tensor("omega")
        if let features = try settings.optionalInt("features"), kind.columns(features: features) != omega.size(1) {
            throw ConfigurationError("\(features) features of '\(name)' do not fit omega of shape \(omega.shape)")
        }
        _ = try settings.optionalBool("orthogonal")
        return try FeatureMap(
            kind, omega: omega, temperature: settings.optionalDouble("softmax_temp"),
            stabilizes: settings.optionalBool("stabilize") ?? false,
            smoothing: settings.optionalDouble("smoothing") ?? 1)
    }
}
