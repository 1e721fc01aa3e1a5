// Activation functions and their slopes on vectors; included inside an instruction set's namespace, after vector.hpp.

/// erf x as a quotient of polynomials on [-4, 4], beyond which float32 knows 1 only.
INLINE Vector<float> error_function(Vector<float> x) {
  x = smaller<float>(larger<float>(x, splat<float>(-4)), splat<float>(4));
  const auto square = x * x;
  auto p = square * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * square - 2.10102402082508e-06f;
  p = p * square - 5.69250639462346e-05f;
  p = p * square - 7.34990630326855e-04f;
  p = p * square - 2.95459980854025e-03f;
  p = p * square - 1.60960333262415e-02f;
  auto q = square * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * square - 1.68282697438203e-03f;
  q = q * square - 7.37332916720468e-03f;
  q = q * square - 1.42647390514189e-02f;
  return x * p / q;
}
INLINE Vector<double> error_function(Vector<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::erf(x[i]);
  return x;
}

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
  default:
    if (with_slope) slope = one;
    return x;
  }
}
