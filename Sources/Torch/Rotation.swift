import CTorch

/// Which channels of a head form the i-th pair.
public enum ChannelPairing: String, Codable, Sendable, CaseIterable {
    /// i and i + the number of pairs, as GPT-NeoX and Llama's published weights in most libraries.
    case halves
    /// 2i and 2i + 1, as Su et al., RoFormer, 2021, arXiv 2104.09864.
    case interleaved
}

/// Turns pairs of channels by angles: with z = φ(x), reflected to z - 2 (z · mirror) mirror if there is a mirror, the pair (a, b)
/// becomes (a cos - b sin, b cos + a sin). One pass over memory on the CPU, and one for the gradients; elsewhere made of
/// LibTorch's operations.
///
/// - Parameters:
///   - x: `[batch, heads, length, headDim]`
///   - cosines: `[1 or batch, length, pairs]`, as `sines`, of at most headDim / 2 pairs; channels behind them are not turned.
///   - map: φ
///   - mirror: a unit vector `[headDim]`, which takes no gradient.
/// - Complexity: O(x.count) in time, and in memory where φ or the angles need x again for their gradients.
public func turned(
    _ x: Tensor, cosines: Tensor, sines: Tensor, pairing: ChannelPairing, map: ElementwiseMap = .none,
    mirror: Tensor? = nil
) -> Tensor {
    guard x.device == .cpu else {
        return composedTurn(x, cosines: cosines, sines: sines, pairing: pairing, map: map, mirror: mirror)
    }
    return call("turned", [x, cosines, sines, mirror]) {
        ctorch_rotate($0[0], $0[1], $0[2], $0[3], map.rawValue, pairing == .interleaved, $1)
    }
}

/// The same of LibTorch's operations.
func composedTurn(
    _ x: Tensor, cosines: Tensor, sines: Tensor, pairing: ChannelPairing, map: ElementwiseMap, mirror: Tensor?
) -> Tensor {
    var y = map(x)
    if let mirror { y = y - matmul(y, mirror.unsqueezed(1)) * (mirror * 2) }
    let (pairs, count) = (cosines.size(-1), 2 * cosines.size(-1))
    guard pairs > 0 else { return y }
    let (cos, sin) = (cosines.unsqueezed(1), sines.unsqueezed(1))
    let turned: Tensor
    switch pairing {
    case .halves:
        let (a, b) = (y.sliced(-1, 0..<pairs), y.sliced(-1, pairs..<count))
        turned = concatenate([a * cos - b * sin, b * cos + a * sin], dim: -1)
    case .interleaved:
        let (a, b) = (y.sliced(-1, 0..<count, step: 2), y.sliced(-1, 1..<count, step: 2))
        turned = stack([a * cos - b * sin, b * cos + a * sin], dim: -1).flattened(-2, -1)
    }
    return count == x.size(-1) ? turned : concatenate([turned, y.sliced(-1, count..<x.size(-1))], dim: -1)
}

extension ElementwiseMap {
    /// The map by LibTorch's operations.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        switch self {
        case .none: x
        case .eluPlusOne: x.elu() + 1
        case .relu: x.relu()
        case .sigmoid: x.sigmoid()
        case .exponential: x.exp()
        case .elu: x.elu()
        case .silu: x.silu()
        }
    }
}
