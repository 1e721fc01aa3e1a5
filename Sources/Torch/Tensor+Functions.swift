import CTorch

// Functions element by element.

extension Tensor {
    /// The magnitude.
    public func abs() -> Tensor { call("abs", self, ctorch_abs) }
    /// -1, 0 or 1.
    public func sign() -> Tensor { call("sign", self, ctorch_sign) }
    /// eˣ.
    public func exp() -> Tensor { call("exp", self, ctorch_exp) }
    /// exp(x) - 1, exact for small x.
    public func expm1() -> Tensor { call("expm1", self, ctorch_expm1) }
    /// The natural logarithm; NaN below 0.
    public func log() -> Tensor { call("log", self, ctorch_log) }
    /// log(1 + x), exact for small x.
    public func log1p() -> Tensor { call("log1p", self, ctorch_log1p) }
    /// The logarithm to base 2.
    public func log2() -> Tensor { call("log2", self, ctorch_log2) }
    /// √x; NaN below 0. Its gradient at 0 is infinite: see ``safeRoot()``.
    public func sqrt() -> Tensor { call("sqrt", self, ctorch_sqrt) }
    /// 1 / sqrt(x).
    public func rsqrt() -> Tensor { call("rsqrt", self, ctorch_rsqrt) }
    /// x².
    public func square() -> Tensor { call("square", self, ctorch_square) }
    /// 1 / x.
    public func reciprocal() -> Tensor { call("reciprocal", self, ctorch_reciprocal) }
    /// The sine, of radians.
    public func sin() -> Tensor { call("sin", self, ctorch_sin) }
    /// The cosine, of radians.
    public func cos() -> Tensor { call("cos", self, ctorch_cos) }
    /// The hyperbolic tangent.
    public func tanh() -> Tensor { call("tanh", self, ctorch_tanh) }
    /// 1 / (1 + exp(-x)).
    public func sigmoid() -> Tensor { call("sigmoid", self, ctorch_sigmoid) }
    /// max(x, 0).
    public func relu() -> Tensor { call("relu", self, ctorch_relu) }
    /// x sigmoid(x).
    public func silu() -> Tensor { call("silu", self, ctorch_silu) }
    /// The error function.
    public func erf() -> Tensor { call("erf", self, ctorch_erf) }
    /// 1 - erf(x), with all its digits where erf is close to 1.
    public func erfc() -> Tensor { call("erfc", self, ctorch_erfc) }
    /// To the next whole number below.
    public func floor() -> Tensor { call("floor", self, ctorch_floor) }
    /// To the next whole number above.
    public func ceil() -> Tensor { call("ceil", self, ctorch_ceil) }
    /// To the nearest whole number, halves to even.
    public func round() -> Tensor { call("round", self, ctorch_round) }
    /// Towards zero.
    public func trunc() -> Tensor { call("trunc", self, ctorch_trunc) }
    /// Bool: where there is no number.
    public func isNaN() -> Tensor { call("isnan", self, ctorch_isnan) }
    /// Bool: where there is an infinity of either sign.
    public func isInfinite() -> Tensor { call("isinf", self, ctorch_isinf) }
    /// Bool: where there is neither an infinity nor NaN.
    public func isFinite() -> Tensor { call("isfinite", self, ctorch_isfinite) }

    /// x for x > 0, α (exp(x) - 1) otherwise.
    public func elu(alpha: Double = 1) -> Tensor { call("elu", self) { ctorch_elu($0, alpha, $1) } }

    /// x Φ(x); exact through the error function, or its usual approximation by tanh.
    public func gelu(approximate: Bool = false) -> Tensor { call("gelu", self) { ctorch_gelu($0, approximate, $1) } }

    /// log(1 + exp(β x)) / β.
    public func softplus(beta: Double = 1) -> Tensor { call("softplus", self) { ctorch_softplus($0, beta, $1) } }

    /// x for x > 0, slope · x otherwise.
    public func leakyRelu(slope: Double = 0.01) -> Tensor {
        call("leaky_relu", self) { ctorch_leaky_relu($0, slope, $1) }
    }

    /// Each element moved into the closed range; no gradient where it was outside.
    public func clamped(min: Double? = nil, max: Double? = nil) -> Tensor {
        call("clamp", self) { pointer, error in
            withOptionalPointer(min) { low in withOptionalPointer(max) { ctorch_clamp(pointer, low, $0, error) } }
        }
    }

    /// `value` where `mask` is true, itself elsewhere.
    public func masked(where mask: Tensor, with value: some TensorScalar) -> Tensor {
        call("masked_fill", self, mask) { ctorch_masked_fill($0, $1, value.scalarValue.forC, $2) }
    }
}

/// `a` where `condition` is true, `b` elsewhere.
public func select(_ condition: Tensor, _ a: Tensor, _ b: Tensor) -> Tensor {
    call("where", [condition, a, b]) { ctorch_where($0[0], $0[1], $0[2], $1) }
}

/// The smaller of each pair; NaN where either is.
public func minimum(_ a: Tensor, _ b: Tensor) -> Tensor { call("minimum", a, b, ctorch_minimum) }
/// The larger of each pair; NaN where either is.
public func maximum(_ a: Tensor, _ b: Tensor) -> Tensor { call("maximum", a, b, ctorch_maximum) }

/// a + weight (b - a)
public func interpolate(_ a: Tensor, _ b: Tensor, weight: Double) -> Tensor {
    call("lerp", a, b) { ctorch_lerp($0, $1, weight, $2) }
}

private func withOptionalPointer<Result>(_ value: Double?, _ body: (UnsafePointer<Double>?) -> Result) -> Result {
    guard let value else { return body(nil) }
    return withUnsafePointer(to: value, body)
}

public func abs(_ x: Tensor) -> Tensor { x.abs() }
public func exp(_ x: Tensor) -> Tensor { x.exp() }
public func log(_ x: Tensor) -> Tensor { x.log() }
public func sqrt(_ x: Tensor) -> Tensor { x.sqrt() }
public func sin(_ x: Tensor) -> Tensor { x.sin() }
public func cos(_ x: Tensor) -> Tensor { x.cos() }
public func tanh(_ x: Tensor) -> Tensor { x.tanh() }
public func sigmoid(_ x: Tensor) -> Tensor { x.sigmoid() }
public func relu(_ x: Tensor) -> Tensor { x.relu() }
