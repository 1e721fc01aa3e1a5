// cosFormer. Qin, Sun, Deng, Li, Wei, Lv, Yan, Kong, Zhong 2022, "cosFormer: Rethinking Softmax in Attention", arXiv 2202.08791.
//
// Linear attention that looks more at what is near: with r = relu and M at least the longest length,
//   s_ij = r(q_i)·r(k_j) cos(π/2 · (i - j) / M),   out_i = Σ_j s_ij v_j / (Σ_j s_ij + ε)          (eq. 9, 10)
// and, as cos(a - b) = cos a cos b + sin a sin b, the feature map φ(x)_i = [r(x) cos(πi/2M), r(x) sin(πi/2M)]  (eq. 12).
import Foundation
import Torch
import TorchNN

/// cosFormer's attention. Positions count real tokens only, so padding is not there anywhere.
///
/// Time O(N D E) for heads of width D and values of width E, memory O(N (D + E)), causal and gradients included; streaming
/// keeps 2 D E + 2 D numbers a head, up to the maximum length. The authors' code keeps the denominator above ε; here ε is added.
public final class CosFormerCore: Module, StreamingCore {
    public let isCausal: Bool
    /// M: no token may be so many places from the first.
    public let maximumLength: Int
    public let epsilon: Double

    public init(isCausal: Bool, maximumLength: Int, epsilon: Double = 1e-6) {
        torchPrecondition(
            maximumLength > 0, in: "CosFormerCore", "expected a maximumLength of at least 1, got \(maximumLength)")
        self.isCausal = isCausal
        self.maximumLength = maximumLength
        self.epsilon = epsilon
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (phiQ, phiK) = features(q, k, paddingMask)
        guard isCausal else { return LinearCore.bidirectional(phiQ, phiK, v, epsilon: epsilon) }
        return causalLinearAttention(phiQ, phiK, v, options).out
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let ofQueries = angles(q, q.size(2) == k.size(2) ? paddingMask : nil)
        let distance = ofQueries - angles(k, paddingMask).transposed(2, 3)  // [batch or 1, 1, n, m]
        var weights = matmul(q.relu(), maskedKeys(k.relu(), paddingMask).transposed()) * distance.cos()
        if isCausal { weights = weights.lowerTriangle() }
        return matmul(weights, v) / (weights.sum(-1, keepDim: true) + epsilon)
    }

    private var options: CausalLinearOptions { CausalLinearOptions(normalization: .sum(epsilon: epsilon)) }

    /// πi/2M for every token: `[batch or 1, 1, length, 1]`
    private func angles(_ x: Tensor, _ paddingMask: Tensor?, from starts: [Int] = [0]) -> Tensor {
        let length = x.size(2)
        let steps =
            paddingMask.map { $0.to(.int64).cumulativeSum(1) - 1 }
            ?? Tensor.arange(0..<length, device: x.device).unsqueezed(0)
        let places = steps + Tensor(starts, device: x.device).unsqueezed(1)
        let last = (starts.max() ?? 0) + (paddingMask.map { realCounts($0).max() ?? 0 } ?? length)
        torchPrecondition(
            last <= maximumLength, in: "CosFormerCore", "\(last) tokens are more than maximumLength \(maximumLength)")
        let scale = Double.pi / 2 / Double(maximumLength)
        return (places.to(x.dtype.accumulator) * scale).unsqueezed(1).unsqueezed(3)
    }

    /// [r(x) cos, r(x) sin]
    private func turned(_ x: Tensor, _ angles: Tensor) -> Tensor {
        let positive = x.to(x.dtype.accumulator).relu()
        return concatenate([positive * angles.cos(), positive * angles.sin()], dim: -1)
    }

    private func features(_ q: Tensor, _ k: Tensor, _ paddingMask: Tensor?, from starts: [Int] = [0]) -> (
        q: Tensor, k: Tensor
    ) {
        let ofKeys = angles(k, paddingMask, from: starts)
        let ofQueries = q.size(2) == k.size(2) ? ofKeys : angles(q, nil)
        return (turned(q, ofQueries), maskedKeys(turned(k, ofKeys), paddingMask))
    }

    private func realCounts(_ paddingMask: Tensor) -> [Int] {
        paddingMask.to(.int64).sum(1).scalars(as: Int64.self).map(Int.init)
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> CosFormerState {
        CosFormerState(
            sums: LinearState(shape, features: 2 * shape.headDim, hasMomentum: false),
            positions: Array(repeating: 0, count: shape.batch))
    }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout CosFormerState)
        -> Tensor
    {
        check(q, k, v, paddingMask)
        torchPrecondition(isCausal, in: "CosFormerCore.prefill", "bidirectional attention cannot stream")
        let (phiQ, phiK) = features(q, k, paddingMask, from: state.positions)
        let (out, final) = causalLinearAttention(phiQ, phiK, v, options, initial: state.sums.carried)
        let counts = paddingMask.map(realCounts) ?? state.positions.map { _ in q.size(2) }
        state.sums.carried = final
        state.positions = zip(state.positions, counts).map { $0 + $1 }
        return out
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout CosFormerState) -> Tensor {
        let (phiQ, phiK) = features(q.unsqueezed(2), k.unsqueezed(2), nil, from: state.positions)
        state.sums.carried.s += matmul(phiK.transposed(), v.unsqueezed(2).to(phiK.dtype))
        state.sums.carried.z += phiK.squeezed(2)
        state.positions = state.positions.map { $0 + 1 }
        return state.sums.read(phiQ.squeezed(2), epsilon: epsilon).to(v.dtype)
    }
}

/// What cosFormer remembers: linear attention's sums, and how many real tokens there were in each sequence.
public struct CosFormerState: StreamingState {
    var sums: LinearState
    var positions: [Int]

    public var tensors: [String: Tensor] {
        sums.tensors.merging(["positions": Tensor(positions)]) { kept, _ in kept }
    }
}

// MARK: - In the catalogue

/// Options of `cosformer` in a recipe.
public struct CosFormerOptions: MixerOptions {
    /// M; left out, the model's longest sequence.
    public var maximumLength: Int?
    public var epsilon = 1e-6

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        maximumLength = try container.decodeIfPresent(Int.self, forKey: .maximumLength)
        epsilon = try container.decodeIfPresent(Double.self, forKey: .epsilon) ?? epsilon
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        guard let length = maximumLength ?? context.maximumLength else {
            throw ConfigurationError("cosformer: its weights depend on the longest length, so it needs a maximumLength")
        }
        guard length > 0, length >= context.maximumLength ?? 1 else {
            throw ConfigurationError(
                "cosformer: maximumLength \(length) is below \(context.maximumLength.map { "the model's \($0)" } ?? "1")"
            )
        }
        guard epsilon > 0, epsilon.isFinite else {
            throw ConfigurationError("cosformer: epsilon must be above 0, not \(epsilon)")
        }
        return Attention(
            CosFormerCore(isCausal: context.isCausal, maximumLength: length, epsilon: epsilon),
            modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "cosformer", title: "cosFormer",
        paper: Paper(
            "cosFormer: Rethinking Softmax in Attention", authors: "Qin et al.", year: 2022, arXiv: "2202.08791"),
        causal: true, bidirectional: true, padding: true, crossAttention: true, streaming: .constant,
        time: "O(N D²)", memory: "O(N D)", remark: "takes sequences up to its maximumLength",
        options: CosFormerOptions.self,
        golden: { golden in
            try golden.expect(variants: ["causal", "bidirectional"])
            let settings = golden.settings
            return try .core(
                CosFormerCore(
                    isCausal: settings.bool("causal"), maximumLength: settings.int("maximum_length"),
                    epsilon: settings.optionalDouble("eps") ?? 1e-6))
        })
}
