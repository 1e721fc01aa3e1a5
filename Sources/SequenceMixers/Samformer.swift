// SAMformer's attention over channels. Ilbert, Odonnat, Feofanov, Virmaux, Paolo, Palpanas, Redko 2024, "SAMformer:
// Unlocking the Potential of Transformers in Time Series Forecasting with Sharpness-Aware Minimization and Channel-Wise
// Attention", arXiv 2402.10198, section 3.
//
// A token z_i is the whole history of one channel, L numbers. With q = z W_q, k = z W_k, v = z W_v, biases included:
//
//   out_i = z_i + (Σ_j p_ij v_j) W_o,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = q_i·k_j / √d
//
// paper: W_q, W_k, W_v: L → d and W_o: d → L.   pytorch-demo: W_v: L → L and no W_o.
import Torch
import TorchNN

/// Which of its published forms the block has.
public enum SamformerForm: String, NamedChoice {
    /// Values of d channels and a projection back; what the paper's tables were made with.
    case paper
    /// Values as wide as the tokens, and no projection: the authors' PyTorch demonstration.
    case pytorchDemo = "pytorch-demo"
    /// No attention at all: a forecaster is then the linear model that the paper compares with.
    case linear
}

/// A block of one narrow head of attention and the residual connection, without a norm or a feed-forward part.
///
/// Time O(N² d + N L d) for N tokens of width L (d is L for the values of `pytorch-demo`); memory O(N L): scores are
/// never kept.
public final class ChannelAttention: Module, ReferenceEvaluating {
    public let query: Linear
    public let key: Linear
    public let value: Linear
    /// Nil in the form `pytorch-demo`.
    public let output: Linear?
    public let core = SoftmaxCore(isCausal: false)

    /// Evaluates the attention's equation word for word.
    public var usesReference = false

    /// - Parameters:
    ///   - modelDim: L, the width of a token.
    ///   - dim: d, of the one head.
    ///   - projectsBack: whether values have d channels and are projected back, as in the paper.
    public init(_ modelDim: Int, dim: Int = 16, projectsBack: Bool = true, using generator: RandomGenerator) {
        query = Linear(modelDim, dim, using: generator)
        key = Linear(modelDim, dim, using: generator)
        value = Linear(modelDim, projectsBack ? dim : modelDim, using: generator)
        output = projectsBack ? Linear(dim, modelDim, using: generator) : nil
        super.init()
        // The paper's code is Keras, and begins as Keras does; the demonstration as PyTorch does, which `Linear` is.
        guard projectsBack else { return }
        for layer in [query, key, value, output].compactMap({ $0 }) { layer.initializeAsKeras(using: generator) }
    }

    public var isCausal: Bool { false }
    public var isWholeBlock: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: query.inputs)
        // One head: [batch, 1, length, …].
        let (q, k, v) = (query(x).unsqueezed(1), keys(x).unsqueezed(1), value(x).unsqueezed(1))
        let attended =
            usesReference
            ? core.reference(q, k, v, paddingMask: paddingMask) : core(q, k, v, paddingMask: paddingMask)
        let a = attended.squeezed(1)
        return x + (output.map { $0(a) } ?? a)
    }

    /// A bias of the keys changes nothing, so its gradient is 0. What rounding would leave of it, Adam takes for a
    /// gradient as good as any, so it is made to be 0.
    private func keys(_ x: Tensor) -> Tensor {
        guard let bias = key.bias?.value else { return key(x) }
        return linear(x, key.weight.value, bias.detached() + bias * 0)
    }
}

/// The block of the form `linear`: every token stays as it is.
public final class UnmixedBlock: Module, SequenceMixer {
    public let modelDim: Int

    public init(_ modelDim: Int) {
        self.modelDim = modelDim
        super.init()
    }

    public var isCausal: Bool { false }
    public var isWholeBlock: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: modelDim)
        return x
    }
}

extension Linear {
    /// Glorot's uniform weights and no bias.
    fileprivate func initializeAsKeras(using generator: RandomGenerator) {
        Initializer.xavierUniform().apply(to: weight, using: generator)
        bias?.value.fillInPlace(0)
    }
}

// MARK: - In the catalogue

/// Options of `samformer` in a recipe. The mixer is a whole block: give the model `feedForwardDim: 0`, and for the
/// paper's forecaster `finalNorm: false` and `position: none`.
public struct SamformerOptions: MixerOptions {
    public var form: SamformerForm = .paper
    /// d; left out, 16.
    public var attentionDim: Int?

    public init() {}

    public init(form: SamformerForm, attentionDim: Int? = nil) {
        self.form = form
        self.attentionDim = attentionDim
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        form = try container.value(.form, default: form)
        attentionDim = try container.decodeIfPresent(Int.self, forKey: .attentionDim)
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        if let attentionDim, !(1...1_000_000).contains(attentionDim) {
            throw ConfigurationError("samformer: attentionDim must be from 1 to 1000000, not \(attentionDim)")
        }
        guard form != .linear else {
            if let attentionDim {
                throw ConfigurationError(
                    "samformer: attentionDim \(attentionDim) would be ignored: form 'linear' has no attention")
            }
            return UnmixedBlock(context.modelDim)
        }
        return ChannelAttention(
            context.modelDim, dim: attentionDim ?? 16, projectsBack: form == .paper, using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "samformer", title: "SAMformer",
        paper: Paper(
            "SAMformer: Unlocking the Potential of Transformers in Time Series Forecasting with Sharpness-Aware "
                + "Minimization and Channel-Wise Attention",
            authors: "Ilbert et al.", year: 2024, arXiv: "2402.10198"),
        causal: false, bidirectional: true, padding: true, crossAttention: false, streaming: .none,
        time: "O(N² d)", memory: "O(N D)",
        remark: """
            A whole block without a norm, to be used with feedForwardDim 0. In its paper a token is a channel of a \
            series, whose history is the token's vector: the cost is linear in time steps and quadratic in channels. \
            It has one head whatever the model's heads are.
            """,
        options: SamformerOptions.self,
        golden: { golden in
            throw ConfigurationError("files of \(golden.system) are of whole forecasters")
        })
}
