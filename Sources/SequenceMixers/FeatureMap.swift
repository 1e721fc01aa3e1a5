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

    /// What a kernel can apply itself; nil for the random maps.
    var elementwise: ElementwiseMap? {
        switch self {
        case .eluPlusOne: .eluPlusOne
        case .relu: .relu
        case .sigmoid: .sigmoid
        case .exponential: .exponential
        case .favor, .rff, .smoothedRff, .generalizedRelu: nil
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

/// That the random directions Ω are drawn anew in training, as Performers do, so that no fixed error is learned around.
public struct FeatureRedrawing {
    /// Passes of training from one draw to the next.
    public let interval: Int
    public let orthogonal: Bool
    let generator: RandomGenerator

    /// - Parameter generator: whose state, saved and restored, gives the same draws again.
    public init(every interval: Int, orthogonal: Bool, using generator: RandomGenerator) {
        torchPrecondition(
            interval > 0, in: "FeatureRedrawing", "expected an interval of at least 1, got \(interval)")
        self.interval = interval
        self.orthogonal = orthogonal
        self.generator = generator
    }
}

/// φ: `[…, headDim]` → `[…, features]`.
public final class FeatureMap: Module {
    public let kind: FeatureMapKind
    /// Ω `[headDim, columns]` of the random maps: saved, not trained, drawn once or at intervals (``redrawing``).
    public let omega: Buffer?
    /// t: inputs are multiplied by √t; nil is 1/√headDim (1 for `generalized-relu`).
    public let temperature: Double?
    /// `favor` only: subtracts the largest |x|² of the sequence, so that exp cannot overflow.
    public let stabilizes: Bool
    /// `smoothed-rff` only: the value of the constant feature.
    public let smoothing: Double
    /// When Ω is drawn anew; nil is never.
    public let redrawing: FeatureRedrawing?
    /// Passes of training with the present Ω, saved so that a resumed run draws anew when the
    /// uninterrupted one would: int64 `[1]`.
    public let passes: Buffer?

    public init(
        _ kind: FeatureMapKind, omega: Tensor? = nil, temperature: Double? = nil, stabilizes: Bool = false,
        smoothing: Double = 1, redrawing: FeatureRedrawing? = nil
    ) {
        torchPrecondition(
            redrawing == nil || omega != nil, in: "FeatureMap", "'\(kind.rawValue)' has no omega to draw anew")
        torchPrecondition(
            kind.isRandom == (omega != nil), in: "FeatureMap",
            "'\(kind.rawValue)' \(kind.isRandom ? "needs" : "takes no") omega")
        self.kind = kind
        self.omega = omega.map { Buffer($0) }
        self.temperature = temperature
        self.stabilizes = stabilizes
        self.smoothing = smoothing
        self.redrawing = redrawing
        passes = redrawing.map { _ in Buffer(Tensor([0])) }
        super.init()
    }

    /// Ω for one pass of a layer, which in training is counted, and drawn anew when it is time.
    ///
    /// A pass that is computed again in the backward pass gets what it got the first time.
    func nextOmega() -> Tensor? {
        guard let redrawing, let passes, let omega, isTraining else { return omega?.value }
        return Replay.choice {
            let before = omega.value
            let count = passes.value.integerItem()
            let isTime = count >= redrawing.interval
            if isTime {
                let drawn = Self.drawOmega(
                    headDim: before.size(0), columns: before.size(1), orthogonal: redrawing.orthogonal,
                    using: redrawing.generator)
                omega.value = drawn.to(before.dtype).to(before.device)
            }
            passes.value = Tensor([isTime ? 1 : count + 1], device: before.device)
            return omega.value
        }
    }

    /// - Parameters:
    ///   - paddingMask: `[batch, length]` for x `[batch, heads, length, headDim]`, true for a real token: what is padded
    ///     has no part in the maximum that `stabilizes` takes.
    ///   - given: Ω of this pass; nil is the present one.
    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil, omega given: Tensor? = nil) -> Tensor {
        let omega = given ?? omega?.value
        switch kind {
        case .eluPlusOne: return x.elu() + 1
        case .relu: return x.relu()
        case .sigmoid: return x.sigmoid()
        case .exponential: return x.exp()
        case .generalizedRelu: return projected(x, omega, standard: 1).u.relu()
        case .favor:
            guard let omega else { return x }
            let normalizer = 0.5 * log(Double(2 * omega.size(1)))
            if !stabilizes && x.rank == 4 && x.device == .cpu {
                return positiveFeatures(x, directions: omega, temperature: temperature(x), offset: normalizer)
            }
            let (scaled, u) = projected(x, omega)
            let squares = scaled.square().sum(-1, keepDim: true)
            var offset = squares * 0.5 + normalizer
            if stabilizes { offset += maskedKeys(squares, paddingMask).maximum(-2, keepDim: true) }
            return concatenate([(u - offset).exp(), (-u - offset).exp()], dim: -1)
        case .rff: return fourier(x, omega)
        case .smoothedRff:
            let waves = fourier(x, omega)
            return concatenate([waves, Tensor.full(like: waves.sliced(-1, 0..<1), smoothing)], dim: -1)
        }
    }

    private func temperature(_ x: Tensor, _ standard: Double? = nil) -> Double {
        temperature ?? standard ?? 1 / Double(x.size(-1)).squareRoot()
    }

    private func fourier(_ x: Tensor, _ omega: Tensor?) -> Tensor {
        let u = projected(x, omega).u
        return concatenate([u.cos(), u.sin()], dim: -1) * (1 / Double(u.size(-1))).squareRoot()
    }

    private func projected(_ x: Tensor, _ omega: Tensor?, standard: Double? = nil) -> (scaled: Tensor, u: Tensor) {
        guard let omega else { return (x, x) }
        let x = x.to(x.dtype.accumulator)  // exponents need their digits
        let temperature = temperature(x, standard)
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
