import CTorch

/// The positive random features of softmax's kernel (Choromanski et al., 2020, arXiv 2009.14794, lemma 1):
/// [exp(u - o), exp(-u - o)] with u = √temperature x Ω and o = temperature |x|² / 2 + `offset`. One pass over memory on the CPU,
/// and one for the gradients; elsewhere made of LibTorch's operations.
///
/// - Parameters:
///   - x: `[batch, heads, length, headDim]`
///   - directions: Ω `[headDim, columns]`, which takes no gradient.
/// - Returns: `[batch, heads, length, 2 · columns]`, in float32 at least.
/// - Complexity: O(x.count · columns) in time.
public func positiveFeatures(_ x: Tensor, directions: Tensor, temperature: Double, offset: Double) -> Tensor {
    guard x.device == .cpu else {
        let wide = x.dtype.size < DType.float32.size ? x.to(.float32) : x
        let scaled = wide * temperature.squareRoot()
        let u = matmul(scaled, directions.detached().to(scaled.dtype))
        let o = scaled.square().sum(-1, keepDim: true) * 0.5 + offset
        return concatenate([(u - o).exp(), (-u - o).exp()], dim: -1)
    }
    return call("positive_features", x, directions) { ctorch_positive_features($0, $1, temperature, offset, $2) }
}
