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
        if isCausal, q.size(2) == k.size(2), let map = featureMap.kind.elementwise {
            return causalLinearAttention(q, k, v, paddingMask: paddingMask, options(map)).out
        }
        let (phiQ, phiK) = features(q, k, paddingMask, omega: featureMap.nextOmega())
        guard isCausal else { return Self.bidirectional(phiQ, phiK, v, epsilon: epsilon) }
        let (fitK, fitV) = fitted(phiK, v, to: q.size(2))
        return causalLinearAttention(phiQ, fitK, fitV, options()).out
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (phiQ, phiK) = features(q, k, paddingMask)
        var weights = matmul(phiQ, phiK.transposed())  // [batch, heads, n, m]
        if isCausal { weights = weights.lowerTriangle() }
        return (matmul(weights, v.to(weights.dtype)) / (weights.sum(-1, keepDim: true) + epsilon)).to(v.dtype)
    }

    private func options(_ map: ElementwiseMap = .none) -> CausalLinearOptions {
        CausalLinearOptions(featureMap: map, normalization: .sum(epsilon: epsilon))
    }

    /// φ(q), and φ(k) with the padded keys taken out. A mask as long as the queries is taken for theirs, too.
    private func features(_ q: Tensor, _ k: Tensor, _ paddingMask: Tensor?, omega: Tensor? = nil) -> (
        q: Tensor, k: Tensor
    ) {
        let ofQueries = q.size(2) == k.size(2) ? paddingMask : nil
        let phiK = featureMap(k, paddingMask: paddingMask, omega: omega)
        return (featureMap(q, paddingMask: ofQueries, omega: omega), maskedKeys(phiK, paddingMask))
    }

    /// Q Σ K_j v_jᵀ / (Q Σ K_j + ε)
    static func bidirectional(_ q: Tensor, _ k: Tensor, _ v: Tensor, epsilon: Double) -> Tensor {
        // Sums over the sequence leave the range of half precision.
        let sums = v.dtype.accumulator
        let (q, k) = (q.to(sums), k.to(sums))
        let products = matmul(k.transposed(), v.to(sums))  // [batch, heads, features, valueDim]
        let normalizer = matmul(q, k.sum(2).unsqueezed(3)) + epsilon  // [batch, heads, n, 1]
        return (matmul(q, products) / normalizer).to(v.dtype)
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
        let map = featureMap.kind.elementwise
        let (out, final) = causalLinearAttention(
            map == nil ? featureMap(q) : q, map == nil ? featureMap(k) : k, v, paddingMask: paddingMask,
            options(map ?? .none), initial: state.carried)
        state.carried = final
        return out
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout LinearState) -> Tensor {
        let (phiQ, phiK) = (featureMap(q.unsqueezed(2)).squeezed(2), featureMap(k.unsqueezed(2)).squeezed(2))
        state.carried.s += phiK.unsqueezed(3) * v.unsqueezed(2)
        state.carried.z += phiK
        return state.read(phiQ, epsilon: epsilon).to(v.dtype)
    }
}

/// φ(k) with the padded keys set to zero, which takes them out of numerator and denominator.
func maskedKeys(_ k: Tensor, _ paddingMask: Tensor?) -> Tensor {
    guard let paddingMask else { return k }
    return k.masked(where: (.!paddingMask).unsqueezed(1).unsqueezed(3), with: 0)
}

extension DType {
    /// What sums over a sequence are kept in: they leave the range of half precision.
    var accumulator: DType { self == .float64 ? .float64 : .float32 }
}

/// What linear and momentum attention remember: s, z, and the momentum p. Its size does not depend on the length.
public struct LinearState: StreamingState {
    var carried: CausalLinearState

    init(_ shape: CoreShape, features: Int, hasMomentum: Bool) {
        let matrix = [shape.batch, shape.heads, features, shape.valueDim]
        let dtype = shape.dtype.accumulator
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
    /// Of random features: inputs are multiplied by its root; left out, 1/√D (1 for `generalized-relu`).
    public var temperature: Double?
    /// Of random features: whether they are drawn orthogonal; left out, they are, but for the plain Gaussian Fourier ones.
    public var orthogonal: Bool?
    /// Of `favor`, not causal: subtracts the largest |x|² of the sequence.
    public var stabilize = false
    /// Of `smoothed-rff`: the value of the constant feature; left out, 1.
    public var smoothing: Double?
    /// Of random features: they are drawn anew after so many passes of training; left out, never.
    public var redrawEvery: Int?
    public var epsilon = 1e-6

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        featureMap = try container.decodeIfPresent(FeatureMapKind.self, forKey: .featureMap) ?? featureMap
        features = try container.decodeIfPresent(Int.self, forKey: .features)
        temperature = try container.decodeIfPresent(Double.self, forKey: .temperature)
        orthogonal = try container.decodeIfPresent(Bool.self, forKey: .orthogonal)
        stabilize = try container.decodeIfPresent(Bool.self, forKey: .stabilize) ?? stabilize
        smoothing = try container.decodeIfPresent(Double.self, forKey: .smoothing)
        redrawEvery = try container.decodeIfPresent(Int.self, forKey: .redrawEvery)
        epsilon = try container.decodeIfPresent(Double.self, forKey: .epsilon) ?? epsilon
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let core = LinearCore(isCausal: context.isCausal, featureMap: try buildFeatureMap(context), epsilon: epsilon)
        return Attention(core, modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    private func buildFeatureMap(_ context: MixerContext) throws -> FeatureMap {
        guard epsilon >= 0, epsilon.isFinite else {
            throw ConfigurationError("linear: epsilon must be finite and not negative, is \(epsilon)")
        }
        if let temperature, !(temperature > 0 && temperature.isFinite) {
            throw ConfigurationError("linear: temperature must be above 0, not \(temperature)")
        }
        if let smoothing, !smoothing.isFinite {
            throw ConfigurationError("linear: smoothing must be a finite number, not \(smoothing)")
        }
        if let redrawEvery, redrawEvery < 1 {
            throw ConfigurationError("linear: redrawEvery must be at least 1, not \(redrawEvery)")
        }
        try refuseIgnored()
        guard featureMap.isRandom else { return FeatureMap(featureMap) }
        if stabilize && context.isCausal {
            throw ConfigurationError(
                "linear: stabilize takes a maximum over the whole sequence, so causal attention cannot have it")
        }
        let count = features ?? 2 * context.headDim + (featureMap == .smoothedRff ? 1 : 0)
        let columns = featureMap.columns(features: count)
        guard columns > 0, featureMap.features(columns: columns) == count else {
            let parity = [.favor: "even and ", .rff: "even and ", .smoothedRff: "odd and "][featureMap] ?? ""
            throw ConfigurationError(
                "linear: features must be \(parity)positive for '\(featureMap.rawValue)', not \(count)")
        }
        let orthogonal = orthogonal ?? featureMap.isOrthogonalByDefault
        let omega = FeatureMap.drawOmega(
            headDim: context.headDim, columns: columns, orthogonal: orthogonal, using: context.generator)
        return FeatureMap(
            featureMap, omega: omega, temperature: temperature, stabilizes: stabilize, smoothing: smoothing ?? 1,
            redrawing: redrawEvery.map {
                FeatureRedrawing(every: $0, orthogonal: orthogonal, using: context.generator)
            })
    }

    /// An option that the feature map has no use for is a mistake.
    private func refuseIgnored() throws {
        let ofRandom = [
            ("features", features != nil), ("temperature", temperature != nil), ("orthogonal", orthogonal != nil),
            ("redrawEvery", redrawEvery != nil),
        ]
        for (name, isGiven) in ofRandom where isGiven && !featureMap.isRandom {
            throw ConfigurationError("linear: featureMap '\(featureMap.rawValue)' takes no \(name)")
        }
        if stabilize && featureMap != .favor {
            throw ConfigurationError("linear: stabilize belongs to featureMap favor, not '\(featureMap.rawValue)'")
        }
        if smoothing != nil && featureMap != .smoothedRff {
            throw ConfigurationError(
                "linear: smoothing belongs to featureMap smoothed-rff, not '\(featureMap.rawValue)'")
        }
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
        if let features = try settings.optionalInt("features"), kind.features(columns: omega.size(1)) != features {
            throw ConfigurationError("\(features) features of '\(name)' do not fit omega of shape \(omega.shape)")
        }
        _ = try settings.optionalBool("orthogonal")
        return try FeatureMap(
            kind, omega: omega, temperature: settings.optionalDouble("softmax_temp"),
            stabilizes: settings.optionalBool("stabilize") ?? false,
            smoothing: settings.optionalDouble("smoothing") ?? 1)
    }
}
