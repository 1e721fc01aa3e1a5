// A reading of the abstract of "Revisiting Linformer with a modified self-attention with linear complexity", Verma
// 2020, arXiv 2101.10277, whose text and code could not be had: attention as Linformer's, linear in time and memory,
// without a projected length k and without parameters that depend on the length. Here the data take the place of the
// learned projection, so that k is the head's width e:
//
//   separable        out_i = Σ_f a_if Σ_j w_jf v_j,   a = softmax of q_i over its e features,
//                                                     w = softmax of k over positions
//   data-projected   out = softmax(q (E k)ᵀ / √e) (E v),   E = wᵀ [e, n]: Linformer's equation 7
//
// The causal form of separable takes w over the positions up to i.
import Foundation
import Torch
import TorchNN

/// Which reading.
public enum RevisitingLinformerForm: String, NamedChoice {
    case separable
    /// Bidirectional only: its rows mix all positions.
    case dataProjected = "data-projected"
}

/// Attention whose weights are products of a softmax over features and one over positions.
///
/// Time O(N E M) for queries of width E and values of width M, memory O(N (E + M)). The causal form goes in chunks of C
/// tokens and takes time O(N C (E + M)) and memory O(N E log C) besides. Streaming keeps E M + E numbers a head, whatever
/// the length.
public final class RevisitingLinformerCore: Module, StreamingCore {
    public let isCausal: Bool
    public let form: RevisitingLinformerForm

    public init(isCausal: Bool, form: RevisitingLinformerForm = .separable) {
        torchPrecondition(
            !isCausal || form == .separable, in: "RevisitingLinformerCore",
            "the form data-projected reads the whole sequence, so it cannot be causal")
        self.isCausal = isCausal
        self.form = form
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        if isCausal {
            checkCausal(q, k)
            return causal(q, k, v, paddingMask, initialState(CoreShape(q, v))).out
        }
        let (k, v, weights) = bidirectional(k, v, paddingMask)
        let values = matmul(weights.transposed(), v)  // [batch, heads, headDim, valueDim]
        switch form {
        case .separable: return matmul(features(q), values).to(q.dtype)
        case .dataProjected:
            let scores = matmul(q.to(k.dtype), matmul(weights.transposed(), k).transposed())
            return matmul((scores / Double(q.size(3)).squareRoot()).softmax(), values).to(q.dtype)
        }
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        guard isCausal else {
            let (k, v, weights) = bidirectional(k, v, paddingMask)
            switch form {
            case .separable:
                return matmul(matmul(features(q), weights.transposed()), v).to(q.dtype)  // a wᵀ is [n, m]
            case .dataProjected:
                let projection = weights.transposed()  // E
                let scores = matmul(q.to(k.dtype), matmul(projection, k).transposed()) / Double(q.size(3)).squareRoot()
                return matmul(scores.softmax(), matmul(projection, v)).to(q.dtype)
            }
        }
        checkCausal(q, k)
        let a = features(q)
        let rows = (0..<q.size(2)).map { index -> Tensor in
            let seen = { (x: Tensor) in x.sliced(2, 0..<index + 1) }
            let (_, v, weights) = bidirectional(seen(k), seen(v), paddingMask?.sliced(1, 0..<index + 1))
            return matmul(a.sliced(2, index..<index + 1), matmul(weights.transposed(), v))
        }
        return concatenate(rows, dim: 2).to(q.dtype)
    }

    private func features(_ q: Tensor) -> Tensor { q.to(q.dtype.accumulator).softmax() }

    /// w `[batch, heads, m, headDim]`, zero at padded keys, and keys and values in the type that sums are kept in.
    private func bidirectional(_ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> (k: Tensor, v: Tensor, w: Tensor) {
        let (k, v) = (k.to(k.dtype.accumulator), v.to(v.dtype.accumulator))
        guard let paddingMask else { return (k, v, k.softmax(2)) }
        let padded = (.!paddingMask).unsqueezed(1).unsqueezed(3)
        let blind = (.!paddingMask.any(1, keepDim: true)).unsqueezed(1).unsqueezed(3)
        let logits = k.masked(where: padded, with: -Double.infinity).masked(where: blind, with: 0)
        return (k, v, logits.softmax(2).masked(where: blind, with: 0))
    }

    private func checkCausal(_ q: Tensor, _ k: Tensor) {
        torchPrecondition(
            q.size(2) == k.size(2), in: "RevisitingLinformerCore",
            "causal attention needs as many keys as queries; got q \(q.shape), k \(k.shape)")
    }

    // MARK: The causal form

    // With L_i = log Σ_{j≤i} exp(k_j) by features, the weight of key j is exp(k_j - L_i). L never falls, and k_j ≤ L_b ≤ L_i
    // for any place b between j and i, so that the weight is a product of exp(k_j - L_b) and exp(L_b - L_i), neither of
    // which can overflow: half a block looks at the other half through the last place of that one, in blocks of 2, 4, 8, …
    // tokens. L only scales. The weights are divided by their sum, which is 1, but whose gradient is the denominator's.
    private func causal(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, _ state: RevisitingLinformerState
    ) -> (out: Tensor, final: RevisitingLinformerState) {
        let length = q.size(2)
        let keys = masked(k.to(state.logSums.dtype), paddingMask, with: Self.nothing)
        let values = masked(v.to(state.logSums.dtype), paddingMask, with: 0)
        let logSums = withNoGrad {
            concatenate([state.logSums.unsqueezed(2), keys], dim: 2).cumulativeLogSumExp(2)
        }
        let final = logSums.selected(2, -1)
        let blocks = Blocks(
            a: features(q), k: keys, v: values, l: logSums.sliced(2, 1..<max(length + 1, 1)), last: final)
        let (out, means) = blocks.attend(state)
        let kept = RevisitingLinformerState(logSums: final, means: means)
        return (out.flattened(2, 3).sliced(2, 0..<length).to(q.dtype), kept)
    }

    /// Stands for log 0, finite so that differences of two are 0 and not undefined.
    fileprivate static let nothing = -1e30

    private func masked(_ x: Tensor, _ paddingMask: Tensor?, with value: Double) -> Tensor {
        guard let paddingMask else { return x }
        return x.masked(where: (.!paddingMask).unsqueezed(1).unsqueezed(3), with: value)
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> RevisitingLinformerState {
        let dtype = shape.dtype.accumulator
        return RevisitingLinformerState(
            logSums: .full(
                [shape.batch, shape.heads, shape.headDim], Self.nothing, dtype: dtype, device: shape.device),
            means: .zeros(
                [shape.batch, shape.heads, shape.headDim, shape.valueDim], dtype: dtype, device: shape.device))
    }

    public func prefill(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout RevisitingLinformerState
    ) -> Tensor {
        check(q, k, v, paddingMask)
        torchPrecondition(isCausal, in: "RevisitingLinformerCore.prefill", "bidirectional attention cannot stream")
        let (out, final) = causal(q, k, v, paddingMask, state)
        state = final
        return out
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout RevisitingLinformerState) -> Tensor {
        torchPrecondition(isCausal, in: "RevisitingLinformerCore.step", "bidirectional attention cannot stream")
        let wide = state.logSums.dtype
        let logSums = stack([state.logSums, k.to(wide)]).logSumExp(0)
        let kept = (state.logSums - logSums).exp().unsqueezed(3)
        let added = (k.to(wide) - logSums).exp().unsqueezed(3) * v.to(wide).unsqueezed(2)
        state = RevisitingLinformerState(logSums: logSums, means: state.means * kept + added)
        return matmul(features(q).unsqueezed(2), state.means).squeezed(2).to(q.dtype)
    }
}

extension RevisitingLinformerCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int,
        state: RevisitingLinformerState, to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard v.count / heads <= StepProgram.largestHead else { return false }
        program.appendWeightedMeans(q, k, v, heads: heads, means: state.means, logSums: state.logSums, to: y)
        return true
    }
}

/// What the causal form remembers: by features, the values' mean weighted with exp(k_j), and log Σ exp(k_j).
public struct RevisitingLinformerState: StreamingState {
    var logSums: Tensor  // [batch, heads, headDim]
    var means: Tensor  // [batch, heads, headDim, valueDim]

    public var tensors: [String: Tensor] { ["log_sums": logSums, "means": means] }
}

/// The causal form's inputs in chunks `[batch, heads, chunks, size, …]`, whose size is a power of two.
private struct Blocks {
    private let a, k, v, l: Tensor
    private let size: Int

    /// - Parameters:
    ///   - l: log Σ exp(k) up to each place.
    ///   - last: that of the last place, which goes on over the places that fill up the last chunk.
    init(a: Tensor, k: Tensor, v: Tensor, l: Tensor, last: Tensor) {
        let length = k.size(2)
        var size = 1
        while size < min(length, 64) { size *= 2 }
        self.size = size
        let chunks = (length + size - 1) / size
        let missing = chunks * size - length
        func cut(_ x: Tensor) -> Tensor { x.reshaped(x.size(0), x.size(1), chunks, size, -1) }
        self.a = cut(a.padded(2, after: missing))
        self.k = cut(k.padded(2, after: missing, value: RevisitingLinformerCore.nothing))
        self.v = cut(v.padded(2, after: missing))
        let rest = last.unsqueezed(2).expanded(to: [-1, -1, missing, -1])
        self.l = cut(missing == 0 ? l : concatenate([l, rest], dim: 2))
    }

    /// What all places take from themselves, from the left half of each block in whose right half they are, and from what
    /// was before their chunk; and the means after the last chunk.
    func attend(_ state: RevisitingLinformerState) -> (out: Tensor, means: Tensor) {
        let (before, means, look) = past(state)
        let valueDim = v.size(-1)
        let own = (k - l).exp()
        let levels = levels()
        var total = own + look * before.selected(-1, valueDim).unsqueezed(3)
        for level in levels { total = total + onRight(level.looks * level.keys.sum(-2, keepDim: true)) }
        let shares = a / total
        var out = (shares * own).sum(-1, keepDim: true) * v
        out = out + matmul(shares * look, before.sliced(-1, 0..<valueDim))
        for level in levels {
            let scores = matmul(halves(shares, level.half).right * level.looks, level.keys.transposed())
            out = out + onRight(matmul(scores, halves(v, level.half).left))
        }
        return (out, means.sliced(-1, 0..<valueDim))
    }

    /// How blocks of two halves see each other: the right one `looks`, the left one's `keys`, `[…, half, headDim]`.
    private func levels() -> [(half: Int, looks: Tensor, keys: Tensor)] {
        var found: [(half: Int, looks: Tensor, keys: Tensor)] = []
        var half = 1
        while half < size {
            let sums = halves(l, half)
            let boundary = sums.left.sliced(-2, half - 1..<half)
            found.append(
                (half, looks: (boundary - sums.right).exp(), keys: (halves(k, half).left - boundary).exp()))
            half *= 2
        }
        return found
    }

    /// The means before each chunk and after the last, with the sum of their weights as one more column, and how each place
    /// looks at those before its chunk.
    private func past(_ state: RevisitingLinformerState) -> (before: Tensor, after: Tensor, look: Tensor) {
        let ends = l.selected(3, -1)  // [batch, heads, chunks, headDim]
        let chunks = ends.size(2)
        let starts = concatenate([state.logSums.unsqueezed(2), ends.sliced(2, 0..<max(chunks - 1, 0))], dim: 2)
        let kept = (starts - ends).exp().unsqueezed(4)
        let added = matmul((k - ends.unsqueezed(3)).exp().transposed(), withOnes(v))
        var means = [withOnes(state.means)]
        for chunk in 0..<chunks {
            means.append(means[chunk] * kept.selected(2, chunk) + added.selected(2, chunk))
        }
        let before = stack(Array(means.dropLast()), dim: 2)  // [batch, heads, chunks, headDim, valueDim + 1]
        return (before, means[chunks], (starts.unsqueezed(3) - l).exp())
    }

    private func withOnes(_ x: Tensor) -> Tensor {
        concatenate([x, Tensor.ones(like: x.sliced(-1, 0..<min(1, x.size(-1))))], dim: -1)
    }

    /// The halves `[batch, heads, blocks, half, dim]` of blocks of 2 · `half` places.
    private func halves(_ x: Tensor, _ half: Int) -> (left: Tensor, right: Tensor) {
        let pairs = x.reshaped(x.size(0), x.size(1), -1, 2, half, x.size(-1))
        return (pairs.selected(3, 0), pairs.selected(3, 1))
    }

    /// Right halves in their places, zeros on the left: `[batch, heads, chunks, size, dim]`.
    private func onRight(_ x: Tensor) -> Tensor {
        x.unsqueezed(3).padded(3, before: 1).reshaped(x.size(0), x.size(1), -1, size, x.size(-1))
    }
}

extension CoreShape {
    /// As queries q and values v have them.
    fileprivate init(_ q: Tensor, _ v: Tensor) {
        self.init(
            batch: q.size(0), heads: q.size(1), headDim: q.size(3), valueDim: v.size(3), dtype: q.dtype,
            device: q.device)
    }
}

// MARK: - In the catalogue

/// Options of `revisiting-linformer` in a recipe.
public struct RevisitingLinformerOptions: MixerOptions {
    public var form: RevisitingLinformerForm = .separable

    public init() {}

    public init(_ form: RevisitingLinformerForm) { self.form = form }

    public init(from decoder: any Decoder) throws {
        form = try decoder.container(keyedBy: CodingKeys.self).value(.form, default: form)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        if context.isCausal && form == .dataProjected {
            throw ConfigurationError(
                "revisiting-linformer: form data-projected reads the whole sequence, so a causal model needs separable")
        }
        return Attention(
            RevisitingLinformerCore(isCausal: context.isCausal, form: form), modelDim: context.modelDim,
            heads: context.heads, using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "revisiting-linformer", title: "Revisiting Linformer (a reading of the abstract)",
        paper: Paper(
            "Revisiting Linformer with a modified self-attention with linear complexity", authors: "Verma", year: 2020,
            arXiv: "2101.10277"),
        causal: true, bidirectional: true, padding: true, crossAttention: true, streaming: .constant,
        time: "O(N D²)", memory: "O(N D)",
        remark: "a reading of the abstract: the paper's text and code could not be had",
        options: RevisitingLinformerOptions.self,
        golden: { golden in
            try golden.expect(variants: RevisitingLinformerForm.allCases.map(\.rawValue))
            let causal = try golden.settings.bool("causal")
            _ = try golden.settings.double("dropout", or: 0, expecting: [0])
            let form: RevisitingLinformerForm = golden.variant == "separable" ? .separable : .dataProjected
            guard !causal || form == .separable else {
                throw ConfigurationError("data-projected has no causal form")
            }
            return .core(RevisitingLinformerCore(isCausal: causal, form: form))
        })
}
