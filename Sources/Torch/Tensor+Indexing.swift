import CTorch

/// What may stand in a tensor's subscript: a position, a range, ``TensorIndex`` (`.all`, `.ellipsis`, `.newAxis`), or an
/// int64 vector of positions.
public protocol TensorIndexConvertible {
    var tensorIndex: TensorIndex { get }
}

/// One entry of a tensor's subscript.
public enum TensorIndex: TensorIndexConvertible {
    /// One position; the dimension disappears. Negative ones count from the end.
    case position(Int)
    /// From the first to before the last, nil meaning the end; negative ones count from the end.
    case range(Int, Int?)
    /// The whole dimension.
    case wholeDimension
    /// As many whole dimensions as are left.
    case remainingDimensions
    /// A new dimension of size 1.
    case newDimension
    /// The listed positions, an int64 vector.
    case positions(Tensor)

    public var tensorIndex: TensorIndex { self }
}

extension TensorIndexConvertible where Self == TensorIndex {
    public static var all: TensorIndex { .wholeDimension }
    public static var ellipsis: TensorIndex { .remainingDimensions }
    public static var newAxis: TensorIndex { .newDimension }
}

extension Int: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .position(self) }
}
extension Range<Int>: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .range(lowerBound, upperBound) }
}
extension ClosedRange<Int>: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .range(lowerBound, upperBound == -1 ? nil : upperBound + 1) }
}
extension PartialRangeFrom<Int>: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .range(lowerBound, nil) }
}
extension PartialRangeUpTo<Int>: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .range(0, upperBound) }
}
extension PartialRangeThrough<Int>: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .range(0, upperBound == -1 ? nil : upperBound + 1) }
}
extension Tensor: TensorIndexConvertible {
    public var tensorIndex: TensorIndex { .positions(self) }
}

extension Tensor {
    /// A part of the tensor: `x[0]`, `x[.ellipsis, 1..<3]`, `x[.all, -1]`, `x[.newAxis, .ellipsis]`.
    ///
    /// Positions, ranges, `.all` and `.newAxis` give views; a vector of positions copies.
    public subscript(_ indices: any TensorIndexConvertible...) -> Tensor {
        let entries = indices.map(\.tensorIndex)
        let consumed = entries.count { entry in
            switch entry {
            case .remainingDimensions, .newDimension: false
            default: true
            }
        }
        let rank = rank
        torchPrecondition(consumed <= rank, in: "subscript", "\(consumed) indices into a tensor of shape \(shape)")
        let ellipses = entries.count { if case .remainingDimensions = $0 { true } else { false } }
        torchPrecondition(ellipses <= 1, in: "subscript", "\(ellipses) ellipses, expected at most one")
        var result = self
        var dim = 0
        for entry in entries {
            switch entry {
            case .remainingDimensions: dim += max(0, rank - consumed)
            case .wholeDimension: dim += 1
            case .newDimension:
                result = result.unsqueezed(dim)
                dim += 1
            case .position(let index): result = result.selected(dim, index)
            case .range(let lower, let upper):
                let size = result.size(dim)
                let start = lower < 0 ? lower + size : lower
                let end = upper.map { $0 < 0 ? $0 + size : $0 } ?? size
                torchPrecondition(
                    0 <= start && start <= end && end <= size, in: "subscript",
                    "range \(start)..<\(end) of dimension \(dim) in a tensor of shape \(result.shape)")
                result = result.sliced(dim, min(max(start, 0), max(end, 0))..<max(end, 0))
                dim += 1
            case .positions(let index):
                result = result.indexed(dim, index)
                dim += 1
            }
        }
        return result
    }

    /// The positions listed in an int64 vector.
    public func indexed(_ dim: Int, _ positions: Tensor) -> Tensor {
        call("index_select", self, positions) { ctorch_index_select($0, Int64(dim), $1, $2) }
    }

    /// result[i][j][k] = self[i][positions[i][j][k]][k] for `dim` 1, and so on.
    public func gathered(_ dim: Int, _ positions: Tensor) -> Tensor {
        call("gather", self, positions) { ctorch_gather($0, Int64(dim), $1, $2) }
    }

    /// The inverse of ``gathered(_:_:)``: `source` written to (or added at) the positions.
    public func scattered(_ dim: Int, _ positions: Tensor, _ source: Tensor, adding: Bool = false) -> Tensor {
        call(adding ? "scatter_add" : "scatter", [self, positions, source]) {
            adding
                ? ctorch_scatter_add($0[0], Int64(dim), $0[1], $0[2], $1)
                : ctorch_scatter($0[0], Int64(dim), $0[1], $0[2], $1)
        }
    }

    /// Adds the slices of `source` at the positions of a vector.
    public func indexAdded(_ dim: Int, _ positions: Tensor, _ source: Tensor) -> Tensor {
        call("index_add", [self, positions, source]) { ctorch_index_add($0[0], Int64(dim), $0[1], $0[2], $1) }
    }

    /// The elements where `mask` is true, as a vector.
    public func selected(where mask: Tensor) -> Tensor { call("masked_select", self, mask, ctorch_masked_select) }

    /// The positions of the elements other than zero, `[found, rank]`.
    public func nonzero() -> Tensor { call("nonzero", self, ctorch_nonzero) }

    /// int64 classes → `[…, classes]` of zeros and a one.
    public func oneHot(_ classes: Int) -> Tensor { call("one_hot", self) { ctorch_one_hot($0, Int64(classes), $1) } }
}
