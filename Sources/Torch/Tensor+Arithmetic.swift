import CTorch

// Element by element; shapes are broadcast. A number beside a tensor takes the tensor's type.

extension Tensor {
    /// Element by element, as all arithmetic here: shapes broadcast from the last dimension, types are promoted.
    public static func + (a: Tensor, b: Tensor) -> Tensor { call("add", a, b, ctorch_add) }
    public static func - (a: Tensor, b: Tensor) -> Tensor { call("sub", a, b, ctorch_sub) }
    public static func * (a: Tensor, b: Tensor) -> Tensor { call("mul", a, b, ctorch_mul) }
    public static func / (a: Tensor, b: Tensor) -> Tensor { call("div", a, b, ctorch_div) }

    public static func + (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "add", ctorch_add_scalar) }
    public static func - (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "sub", ctorch_sub_scalar) }
    public static func * (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "mul", ctorch_mul_scalar) }
    public static func / (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "div", ctorch_div_scalar) }

    public static func + (a: some TensorScalar, b: Tensor) -> Tensor { b + a }
    public static func * (a: some TensorScalar, b: Tensor) -> Tensor { b * a }
    public static func - (a: some TensorScalar, b: Tensor) -> Tensor {
        call("rsub", b) { ctorch_rsub_scalar(a.scalarValue.forC, $0, $1) }
    }
    public static func / (a: some TensorScalar, b: Tensor) -> Tensor { b.reciprocal() * a }

    public static prefix func - (a: Tensor) -> Tensor { call("neg", a, ctorch_neg) }

    public static func += (a: inout Tensor, b: Tensor) { a = a + b }
    public static func -= (a: inout Tensor, b: Tensor) { a = a - b }
    public static func *= (a: inout Tensor, b: Tensor) { a = a * b }
    public static func /= (a: inout Tensor, b: Tensor) { a = a / b }

    /// Each element to the power of its partner.
    public func power(_ exponent: Tensor) -> Tensor { call("pow", self, exponent, ctorch_pow) }
    /// Each element to a power.
    public func power(_ exponent: some TensorScalar) -> Tensor { with(exponent, "pow", ctorch_pow_scalar) }
    /// Division rounded towards minus infinity, and what it leaves (with the divisor's sign).
    public func floorDivided(by divisor: Tensor) -> Tensor { call("floor_divide", self, divisor, ctorch_floor_divide) }
    public func floorDivided(by divisor: some TensorScalar) -> Tensor {
        with(divisor, "floor_divide", ctorch_floor_divide_scalar)
    }
    public func remainder(dividingBy divisor: Tensor) -> Tensor { call("remainder", self, divisor, ctorch_remainder) }
    public func remainder(dividingBy divisor: some TensorScalar) -> Tensor {
        with(divisor, "remainder", ctorch_remainder_scalar)
    }

    fileprivate func with(
        _ b: some TensorScalar, _ operation: StaticString,
        _ body: (ctorch_tensor?, ctorch_scalar, ErrorPointer) -> ctorch_tensor?
    ) -> Tensor {
        call(operation, self) { body($0, b.scalarValue.forC, $1) }
    }
}

/// `scalar` to the power of each element.
public func pow(_ scalar: some TensorScalar, _ exponent: Tensor) -> Tensor {
    call("pow", exponent) { ctorch_rpow_scalar(scalar.scalarValue.forC, $0, $1) }
}

// MARK: - Comparison (bool tensors)

infix operator .== : ComparisonPrecedence
infix operator .!= : ComparisonPrecedence
infix operator .< : ComparisonPrecedence
infix operator .<= : ComparisonPrecedence
infix operator .> : ComparisonPrecedence
infix operator .>= : ComparisonPrecedence
infix operator .&& : LogicalConjunctionPrecedence
infix operator .|| : LogicalDisjunctionPrecedence
prefix operator .!

extension Tensor {
    /// Bool, element by element, as all comparisons here: shapes broadcast.
    public static func .== (a: Tensor, b: Tensor) -> Tensor { call("eq", a, b, ctorch_eq) }
    public static func .!= (a: Tensor, b: Tensor) -> Tensor { call("ne", a, b, ctorch_ne) }
    public static func .< (a: Tensor, b: Tensor) -> Tensor { call("lt", a, b, ctorch_lt) }
    public static func .<= (a: Tensor, b: Tensor) -> Tensor { call("le", a, b, ctorch_le) }
    public static func .> (a: Tensor, b: Tensor) -> Tensor { call("gt", a, b, ctorch_gt) }
    public static func .>= (a: Tensor, b: Tensor) -> Tensor { call("ge", a, b, ctorch_ge) }

    public static func .== (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "eq", ctorch_eq_scalar) }
    public static func .!= (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "ne", ctorch_ne_scalar) }
    public static func .< (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "lt", ctorch_lt_scalar) }
    public static func .<= (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "le", ctorch_le_scalar) }
    public static func .> (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "gt", ctorch_gt_scalar) }
    public static func .>= (a: Tensor, b: some TensorScalar) -> Tensor { a.with(b, "ge", ctorch_ge_scalar) }

    /// Bool: where both are other than zero.
    public static func .&& (a: Tensor, b: Tensor) -> Tensor { call("logical_and", a, b, ctorch_logical_and) }
    /// Bool: where either is other than zero.
    public static func .|| (a: Tensor, b: Tensor) -> Tensor { call("logical_or", a, b, ctorch_logical_or) }
    /// Bool: where it is zero.
    public static prefix func .! (a: Tensor) -> Tensor { call("logical_not", a, ctorch_logical_not) }

    /// Whether shape, type and every element are the same.
    public func isIdentical(to other: Tensor) -> Bool {
        shape == other.shape && dtype == other.dtype
            && withExtendedLifetime(other.handle) {
                value("equal", self) { ctorch_equal($0, other.handle.pointer, $1) }
            }
    }

    /// The largest difference between elements, as a fraction of the largest magnitude in `reference`.
    public func relativeError(to reference: Tensor) -> Double {
        torchPrecondition(
            shape == reference.shape, in: "relativeError", "shapes \(shape) and \(reference.shape) differ")
        guard count > 0, shape == reference.shape else { return 0 }
        let expected = reference.detached().to(.float64)
        let difference = (detached().to(.float64) - expected).abs().maximum().item()
        let scale = expected.abs().maximum().item()
        return scale > 0 ? difference / scale : difference
    }
}
