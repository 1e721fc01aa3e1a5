import CTorch

/// The positive random features of softmax's kernel (Choromanski et al., 2020, arXiv 2009.14794, lemma 1), on the CPU:
/// [exp(u - o), exp(-u - o)] with u = √temperature x Ω and o = temperature |x|² / 2 + `offset`. One pass over memory, and one for
/// the gradients.
///
/// - Parameters:
///   - x: `[batch, heads, length, headDim]`
///   - directions: Ω `[headDim, columns]`, which takes no gradient.
/// - Returns: `[batch, heads, length, 2 · columns]`, in float32 at least.
/// - Complexity: O(x.count · columns) in time.
public func positiveFeatures(_ x: Tensor, directions: Tensor, temperature: Double, offset: Double) -> Tensor {
    call("positive_features", x, directions) { ctorch_positive_features($0, $1, temperature, offset, $2) }
}
