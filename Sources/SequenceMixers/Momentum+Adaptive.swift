// Momentum attention whose momentum is chosen at each step, as the optimal heavy-ball momentum for the curvature that the
// last two steps show:
//   β_i = clamp((1 - √(γ |U_i - U_{i-1}| / |s_{i-1} - s_{i-2}|))², 0, maximum),  p_i = β_i p_{i-1} - γ U_i,  s_i = s_{i-1} - p_i
// with Frobenius norms per batch and head, p_1 = -U_1. A change of exactly zero has no direction: its gradient is 0.
import Torch
import TorchNN

/// What the adaptive form remembers.
public struct AdaptiveState: StreamingState {
    var s, p, u, sPrevious: Tensor  // [batch, heads, features, valueDim]
    var z: Tensor  // [batch, heads, features]
    var isFirst = true

    init(_ shape: CoreShape, features: Int) {
        let matrix = Tensor.zeros(
            [shape.batch, shape.heads, features, shape.valueDim], dtype: shape.dtype, device: shape.device)
        (s, p, u, sPrevious) = (matrix, matrix, matrix, matrix)
        z = .zeros([shape.batch, shape.heads, features], dtype: shape.dtype, device: shape.device)
    }

    public var tensors: [String: Tensor] { ["s": s, "p": p, "u": u, "s_previous": sPrevious, "z": z] }
}

extension MomentumCore {
    /// All tokens, one after the other: each momentum depends on the state before it.
    func adaptive(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ state: inout AdaptiveState) -> Tensor {
        let outputs = (0..<k.size(2)).map { index in
            adaptiveStep(q.selected(2, index), k.selected(2, index), v.selected(2, index), &state)
        }
        return stack(outputs, dim: 2)
    }

    func adaptiveStep(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ state: inout AdaptiveState) -> Tensor {
        let u = k.unsqueezed(3) * v.unsqueezed(2)
        let p: Tensor
        if state.isFirst {
            p = -u
        } else {
            p = adaptiveMomentum(change: u - state.u, distance: state.p) * state.p - u * stepSize
        }
        // s_{i-1} - s_{i-2} is -p_{i-1}, so the last momentum already holds the distance.
        state.sPrevious = state.s
        state.s = state.s - p
        state.z += k
        state.p = p
        state.u = u
        state.isFirst = false
        let numerator = matmul(q.unsqueezed(2), state.s).squeezed(2)
        return numerator / ((q * state.z).sum(-1, keepDim: true) + epsilon)
    }

    private func adaptiveMomentum(change: Tensor, distance: Tensor) -> Tensor {
        let travelled = distance.safeNorm(-2, -1)
        let moved = travelled .> 0
        let ratio = stepSize * change.safeNorm(-2, -1) / select(moved, travelled, Tensor.ones(like: travelled))
        let root = select(moved, ratio, Tensor.ones(like: ratio)).safeRoot()  // where nothing moved, momentum is 0
        return (1 - root).square().clamped(min: 0, max: maximumMomentum)
    }

    /// The definition, word for word: sums over all earlier tokens, with the weights that the momenta multiply up to.
    func adaptiveReference(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let length = k.size(2)
        let u = (0..<length).map { k.selected(2, $0).unsqueezed(3) * v.selected(2, $0).unsqueezed(2) }
        var s = [Tensor.zeros(like: u[0])]
        var p = [Tensor]()
        for index in 0..<length {
            if index == 0 {
                p.append(-u[0])
            } else {
                let momentum = adaptiveMomentum(change: u[index] - u[index - 1], distance: s[index] - s[index - 1])
                p.append(momentum * p[index - 1] - stepSize * u[index])
            }
            s.append(s[index] - p[index])
        }
        let states = stack(Array(s.dropFirst()), dim: 2)  // [batch, heads, length, features, valueDim]
        let numerator = matmul(q.unsqueezed(3), states).squeezed(3)
        return numerator / ((q * k.cumulativeSum(2)).sum(-1, keepDim: true) + epsilon)
    }
}
