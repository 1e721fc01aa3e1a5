import CTorch

/// The position bias w of ``attentionFree(_:_:_:paddingMask:bias:isCausal:)``, within a window around each query: that
/// far to either side of it, or causal, up to it; 0 elsewhere.
public enum AttentionFreeBias {
    case zero
    /// `[length, taps]`: of each query's place.
    case positions(Tensor)
    /// `[heads, taps]`
    case heads(Tensor)
}

/// The kernel of the Attention Free Transformer, channel by channel:
///
///     out_i = σ(q_i) Σ_j e^(k_j + w_ij) v_j / Σ_j e^(k_j + w_ij)        causal: j ≤ i
///
/// q, v `[batch, heads, length, channels]`, k as v or with one channel; without q, σ is left out. `paddingMask`
/// `[batch, length]`: a key where it is false counts for nothing, and a query that sees no other gives 0. Keys and
/// biases may be of any size. Time O(N channels taps) in products of matrices, memory O(N (channels + taps)), the
/// backward pass included. For the CPU.
public func attentionFree(
    _ q: Tensor?, _ k: Tensor, _ v: Tensor, paddingMask: Tensor? = nil, bias: AttentionFreeBias = .zero,
    isCausal: Bool
) -> Tensor {
    let (kind, weights): (UInt32, Tensor?) =
        switch bias {
        case .zero: (ctorch_aft_zero.rawValue, nil)
        case .positions(let w): (ctorch_aft_positions.rawValue, w)
        case .heads(let w): (ctorch_aft_heads.rawValue, w)
        }
    return call("aft", [q, k, v, paddingMask, weights]) { pointers, error in
        ctorch_aft(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], Int32(kind), isCausal, error)
    }
}
