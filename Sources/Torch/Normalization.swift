import CTorch

/// By what a norm over the last dimension divides.
public enum NormKind: Int32, Sendable, CaseIterable {
    /// √(variance + ε), the mean taken off before.
    case layer
    /// √(mean of squares + ε)
    case rootMeanSquare
    /// √(mean of squares) + ε; numbers whose squares would leave the range of their type are no matter.
    case simple
}

/// h = x + added, and its norm over the last dimension times weight plus bias `[dim]`: both in one pass, as are their
/// gradients. x and `added` `[…, dim]`; without `added` h is x.
public func addedNorm(
    _ x: Tensor, _ added: Tensor?, _ kind: NormKind, weight: Tensor?, bias: Tensor? = nil, epsilon: Double
) -> (sum: Tensor, normalized: Tensor) {
    var sum: ctorch_tensor?
    let normalized = call("norm", [x, added, weight, bias]) {
        ctorch_added_norm($0[0], $0[1], $0[2], $0[3], kind.rawValue, epsilon, &sum, $1)
    }
    return (sum.map(Tensor.init(owning:)) ?? .standIn, normalized)
}
