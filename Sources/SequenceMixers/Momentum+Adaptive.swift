// Momentum attention whose momentum is chosen at each step, as the optimal heavy-ball momentum for the curvature that the
// last two steps show:
//   β_i = clamp((1 - √(γ |U_i - U_{i-1}| / |s_{i-1} - s_{i-2}|))², 0, maximum),  p_i = β_i p_{i-1} - γ U_i,  s_i = s_{i-1} - p_i
// with Frobenius norms per batch and head, p_1 = -U_1. A change of exactly zero has no direction: its gradient is 0.
// A padded token is no step: nothing moves.
import Torch
import TorchNN

/// What the adaptive form remembers.
public struct AdaptiveState: StreamingState {
    var s, p, u, sPrevious: Tensor  // [batch, heads, features, valueDim]
    var z: Tensor  // [batch, heads, features]
    var hasBegun: Tensor  // [batch, 1, 1, 1], whether the first step, which has size 1, has been made

    init(_ shape: CoreShape, features: Int) {
        let dtype = shape.dtype.accumulator
        let matrix = Tensor.zeros(
            [shape.batch, shape.heads, features, shape.valueDim], dtype: dtype, device: shape.device)
        (s, p, u, sPrevious) = (matrix, matrix, matrix, matrix)
        z = .zeros([shape.batch, shape.heads, features], dtype: dtype, device: shape.device)
        hasBegun = .zeros([shape.batch, 1, 1, 1], dtype: .bool, device: shape.device)
    }

    public var tensors: [String: Tensor] {
        ["s": s, "p": p, "u": u, "s_previous": sPrevious, "z": z, "has_begun": hasBegun]
    }

    /// Goes back to `before` for the sequences where `isReal` `[batch]` is false.
    mutating func keep(_ before: AdaptiveState, unless isReal: Tensor) {
        let (matrix, vector) = (isReal.reshaped(-1, 1, 1, 1), isReal.reshaped(-1, 1, 1))
        s = select(matrix, s, before.s)
        p = select(matrix, p, before.p)
        u = select(matrix, u, before.u)
        sPrevious = select(matrix, sPrevious, before.sPrevious)
        z = select(vector, z, before.z)
        hasBegun = select(matrix, hasBegun, before.hasBegun)
    }
}

extension MomentumCore {
    /// All tokens, one after the other: each momentum depends on the state before it.
    func adaptive(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, _ state: inout AdaptiveState) -> Tensor
    {
        let sums = state.s.dtype
        if q.device == .cpu && q.size(2) == k.size(2) {
            let (out, final) = adaptiveMomentumAttention(
                q.to(sums), k.to(sums), v.to(sums), paddingMask: paddingMask, stepSize: stepSize,
                maximumMomentum: maximumMomentum, epsilon: epsilon,
                initial: AdaptiveMomentumState(
                    s: state.s, p: state.p, u: state.u, z: state.z, begun: state.hasBegun.to(sums).flattened()))
            state.sPrevious = final.s + final.p
            (state.s, state.p, state.u, state.z) = (final.s, final.p, final.u, final.z)
            state.hasBegun = (final.begun .> 0).reshaped(-1, 1, 1, 1)
            return out.to(v.dtype)
        }
        let outputs = (0..<k.size(2)).map { index in
            let before = state
            let out = adaptiveStep(q.selected(2, index), k.selected(2, index), v.selected(2, index), &state)
            if let paddingMask { state.keep(before, unless: paddingMask.selected(1, index)) }
            return out
        }
        return stack(outputs, dim: 2)
    }

    func adaptiveStep(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ state: inout AdaptiveState) -> Tensor {
        let sums = state.s.dtype
        let (q, k) = (q.to(sums), k.to(sums))
        let u = k.unsqueezed(3) * v.to(sums).unsqueezed(2)
        // s_{i-1} - s_{i-2} is -p_{i-1}, so the last momentum already holds the distance; it is 0 before the first step.
        let beta = adaptiveMomentum(change: u - state.u, distance: state.p)
        let p = beta * state.p - select(state.hasBegun, u * stepSize, u)
        state.sPrevious = state.s
        state.s = state.s - p
        state.z += k
        state.p = p
        state.u = u
        state.hasBegun = .ones(like: state.hasBegun)
        let numerator = matmul(q.unsqueezed(2), state.s).squeezed(2)
        return (numerator / ((q * state.z).sum(-1, keepDim: true) + epsilon)).to(v.dtype)
    }

    private func adaptiveMomentum(change: Tensor, distance: Tensor) -> Tensor {
        let travelled = distance.safeNorm(-2, -1)
        let moved = travelled .> 0
        let ratio = stepSize * change.safeNorm(-2, -1) / select(moved, travelled, Tensor.ones(like: travelled))
        let root = select(moved, ratio, Tensor.ones(like: ratio)).safeRoot()  // where nothing moved, momentum is 0
        return (1 - root).square().clamped(min: 0, max: maximumMomentum)
    }

    /// The definition, sequence by sequence, as if what is padded were not there; 0 in its place.
    func adaptiveReference(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor {
        guard let paddingMask else { return adaptiveReference(q, k, v) }
        let sequences = (0..<q.size(0)).map { row in
            let mask: [Bool] = paddingMask.selected(0, row).scalars()
            let real = mask.indices.filter { mask[$0] }
            if real.isEmpty { return Tensor.zeros(like: v.sliced(0, row..<row + 1)) }
            let part = { (x: Tensor) in x.sliced(0, row..<row + 1).indexed(2, Tensor(real)) }
            let out = adaptiveReference(part(q), part(k), part(v)).padded(2, after: 1)
            // The one more, a row of zeros, stands for every padded token.
            let places = mask.indices.map { index in real.firstIndex(of: index) ?? real.count }
            return out.indexed(2, Tensor(places))
        }
        return concatenate(sequences)
    }

    /// The definition, word for word.
    private func adaptiveReference(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let length = k.size(2)
        guard length > 0 else { return v }
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
