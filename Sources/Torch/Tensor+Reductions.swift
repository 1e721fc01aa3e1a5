import CTorch

// Reductions over the named dimensions, or all of them when none is named; `keepDim` leaves them with size 1.

extension Tensor {
    /// Σ x over the named dimensions, or all of them; `keepDim` leaves them with size 1. Bools and whole numbers sum to int64.
    public func sum(_ dims: Int..., keepDim: Bool = false) -> Tensor { reduced("sum", dims, keepDim, ctorch_sum) }
    /// The mean over the named dimensions, or all of them; floating point only.
    public func mean(_ dims: Int..., keepDim: Bool = false) -> Tensor { reduced("mean", dims, keepDim, ctorch_mean) }
    /// The largest over the named dimensions, or all of them; see ``argmax(_:keepDim:)`` for where it lies.
    public func maximum(_ dims: Int..., keepDim: Bool = false) -> Tensor { reduced("amax", dims, keepDim, ctorch_amax) }
    /// The smallest over the named dimensions, or all of them.
    public func minimum(_ dims: Int..., keepDim: Bool = false) -> Tensor { reduced("amin", dims, keepDim, ctorch_amin) }

    /// log Σ exp, with the maximum taken out first.
    public func logSumExp(_ dims: Int..., keepDim: Bool = false) -> Tensor {
        reduced("logsumexp", dims, keepDim, ctorch_logsumexp)
    }

    /// Σ (x - mean)² / (n - correction).
    public func variance(_ dims: Int..., correction: Int = 1, keepDim: Bool = false) -> Tensor {
        reduced("var", dims, keepDim) { ctorch_var($0, $1, $2, Int64(correction), $3, $4) }
    }

    /// (Σ |x|^order)^(1/order).
    public func norm(_ dims: Int..., order: Double = 2, keepDim: Bool = false) -> Tensor {
        reduced("norm", dims, keepDim) { ctorch_norm($0, order, $1, $2, $3, $4) }
    }

    /// √x, with a gradient of 0 where x is 0 (that of √ is infinite there).
    public func safeRoot() -> Tensor {
        let positive = self .> 0
        return select(positive, select(positive, self, Tensor.ones(like: self)).sqrt(), Tensor.zeros(like: self))
    }

    /// The Euclidean norm over the named dimensions, kept with size 1, with a gradient of 0 where the norm is 0.
    public func safeNorm(_ dims: Int...) -> Tensor {
        square().reduced("sum", dims, true, ctorch_sum).safeRoot()
    }

    /// Π x over a dimension.
    public func product(_ dim: Int, keepDim: Bool = false) -> Tensor {
        call("prod", self) { ctorch_prod($0, Int64(dim), keepDim, $1) }
    }

    /// Whether all elements are other than zero: a single bool.
    public func all() -> Tensor { call("all", self, ctorch_all) }
    /// Whether any element is other than zero: a single bool.
    public func any() -> Tensor { call("any", self, ctorch_any) }
    /// Bool: whether any element along a dimension is other than zero.
    public func any(_ dim: Int, keepDim: Bool = false) -> Tensor {
        call("any", self) { ctorch_any_dim($0, Int64(dim), keepDim, $1) }
    }

    /// The sums of the elements up to each, itself included, along a dimension.
    public func cumulativeSum(_ dim: Int) -> Tensor { call("cumsum", self) { ctorch_cumsum($0, Int64(dim), $1) } }
    /// The products of the elements up to each, itself included, along a dimension.
    public func cumulativeProduct(_ dim: Int) -> Tensor { call("cumprod", self) { ctorch_cumprod($0, Int64(dim), $1) } }
    /// log Σ exp of the elements up to each, itself included, along a dimension; does not overflow.
    public func cumulativeLogSumExp(_ dim: Int) -> Tensor {
        call("logcumsumexp", self) { ctorch_logcumsumexp($0, Int64(dim), $1) }
    }
    /// The largest of the elements up to each, itself included, along a dimension.
    public func cumulativeMaximum(_ dim: Int) -> Tensor { call("cummax", self) { ctorch_cummax($0, Int64(dim), $1) } }

    /// Where the largest element along a dimension lies: int64.
    public func argmax(_ dim: Int = -1, keepDim: Bool = false) -> Tensor {
        call("argmax", self) { ctorch_argmax($0, Int64(dim), keepDim, $1) }
    }
    /// Where the smallest element along a dimension lies: int64.
    public func argmin(_ dim: Int = -1, keepDim: Bool = false) -> Tensor {
        call("argmin", self) { ctorch_argmin($0, Int64(dim), keepDim, $1) }
    }

    /// The order that sorts; equal elements keep theirs when `stable`.
    public func argsort(_ dim: Int = -1, descending: Bool = false, stable: Bool = true) -> Tensor {
        call("argsort", self) { ctorch_argsort($0, Int64(dim), descending, stable, $1) }
    }

    /// The `k` largest (or smallest) and where they lie, in order.
    public func topK(_ k: Int, dim: Int = -1, largest: Bool = true) -> (values: Tensor, indices: Tensor) {
        withIndices("topk") { ctorch_topk($0, Int64(k), Int64(dim), largest, $1, $2) }
    }

    public func sorted(_ dim: Int = -1, descending: Bool = false) -> (values: Tensor, indices: Tensor) {
        withIndices("sort") { ctorch_sort($0, Int64(dim), descending, $1, $2) }
    }

    private func reduced(
        _ operation: StaticString, _ dims: [Int], _ keepDim: Bool,
        _ body: (ctorch_tensor?, UnsafePointer<Int64>?, Int, Bool, ErrorPointer) -> ctorch_tensor?
    ) -> Tensor {
        call(operation, self) { pointer, error in dims.withDims { body(pointer, $0, $1, keepDim, error) } }
    }

    private func withIndices(
        _ operation: StaticString,
        _ body: (ctorch_tensor?, UnsafeMutablePointer<ctorch_tensor?>?, ErrorPointer) -> ctorch_tensor?
    ) -> (values: Tensor, indices: Tensor) {
        var indices: ctorch_tensor?
        let values = call(operation, self) { body($0, &indices, $1) }
        return (values, indices.map(Tensor.init(owning:)) ?? .standIn)
    }
}
