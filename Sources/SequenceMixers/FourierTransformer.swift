// Fourier Transformer. He, Yang, Feng, Yin, Wang, Leng, Lin 2023, "Fourier Transformer: Fast Long Range Modeling by
// Removing Sequence Redundancy with FFT Operator", arXiv 2305.15099. The hidden sequence is filtered and shortened: its
// cosine transform, the first m coefficients of that, and the inverse transform of length m.
//
//   X_k = c_k(n) Σ_{i<n} x_i cos(π (2i + 1) k / 2n),   c_0(n) = √(1/n),  c_k(n) = √(2/n)
//   y_i = Σ_{k<m} c_k(m) X_k cos(π (2i + 1) k / 2m),   i < m,   m = ⌈n ratio⌉
//
// What comes after it works on m positions. Back at full length, position i takes that at ⌊i m / n⌋.
import Torch
import TorchNN

/// The low-pass filter that shortens a sequence to the first coefficients of its cosine transform, without any weights.
///
/// Time O(N log N · channels), memory O(N · channels), forward and backward. It looks at the whole sequence, so there
/// is neither a causal nor a streaming form.
public struct SpectralFilter: Sendable, Equatable {
    /// How many coefficients m are kept of a sequence of n.
    public enum Kept: Sendable, Equatable {
        /// ⌈n · ratio⌉
        case ratio(Double)
        /// As many for every length, or all of a shorter sequence.
        case length(Int)
    }

    public var kept: Kept
    /// Leaves position 0, a class token, as it is, and filters the rest. It counts for a ratio, not for a fixed length.
    public var keepsFirst: Bool
    /// Multiplies by √(m/n), so that a constant sequence keeps its value; without, as the authors have it, it grows to
    /// √(n/m) times that.
    public var keepsAmplitude: Bool

    public init(_ kept: Kept, keepsFirst: Bool = false, keepsAmplitude: Bool = false) {
        self.kept = kept
        self.keepsFirst = keepsFirst
        self.keepsAmplitude = keepsAmplitude
    }

    /// What is left of `length` positions, at least one.
    public func outputLength(_ length: Int) -> Int {
        let wanted =
            switch kept {
            case .ratio(let ratio): Int((Double(length) * ratio).rounded(.up))
            case .length(let count): count
            }
        let first = keepsFirst ? 1 : 0
        return first + min(max(wanted, 1), length - first)
    }

    /// x `[batch, n, channels]` → `[batch, outputLength(n), channels]`.
    ///
    /// - Parameter usesReference: multiplies by the matrices of cosines instead of taking fast transforms.
    public func callAsFunction(_ x: Tensor, usesReference: Bool = false) -> Tensor {
        let shape = x.shape
        torchPrecondition(
            shape.count == 3 && !shape.contains(0), in: "SpectralFilter",
            "expected x [batch, n, channels]; got \(shape)")
        guard shape.count == 3, !shape.contains(0) else { return x }
        let count = outputLength(shape[1])
        guard keepsFirst else { return lowPass(x, count, usesReference) }
        let first = x.sliced(1, 0..<1)
        if shape[1] == 1 { return first }
        return concatenate([first, lowPass(x.sliced(1, 1..<shape[1]), count - 1, usesReference)], dim: 1)
    }

    private func lowPass(_ x: Tensor, _ count: Int, _ usesReference: Bool) -> Tensor {
        let length = x.size(1)
        if count == length && !usesReference { return x }
        let wide = x.to(x.dtype.accumulator)  // there is no transform in half precision
        let scale = keepsAmplitude ? (Double(count) / Double(length)).squareRoot() : 1
        guard usesReference else { return CosineTransform.lowPass(wide, keeping: count, scale: scale).to(x.dtype) }
        let y = CosineTransform.inverseByMatrix(CosineTransform.coefficientsByMatrix(of: wide, keeping: count))
        let scaled = keepsAmplitude ? y * scale : y
        return scaled.to(x.dtype)
    }

    /// y `[batch, m, channels]`, shortened by one filter or several, stretched to `[batch, length, channels]`: each
    /// position takes its nearest to the left.
    public func upsampled(_ y: Tensor, to length: Int) -> Tensor {
        let count = y.size(1)
        if count == length { return y }
        let first = keepsFirst ? 1 : 0
        let places = Tensor.arange(0..<max(length - first, 0), device: y.device)
        let nearest = (places * (count - first)).floorDivided(by: max(length - first, 1)) + first
        if !keepsFirst { return y.indexed(1, nearest) }
        return y.indexed(1, concatenate([Tensor.zeros([1], dtype: .int64, device: y.device), nearest]))
    }
}

/// Softmax attention among the coefficients kept of a sequence, stretched back to its length.
///
/// With m of N positions kept, time O(N log N · modelDim + m² modelDim), memory O(N · modelDim). Each sequence of a padded
/// batch is transformed at its own length.
public final class FourierAttention: Module, ReferenceEvaluating {
    public let attention: Attention<SoftmaxCore>
    public let filter: SpectralFilter

    public var isCausal: Bool { false }

    public var usesReference = false {
        didSet { attention.usesReference = usesReference }
    }

    public init(_ filter: SpectralFilter, modelDim: Int, heads: Int, using generator: RandomGenerator) {
        self.filter = filter
        attention = Attention(SoftmaxCore(isCausal: false), modelDim: modelDim, heads: heads, using: generator)
        super.init()
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: attention.query.inputs)
        let shape = x.shape
        guard shape.count == 3, !shape.contains(0) else { return x }
        guard let mask = paddingMask, mask.shape == [shape[0], shape[1]] else { return whole(x) }
        return LengthGroups(mask).mapped(x, whole)
    }

    private func whole(_ x: Tensor) -> Tensor {
        let short = filter(x, usesReference: usesReference)
        return filter.upsampled(attention(short, paddingMask: nil), to: x.size(1))
    }
}

// MARK: - In the catalogue

/// Options of `fourier-transformer` in a recipe.
public struct FourierTransformerOptions: MixerOptions {
    /// The part of the coefficients that is kept; left out, 0.5 unless `kept` is given.
    public var ratio: Double?
    /// A fixed number of coefficients instead.
    public var kept: Int?
    /// Whether position 0 bypasses the filter.
    public var keepsFirst = false
    /// Whether the filter keeps the size of a constant.
    public var keepsAmplitude = false

    public init() {}

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        ratio = try container.decodeIfPresent(Double.self, forKey: .ratio)
        kept = try container.decodeIfPresent(Int.self, forKey: .kept)
        keepsFirst = try container.decodeIfPresent(Bool.self, forKey: .keepsFirst) ?? keepsFirst
        keepsAmplitude = try container.decodeIfPresent(Bool.self, forKey: .keepsAmplitude) ?? keepsAmplitude
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        guard !context.isCausal else {
            throw ConfigurationError(
                "fourier-transformer: the cosine transform mixes the whole sequence, so there is no causal form")
        }
        return FourierAttention(
            try makeFilter(), modelDim: context.modelDim, heads: context.heads, using: context.generator)
    }

    /// - Throws: ``ConfigurationError`` for a value out of range, or both ratio and kept.
    public func makeFilter() throws -> SpectralFilter {
        if let ratio, !(ratio > 0 && ratio <= 1) {
            throw ConfigurationError("fourier-transformer: ratio must be above 0 and at most 1, not \(ratio)")
        }
        if let kept, kept < 1 {
            throw ConfigurationError("fourier-transformer: kept must be at least 1, not \(kept)")
        }
        if ratio != nil && kept != nil {
            throw ConfigurationError(
                "fourier-transformer: ratio would be ignored: kept says how many coefficients stay")
        }
        let kept = kept.map { SpectralFilter.Kept.length($0) } ?? .ratio(ratio ?? 0.5)
        return SpectralFilter(kept, keepsFirst: keepsFirst, keepsAmplitude: keepsAmplitude)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "fourier-transformer", title: "Fourier Transformer",
        paper: Paper(
            "Fourier Transformer: Fast Long Range Modeling by Removing Sequence Redundancy with FFT Operator",
            authors: "He et al.", year: 2023, arXiv: "2305.15099"),
        causal: false, bidirectional: true, padding: true, crossAttention: false, streaming: .none,
        time: "O(N log N D + m² D)", memory: "O(N D)",
        remark: """
            m of N cosine coefficients stay: half, unless a ratio or a fixed number is given. FourierEncoder shortens \
            between the blocks of a stack.
            """,
        whyNotCausal: "its cosine transform mixes the whole sequence", options: FourierTransformerOptions.self,
        golden: { try goldenSubject($0) })

    /// The filter alone; blocks and encoders are models.
    private static func goldenSubject(_ golden: GoldenCase) throws -> GoldenSubject {
        try golden.expect(variants: [
            "spectral-filter", "lra-encoder-block-cls", "lra-encoder-block-mean", "bart-encoder-global-residual",
        ])
        let settings = golden.settings
        let x = try golden.tensor("x")
        guard x.rank == 3 else { throw ConfigurationError("x should be [batch, length, d_model], not \(x.shape)") }
        try golden.check("length", x.size(1))
        try golden.check("d_model", x.size(2))
        let rule = try settings.string(
            "kept_rule", or: settings.contains("ratio") ? "ceil(length*ratio)" : "fixed length",
            expecting: ["ceil(length*ratio)", "fixed length"])
        var options = FourierTransformerOptions()
        if rule == "fixed length" {
            options.kept = try settings.int("kept")
            guard !settings.contains("ratio") else { throw ConfigurationError("a fixed length takes no ratio") }
        } else {
            options.ratio = try settings.double("ratio")
        }
        let filter = try options.makeFilter()
        try golden.check("kept", filter.outputLength(x.size(1)))
        let hasCoefficients = golden.optionalTensor("dct") != nil
        return .evaluation(
            GoldenEvaluation(outputs: { inputs, usesReference in
                let x = inputs[0]
                var outputs = ["out": filter(x, usesReference: usesReference)]
                if hasCoefficients {
                    outputs["dct"] =
                        usesReference
                        ? CosineTransform.coefficientsByMatrix(of: x, keeping: x.size(1))
                        : CosineTransform.coefficients(of: x, keeping: x.size(1))
                }
                return outputs
            }))
    }
}
