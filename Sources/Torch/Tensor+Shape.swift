import CTorch

// Views and rearrangements. Negative dimensions count from the end.

extension Tensor {
    /// The same elements in another shape; one size may be -1 and is worked out.
    public func reshaped(_ shape: Int...) -> Tensor { reshaped(to: shape) }
    public func reshaped(to shape: [Int]) -> Tensor {
        call("reshape", self) { pointer, error in shape.withDims { ctorch_reshape(pointer, $0, $1, error) } }
    }

    /// Sizes of 1 repeated to the given ones without a copy; -1 leaves a size as it is.
    public func expanded(to shape: [Int]) -> Tensor {
        call("expand", self) { pointer, error in shape.withDims { ctorch_expand(pointer, $0, $1, error) } }
    }

    /// Dimension `dims[i]` becomes dimension `i`.
    public func permuted(_ dims: Int...) -> Tensor {
        call("permute", self) { pointer, error in dims.withDims { ctorch_permute(pointer, $0, $1, error) } }
    }

    /// Two dimensions exchanged, the last two when none is named: a view.
    public func transposed(_ first: Int = -2, _ second: Int = -1) -> Tensor {
        call("transpose", self) { ctorch_transpose($0, Int64(first), Int64(second), $1) }
    }

    /// Without a dimension of size 1: a view.
    public func squeezed(_ dim: Int) -> Tensor { call("squeeze", self) { ctorch_squeeze($0, Int64(dim), $1) } }
    /// With a new dimension of size 1: a view.
    public func unsqueezed(_ dim: Int) -> Tensor { call("unsqueeze", self) { ctorch_unsqueeze($0, Int64(dim), $1) } }

    /// Dimensions `first` to `last` as one.
    public func flattened(_ first: Int = 0, _ last: Int = -1) -> Tensor {
        call("flatten", self) { ctorch_flatten($0, Int64(first), Int64(last), $1) }
    }

    /// One position of a dimension, which disappears.
    public func selected(_ dim: Int, _ index: Int) -> Tensor {
        call("select", self) { ctorch_select($0, Int64(dim), Int64(index), $1) }
    }

    /// The positions `range` of a dimension. Unlike LibTorch, a range beyond the end is an error, not cut.
    public func sliced(_ dim: Int, _ range: Range<Int>, step: Int = 1) -> Tensor {
        let size = size(dim)
        torchPrecondition(
            range.lowerBound >= 0 && range.upperBound <= size && step > 0, in: "slice",
            "range \(range) with step \(step) of dimension \(dim), which has size \(size)")
        return call("slice", self) {
            ctorch_slice($0, Int64(dim), Int64(range.lowerBound), Int64(range.upperBound), Int64(step), $1)
        }
    }

    /// The whole, `times[i]` times along dimension `i`.
    public func tiled(_ times: Int...) -> Tensor {
        call("repeat", self) { pointer, error in times.withDims { ctorch_repeat(pointer, $0, $1, error) } }
    }

    /// Each position of a dimension, `times` times in a row.
    public func repeated(_ times: Int, dim: Int) -> Tensor {
        call("repeat_interleave", self) { ctorch_repeat_interleave($0, Int64(times), Int64(dim), $1) }
    }

    /// `value` put before and after along one dimension.
    public func padded(_ dim: Int, before: Int = 0, after: Int = 0, value: Double = 0) -> Tensor {
        if before == 0 && after == 0 { return self }
        let rank = rank
        let index = dim < 0 ? dim + rank : dim
        torchPrecondition((0..<rank).contains(index), in: "pad", "dimension \(dim) of a tensor of shape \(shape)")
        var amounts = Array(repeating: 0, count: 2 * max(0, rank - 1 - index))
        amounts += [before, after]
        return call("pad", self) { pointer, error in amounts.withDims { ctorch_pad(pointer, $0, $1, value, error) } }
    }

    /// Every position moved on by `shift`, what leaves the end enters at the start.
    public func rolled(_ dim: Int, by shift: Int) -> Tensor {
        call("roll", self) { ctorch_roll($0, Int64(shift), Int64(dim), $1) }
    }

    /// In reverse order along the dimensions: a copy.
    public func flipped(_ dims: Int...) -> Tensor {
        call("flip", self) { pointer, error in dims.withDims { ctorch_flip(pointer, $0, $1, error) } }
    }

    /// Windows of `size` positions every `step`: `[…, n, …]` → `[…, windows, …, size]`, a view.
    public func unfolded(_ dim: Int, size: Int, step: Int = 1) -> Tensor {
        call("unfold", self) { ctorch_unfold($0, Int64(dim), Int64(size), Int64(step), $1) }
    }

    /// The matrix with everything above, or below, the diagonal set to zero.
    public func lowerTriangle(diagonal: Int = 0) -> Tensor {
        call("tril", self) { ctorch_tril($0, Int64(diagonal), $1) }
    }
    /// Zeros below the diagonal, or the one `diagonal` places above it.
    public func upperTriangle(diagonal: Int = 0) -> Tensor {
        call("triu", self) { ctorch_triu($0, Int64(diagonal), $1) }
    }

    /// The diagonal of two dimensions, as a new last one: a view.
    public func diagonal(offset: Int = 0, _ first: Int = -2, _ second: Int = -1) -> Tensor {
        call("diagonal", self) { ctorch_diagonal($0, Int64(offset), Int64(first), Int64(second), $1) }
    }

    /// `count` pieces of equal size along a dimension.
    public func split(into count: Int, dim: Int) -> [Tensor] {
        let size = size(dim)
        torchPrecondition(
            count > 0 && size.isMultiple(of: max(count, 1)), in: "split",
            "\(count) equal pieces of dimension \(dim), size \(size)")
        let piece = size / max(count, 1)
        return (0..<max(count, 0)).map { sliced(dim, $0 * piece..<($0 + 1) * piece) }
    }
}

/// Tensors joined along an existing dimension.
public func concatenate(_ tensors: [Tensor], dim: Int = 0) -> Tensor {
    call("cat", tensors) { ctorch_cat($0, $0.count, Int64(dim), $1) }
}

/// Tensors of one shape joined along a new dimension.
public func stack(_ tensors: [Tensor], dim: Int = 0) -> Tensor {
    call("stack", tensors) { ctorch_stack($0, $0.count, Int64(dim), $1) }
}
