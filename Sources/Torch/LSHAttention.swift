import CTorch

/// What LSH attention sees and how it weighs it.
public struct LSHAttentionOptions: Sendable {
    public var isCausal: Bool
    /// Tokens of a chunk.
    public var chunk: Int
    /// How many chunks before its own a token sees, and how many after; the first of all rounds follows on the last.
    public var chunksBefore = 1
    public var chunksAfter = 0
    /// Of a round.
    public var bucketCount: Int
    /// Whether tokens of other buckets are hidden.
    public var withinBucket = false
    /// Whether a key counts once however often it is seen.
    public var uniquePairs = false
    /// Whether rounds are as long as a sequence's own tokens, those padded taking no part and giving 0, or as long as the
    /// padded sequence, where they come last.
    public var usesRealLength = true
    /// τ
    public var scale = 1.0
    /// ε
    public var keyNormEpsilon = 1e-6
    /// The logit of a token for itself; above -5·10⁸.
    public var selfLogit = -1e5

    public init(isCausal: Bool, chunk: Int, bucketCount: Int) {
        self.isCausal = isCausal
        self.chunk = chunk
        self.bucketCount = bucketCount
    }

    fileprivate var forC: ctorch_lsh_options {
        ctorch_lsh_options(
            causal: isCausal, within_bucket: withinBucket, unique_pairs: uniquePairs, real_length: usesRealLength,
            chunk: Int64(chunk), chunks_before: Int64(chunksBefore), chunks_after: Int64(chunksAfter),
            bucket_count: Int64(bucketCount), scale: scale, key_norm_epsilon: keyNormEpsilon, self_logit: selfLogit)
    }
}

/// LSH attention for given buckets, on shared queries and keys, in one kernel of the CPU.
///
/// In each round the tokens are sorted by bucket and position and cut into chunks; P_ri are the tokens of i's chunk and of
/// those around it. All rounds of a token are one softmax:
///
///     out_i = Σ_r Σ_{j∈P_ri} p_ij v_j,   p_ij = exp(s_ij) / Σ_r Σ_{j∈P_ri} exp(s_ij)
///     s_ij = τ x_i·x_j / √(|x_j|² + D ε) [- ln n_ij],   and the self logit where j = i
///
/// with n_ij the number of times that i sees j. qk `[batch, heads, n, D]`, v `[batch, heads, n, E]`, buckets
/// `[batch, heads, rounds, n]`, `paddingMask` `[batch, n]`: a key where it is false is hidden.
///
/// Time O(R N m (D + E)) for R rounds and chunks of m, memory O(N (R + D + E)), the backward pass included.
public func lshAttention(
    _ qk: Tensor, _ v: Tensor, buckets: Tensor, paddingMask: Tensor? = nil, _ options: LSHAttentionOptions
) -> Tensor {
    call("lsh_attention", [qk, v, buckets, paddingMask]) { pointers, error in
        ctorch_lsh_attention(pointers[0], pointers[1], pointers[2], pointers[3], options.forC, error)
    }
}

/// The buckets of locality-sensitive hashing, in one kernel of the CPU: h_r(i) = argmax [x_i R_r, -x_i R_r] in the first
/// `rounds` of `rotations` `[heads, D, rounds, Σ factors / 2]`, for x `[batch, heads, n, D]`: int32
/// `[batch, heads, rounds, n]`.
///
/// Each of the factors, all even, takes its own piece of R_r and gives one digit, the first the lowest. Time
/// O(R N D Σ factors), memory O(R N). No gradient flows.
public func lshBuckets(_ x: Tensor, rotations: Tensor, rounds: Int, factors: [Int]) -> Tensor {
    call("lsh_buckets", [x, rotations]) { pointers, error in
        factors.withDims { sizes, count in
            ctorch_lsh_buckets(pointers[0], pointers[1], Int64(rounds), sizes, count, error)
        }
    }
}
