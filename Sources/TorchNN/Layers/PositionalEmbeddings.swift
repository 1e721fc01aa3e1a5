import Torch

/// A trained vector for each position: `[length, dim]` for the positions from `offset` on.
public final class LearnedPositionalEmbedding: Module {
    /// `[maximumLength, dim]`
    public let weight: Parameter
    public let maximumLength: Int
    public let dim: Int

    /// The vectors are drawn from the normal distribution of deviation 0.02.
    public init(maximumLength: Int, dim: Int, using generator: RandomGenerator) {
        torchPrecondition(
            maximumLength > 0 && dim > 0, in: "LearnedPositionalEmbedding",
            "expected positive sizes, got maximumLength \(maximumLength), dim \(dim)")
        self.maximumLength = maximumLength
        self.dim = dim
        weight = Parameter(.drawn([max(maximumLength, 0), max(dim, 0)], .normal(deviation: 0.02), generator))
        super.init()
    }

    public func callAsFunction(length: Int, offset: Int = 0) -> Tensor {
        let fits = length >= 0 && offset >= 0 && length + offset <= maximumLength
        torchPrecondition(
            fits, in: "LearnedPositionalEmbedding",
            "\(length) positions from \(offset) on do not lie within maximumLength \(maximumLength)")
        return weight.value.sliced(0, fits ? offset..<offset + length : 0..<0)
    }
}

/// sin and cos of each position at frequencies base^(-2i / dim), taking turns along the last dimension: `[length, dim]` for
/// the positions from `offset` on (Vaswani et al., 2017, arXiv 1706.03762, section 3.5).
///
/// Computed in float64 whatever the model's type, so that positions far out keep their digits.
public final class SinusoidalPositionalEmbedding: Module {
    public let dim: Int
    /// Empty: what moving or converting the module changes, to say where and in which type to answer.
    private let placement = Buffer(.zeros([0]), isPersistent: false)
    private var waves: PositionWaves
    /// float64 `[⌈dim / 2⌉]`, in radians for a step of one position.
    public var frequencies: Tensor { waves.frequencies }

    public init(_ dim: Int, base: Double = 10_000) {
        torchPrecondition(dim > 0, in: "SinusoidalPositionalEmbedding", "expected a positive size, got \(dim)")
        self.dim = dim
        waves = PositionWaves(dim: dim, base: base)
        super.init()
    }

    public func callAsFunction(length: Int, offset: Int = 0) -> Tensor {
        let (cos, sin) = waves.at(
            length: length, offset: offset, dtype: placement.value.dtype, device: placement.value.device)
        return stack([sin, cos], dim: -1).flattened(-2, -1).sliced(-1, 0..<dim)
    }
}

/// Turns pairs of channels by angles that grow with the position, so that the product of a query and a key depends on their
/// distance (Su et al., RoFormer, 2021, arXiv 2104.09864, equation 34).
public final class RotaryEmbedding: Module {
    public typealias Pairing = ChannelPairing

    public let headDim: Int
    public let pairing: Pairing
    private var waves: PositionWaves
    /// float64 `[headDim / 2]`, in radians for a step of one position.
    public var frequencies: Tensor { waves.frequencies }

    public init(_ headDim: Int, base: Double = 10_000, pairing: Pairing = .halves) {
        torchPrecondition(
            headDim > 0 && headDim.isMultiple(of: 2), in: "RotaryEmbedding",
            "expected a positive even headDim, got \(headDim)")
        self.headDim = headDim
        self.pairing = pairing
        waves = PositionWaves(dim: headDim, base: base)
        super.init()
    }

    /// x `[batch, heads, length, headDim]`, its first token at position `offset` → the same shape.
    public func callAsFunction(_ x: Tensor, offset: Int = 0) -> Tensor {
        let shape = x.shape
        torchPrecondition(
            shape.count >= 2 && shape.last == headDim, in: "RotaryEmbedding",
            "expected an input [..., length, \(headDim)], got \(shape)")
        guard shape.count >= 2 else { return x }
        // Angles of half precision would be no positions.
        let dtype = x.dtype.size < DType.float32.size ? .float32 : x.dtype
        let length = shape[shape.count - 2]
        let (cos, sin) = waves.at(length: length, offset: offset, dtype: dtype, device: x.device)
        let heads = shape.count == 4 ? x : x.reshaped(1, shape.dropLast(2).reduce(1, *), length, headDim)
        let y = turned(heads, cosines: cos.unsqueezed(0), sines: sin.unsqueezed(0), pairing: pairing)
        return y.to(x.dtype).reshaped(to: shape)
    }
}

/// cos and sin of position · base^(-2i / dim) for i below dim / 2, rounded up: `[length, ⌈dim / 2⌉]`.
struct PositionWaves {
    let frequencies: Tensor
    private var last: Answer?

    /// The steps of a training run all ask for the same positions.
    private struct Answer {
        let length: Int
        let offset: Int
        let dtype: DType
        let device: Device
        let cos: Tensor
        let sin: Tensor
    }

    init(dim: Int, base: Double) {
        torchPrecondition(base > 0 && base.isFinite, in: "PositionWaves", "expected a positive base, got \(base)")
        let exponents = Tensor.arange(0..<max(0, (dim + 1) / 2), dtype: .float64) * (-2 / Double(max(dim, 1)))
        frequencies = pow(base, exponents)
    }

    mutating func at(length: Int, offset: Int, dtype: DType, device: Device) -> (cos: Tensor, sin: Tensor) {
        if let last, last.length == length, last.offset == offset, last.dtype == dtype, last.device == device {
            return (last.cos, last.sin)
        }
        torchPrecondition(
            length >= 0 && offset >= 0, in: "position",
            "expected a length and an offset of at least 0, got \(length), \(offset)")
        let positions = Tensor.arange(max(0, offset)..<max(0, offset) + max(0, length), dtype: .float64)
        let angles = positions.unsqueezed(1) * frequencies
        let answer = Answer(
            length: length, offset: offset, dtype: dtype, device: device,
            cos: angles.cos().to(dtype).to(device), sin: angles.sin().to(dtype).to(device))
        last = answer
        return (answer.cos, answer.sin)
    }
}
