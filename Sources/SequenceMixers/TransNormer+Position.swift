// Where TransNormer's tokens stand: LRPE, a linear relative position encoding, of type 1 in the authors' code.
//
//   reflection  y = x - 2 (x·u) u,  u a unit vector
//   rotation    (y_2i, y_2i+1) turned by the angle n θ_i at position n
//
// so that the product of a query and a key depends on their distance. u is drawn once and not trained; θ is trained,
// from 10000^(-2i/e) on. All heads of a layer share both.
import Torch
import TorchNN

/// How TransNormer encodes positions in queries and keys.
public enum TransNormerPositionKind: String, NamedChoice {
    /// A fixed reflection, then a rotation whose angles are trained.
    case lrpe
    /// A rotation by fixed angles, without the reflection: what the paper's Long Range Arena runs have.
    case rotation
    case absent = "none"
}

/// Encodes positions in x `[batch, heads, length, headDim]`. With an odd headDim the last channel is not turned.
public final class TransNormerPosition: Module {
    public let kind: TransNormerPositionKind
    /// u `[headDim]`, of length 1: saved, not trained.
    public let reflection: Buffer?
    /// θ `[headDim / 2]`, where it is trained.
    public let theta: Parameter?
    private let fixedTheta: Buffer?
    let headDim: Int
    /// θ, trained or not.
    var angles: Tensor? { theta?.value ?? fixedTheta?.value }

    public init(_ kind: TransNormerPositionKind, headDim: Int, using generator: RandomGenerator) {
        self.kind = kind
        self.headDim = headDim
        let pairs = headDim / 2
        let exponents = Tensor.arange(0..<max(pairs, 0), dtype: .float64) * (-2 / Double(max(headDim, 1)))
        let angles = pow(10_000.0, exponents).to(.float32)
        theta = kind == .lrpe && pairs > 0 ? Parameter(angles) : nil
        fixedTheta = kind == .rotation && pairs > 0 ? Buffer(angles, isPersistent: false) : nil
        if kind == .lrpe {
            let direction = Tensor.randomNormal([headDim], using: generator, dtype: .float64)
            reflection = Buffer((direction / direction.norm()).to(.float32))
        } else {
            reflection = nil
        }
        super.init()
    }

    /// x `[batch, heads, length, headDim]`, whose tokens stand at positions `[1 or batch, 1, length]`.
    public func callAsFunction(_ x: Tensor, at positions: Tensor) -> Tensor {
        self(x, by: waves(at: positions, x.dtype))
    }

    /// The same after a feature map, by angles that several tensors share.
    func callAsFunction(_ x: Tensor, by waves: Waves, map: ElementwiseMap = .none) -> Tensor {
        guard let waves else { return map(x) }
        return turned(
            x, cosines: waves.cosines, sines: waves.sines, pairing: .interleaved, map: map, mirror: reflection?.value)
    }

    /// cos and sin of every pair's angle, `[1 or batch, length, pairs]`; nil where nothing depends on the position.
    typealias Waves = (cosines: Tensor, sines: Tensor)?

    /// - Parameter positions: `[1 or batch, 1, length]`
    func waves(at positions: Tensor, _ dtype: DType) -> Waves {
        guard kind != .absent else { return nil }
        guard let theta = angles else {
            let none = Tensor.zeros([1, positions.size(2), 0], dtype: dtype, device: positions.device)
            return (none, none)
        }
        // Far out, an angle of single precision would be no position.
        let angles = positions.squeezed(1).to(.float64).unsqueezed(-1) * theta.to(.float64)
        return (angles.cos().to(dtype), angles.sin().to(dtype))
    }
}
