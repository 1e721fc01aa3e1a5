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

/// Encodes positions in x `[…, length, headDim]`. With an odd headDim the last channel is not turned.
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

    /// - Parameter positions: broadcast to `[…, length]`.
    public func callAsFunction(_ x: Tensor, at positions: Tensor) -> Tensor {
        var y = x
        if let u = reflection?.value.to(x.dtype) { y = y - matmul(y, u.unsqueezed(1)) * (u * 2) }
        guard let theta = angles else { return y }
        // Far out, an angle of single precision would be no position.
        let angles = positions.to(.float64).unsqueezed(-1) * theta.to(.float64)  // […, length, pairs]
        let (cos, sin) = (angles.cos().to(y.dtype), angles.sin().to(y.dtype))
        let paired = 2 * (headDim / 2)
        let (a, b) = (y.sliced(-1, 0..<paired, step: 2), y.sliced(-1, 1..<paired, step: 2))
        let turned = stack([a * cos - b * sin, b * cos + a * sin], dim: -1).flattened(-2, -1)
        return paired == headDim ? turned : concatenate([turned, y.sliced(-1, paired..<headDim)], dim: -1)
    }
}
