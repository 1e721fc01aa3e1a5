// N-gram masked self-attention. Chelba, Chen, Bapna, Shazeer 2020, "Faster Transformer Decoding: N-gram Masked Self-Attention",
// arXiv 2001.04589, and `mask_ngram_order` in the first author's TransformerAttentionLayer of Lingvo.
//
//   out_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = q_i·k_j / √D,   over i - n < j ≤ i
//
// with n = N - 1: decoder position i holds token i - 1, so token i is predicted from the N - 1 tokens before it. That is strictly
// so for one layer; l layers see (n - 1) l + 1 positions.
import Torch
import TorchNN

/// Causal softmax attention to the last n positions, the query's own among them.
///
/// It is the sparse pattern `window(radius: n - 1)` of ``SparseCore``, and evaluated as that: time O(N n D), memory O(N D),
/// gradients included. Streaming keeps a ring of n keys and values, whatever the length.
public final class NGramCore: Module, StreamingCore {
    /// N: how many tokens a prediction and its context are.
    public let ngram: Int
    let window: SparseCore

    /// - Parameter ngram: N, at least 2.
    public init(ngram: Int) {
        torchPrecondition(ngram >= 2, in: "NGramCore", "expected an ngram of at least 2, got \(ngram)")
        self.ngram = ngram
        window = SparseCore(.window(radius: max(ngram - 2, 0)), isCausal: true)
        super.init()
    }

    /// n
    public var order: Int { ngram - 1 }

    public var isCausal: Bool { true }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        return window(q, k, v, paddingMask: paddingMask)
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        check(q, k, v, paddingMask)
        let (i, j) = (Tensor.arange(0..<q.size(2)).unsqueezed(1), Tensor.arange(0..<k.size(2)).unsqueezed(0))
        var visible = ((j .<= i) .&& (i - j .< order))
        if let paddingMask { visible = (visible .&& paddingMask.unsqueezed(1).unsqueezed(1)) }
        let logits = matmul(q.to(.float64), k.to(.float64).transposed()) / Double(max(q.size(3), 1)).squareRoot()
        return visibleAttention(logits, visible, v.to(.float64)).to(v.dtype)
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> SparseState { window.initialState(shape) }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout SparseState) -> Tensor
    {
        check(q, k, v, paddingMask)
        return window.prefill(q, k, v, paddingMask: paddingMask, state: &state)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout SparseState) -> Tensor {
        window.step(q, k, v, state: &state)
    }
}

// MARK: - In the catalogue

/// Options of `ngram` in a recipe.
public struct NGramOptions: MixerOptions {
    /// N; the paper finds 6 to 8 enough for translation.
    public var ngram = 6

    public init() {}

    public init(ngram: Int) { self.ngram = ngram }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        ngram = try container.decodeIfPresent(Int.self, forKey: .ngram) ?? ngram
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        guard (2...SparseAtom.largest).contains(ngram) else {
            throw ConfigurationError("ngram: ngram must be 2 to \(SparseAtom.largest), not \(ngram)")
        }
        guard context.isCausal else {
            throw ConfigurationError(
                "ngram: the mechanism is a decoder's; use mixer 'sparse' with a window to see both sides")
        }
        return Attention(
            NGramCore(ngram: ngram), modelDim: context.modelDim, heads: context.heads,
            rotary: try context.rotaryEmbedding(), using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "ngram", title: "N-gram masked attention",
        paper: Paper(
            "Faster Transformer Decoding: N-gram Masked Self-Attention", authors: "Chelba et al.", year: 2020,
            arXiv: "2001.04589"),
        causal: true, bidirectional: false, padding: true, crossAttention: false, streaming: .constant, rotary: true,
        time: "O(N n D)", memory: "O(N D)", options: NGramOptions.self,
        golden: { golden in
            try golden.expect(variants: ["ngram"])
            let settings = golden.settings
            guard try settings.bool("causal") else {
                throw ConfigurationError("setting 'causal' is false; known: true")
            }
            let ngram = try settings.optionalInt("ngram") ?? settings.int("order") + 1
            guard ngram >= 2 else { throw ConfigurationError("setting 'ngram' is \(ngram); it is 2 or more") }
            try golden.check("order", ngram - 1)
            let core = NGramCore(ngram: ngram)
            if let expected = golden.optionalTensor("mask").map({ $0 .!= 0 }) {
                let mask = SparsePattern.window(radius: ngram - 2)
                    .mask(length: expected.size(-1), heads: expected.size(0), isCausal: true)
                guard mask.isIdentical(to: expected) else {
                    throw ConfigurationError("n-gram attention differs from the file's mask")
                }
            }
            return .core(core)
        })
}
