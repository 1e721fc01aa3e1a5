// The feature maps φ of linear attention, elementwise and random, as in the package of its authors.
//
// "Transformers are RNNs", Katharopoulos et al. 2020, arXiv 2006.16236; `favor`: "Rethinking Attention with Performers",
// Choromanski et al. 2020, arXiv 2009.14794; `rff`: Rahimi & Recht 2007.
import Foundation
import Torch
import TorchNN

/// Which φ replaces the exponential of softmax.
public enum FeatureMapKind: String, NamedChoice {
    /// elu(x) + 1, the paper's own.
    case eluPlusOne = "elu+1"
    case relu
    case sigmoid
    case exponential = "exp"
    /// Positive random features of the softmax kernel: exp(±u - |x|²/2) / √F.
    case favor
    /// Random Fourier features of the Gaussian kernel: √(2/F) [cos u, sin u]. The denominator may vanish.
    case rff
    /// `rff` with one more, constant, feature.
    case smoothedRff = "smoothed-rff"
    /// relu(x Ω)
    case generalizedRelu = "generalized-relu"

    var isRandom: Bool {
        switch self {
        case .eluPlusOne, .relu, .sigmoid, .exponential: false
        case .favor, .rff, .smoothedRff, .generalizedRelu: true
        }
    }

    /// F for so many columns of Ω.
    func features(columns: Int) -> Int {
        switch self {
        case .favor, .rff: 2 * columns
        case .smoothedRff: 2 * columns + 1
        default: columns
        }
    }

    /// The Fourier features of the authors' package are plain Gaussian.
    var isOrthogonalByDefault: Bool { self != .rff && self != .smoothedRff }

    /// Columns of Ω for F features.
    func columns(features: Int) -> Int {
        switch self {
        case .favor, .rff: features / 2
        case .smoothedRff: (features - 1) / 2
        default: features
        }
    }
}

/// φ: `[…, headDim]` → `[…, features]`.
public final class FeatureMap: Module {
    public let kind: FeatureMapKind
    /// Ω `[headDim, columns]` of the random maps: drawn once, saved, not trained.
    public let omega: Buffer?
    /// t: inputs are multiplied by √t; nil is 1/√headDim (1 for `generalized-relu`).
    public let temperature: Double?
    /// `favor` only: subtracts the largest |x|² of the sequence, so that exp cannot overflow.
    public let stabilizes: Bool
    /// `smoothed-rff` only: the value of the constant feature.
    public let smoothing: Double

    public init(
        _ kind: FeatureMapKind, omega: Tensor? = nil, temperature: Double? = nil, stabilizes: Bool = false,
        smoothing: Double = 1
    ) {
        torchPrecondition(
            kind.isRandom == (omega != nil), in: "FeatureMap",
            "'\(kind.rawValue)' \(kind.isRandom ? "needs" : "takes no") omega")
        self.kind = kind
        self.omega = omega.map { Buffer($0) }
        self.temperature = temperature
        self.stabilizes = stabilizes
        self.smoothing = smoothing
        super.init()
    }

    /// - Parameter paddingMask: `[batch, length]` for x `[batch, heads, length, headDim]`, true for a real token: what is padded
    ///   has no part in the maximum that `stabilizes` takes.
    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        switch kind {
        case .eluPlusOne: return x.elu() + 1
        case .relu: return x.relu()
        case .sigmoid: return x.sigmoid()
        case .exponential: return x.exp()
        case .generalizedRelu: return projected(x, standard: 1).u.relu()
        case .favor:
            let (scaled, u) = projected(x)
            let features = 2 * u.size(-1)
            let squares = scaled.square().sum(-1, keepDim: true)
            var offset = squares * 0.5 + 0.5 * log(Double(features))
            if stabilizes { offset += maskedKeys(squares, paddingMask).maximum(-2, keepDim: true) }
            return concatenate([(u - offset).exp(), (-u - offset).exp()], dim: -1)
        case .rff: return fourier(x)
        case .smoothedRff:
            let waves = fourier(x)
            return concatenate([waves, Tensor.full(like: waves.sliced(-1, 0..<1), smoothing)], dim: -1)
        }
    }

    private func fourier(_ x: Tensor) -> Tensor {
        let u = projected(x).u
        return concatenate([u.cos(), u.sin()], dim: -1) * (1 / Double(u.size(-1))).squareRoot()
    }

    private func projected(_ x: Tensor, standard: Double? = nil) -> (scaled: Tensor, u: Tensor) {
        guard let omega = omega?.value else { return (x, x) }
        let x = x.to(x.dtype.accumulator)  // exponents need their digits
        let temperature = temperature ?? standard ?? 1 / Double(x.size(-1)).squareRoot()
        let scaled = temperature == 1 ? x : x * temperature.squareRoot()
        return (scaled, matmul(scaled, omega.to(x.dtype)))
    }

    /// Ω for `features` features: normal numbers, in blocks of `headDim` orthogonal columns if wanted, each as long as a
    /// row of normal numbers is.
    public static func drawOmega(
        headDim: Int, columns: Int, orthogonal: Bool, using generator: RandomGenerator
    ) -> Tensor {
        if !orthogonal { return .randomNormal([headDim, columns], using: generator) }
        let blocks = stride(from: 0, to: columns, by: headDim).map { start in
            let gaussian = Tensor.randomNormal([headDim, headDim], using: generator)
            let block = gaussian.qr().q * gaussian.norm(1).unsqueezed(0)
            return block.sliced(1, 0..<min(headDim, columns - start))
        }
        return concatenate(blocks, dim: 1)
    }
}
