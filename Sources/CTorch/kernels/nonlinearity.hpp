// The functions that products and gates apply to their numbers, and plain loops' form of them; nonlinearity.kernels.hpp has the
// vectors'.
#pragma once

#include <cmath>

namespace ctorch {

enum class Nonlinearity { identity, relu, gelu, gelu_tanh, silu, sigmoid };

namespace reference {

template <typename T> T apply(Nonlinearity kind, T x) {
  const T c = std::sqrt(T(2) / T(M_PI));
  switch (kind) {
  case Nonlinearity::relu: return x > 0 ? x : T(0);
  case Nonlinearity::gelu: return x * (1 + std::erf(x / std::sqrt(T(2)))) / 2;
  case Nonlinearity::gelu_tanh: return x * (1 + std::tanh(c * (x + T(0.044715) * x * x * x))) / 2;
  case Nonlinearity::silu: return x / (1 + std::exp(-x));
  case Nonlinearity::sigmoid: return 1 / (1 + std::exp(-x));
  default: return x;
  }
}

template <typename T> T slope(Nonlinearity kind, T x) {
  const T c = std::sqrt(T(2) / T(M_PI)), t = std::tanh(c * (x + T(0.044715) * x * x * x)), share = 1 / (1 + std::exp(-x));
  switch (kind) {
  case Nonlinearity::relu: return x > 0 ? 1 : 0;
  case Nonlinearity::gelu: return (1 + std::erf(x / std::sqrt(T(2)))) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * T(M_PI));
  case Nonlinearity::gelu_tanh: return (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * T(0.044715) * x * x);
  case Nonlinearity::silu: return share * (1 + x * (1 - share));
  case Nonlinearity::sigmoid: return share * (1 - share);
  default: return 1;
  }
}

} // namespace reference

} // namespace ctorch
