// Activation functions and their slopes on vectors, for the kernels of several families.

/// The function's value, and its slope if it is asked for.
template <bool with_slope, typename T> INLINE Vector<T> nonlinear(Nonlinearity kind, Vector<T> x, Vector<T> &slope) {
  const auto zero = Vector<T>{}, one = splat<T>(1);
  switch (kind) {
  case Nonlinearity::relu:
    if (with_slope) slope = x > zero ? one : zero;
    return x > zero ? x : (x != x ? x : zero);
  case Nonlinearity::gelu: {
    const auto share = T(0.5) + T(0.5) * error_function(x * T(0.70710678118654752440));
    if (with_slope) slope = share + x * T(0.39894228040143267794) * exponential(x * x * T(-0.5));
    return x * share;
  }
  case Nonlinearity::gelu_tanh: {
    const T scale = T(0.79788456080286535588), cubic = T(0.044715);
    const auto square = x * x;
    const auto t = hyperbolic_tangent(scale * (x + cubic * square * x));
    const auto share = T(0.5) + T(0.5) * t;
    if (with_slope) slope = share + T(0.5) * x * (one - t * t) * scale * (one + T(3) * cubic * square);
    return x * share;
  }
  case Nonlinearity::silu: {
    const auto share = logistic<T>(x);
    if (with_slope) slope = share * (one + x * (one - share));
    return x * share;
  }
  case Nonlinearity::sigmoid: {
    const auto share = logistic<T>(x);
    if (with_slope) slope = share * (one - share);
    return share;
  }
  default:
    if (with_slope) slope = one;
    return x;
  }
}
