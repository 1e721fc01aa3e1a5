// The elementwise feature maps, and plain loops' form of them; feature_maps.kernels.hpp has the vectors'.
#pragma once

#include <cmath>

namespace ctorch {

/// Elementwise, applied while queries and keys are read.
enum class FeatureMap { identity, elu_plus_one, relu, sigmoid, exponential, elu, silu };

namespace reference {

/// φ(x)
template <typename T> T feature(FeatureMap map, T x) {
  switch (map) {
  case FeatureMap::elu: return x > 0 ? x : std::expm1(x);
  case FeatureMap::elu_plus_one: return x > 0 ? x + 1 : std::exp(x);
  case FeatureMap::relu: return x > 0 ? x : T(0);
  case FeatureMap::sigmoid: return 1 / (1 + std::exp(-x));
  case FeatureMap::silu: return x / (1 + std::exp(-x));
  case FeatureMap::exponential: return std::exp(x);
  default: return x;
  }
}

/// φ'(x)
template <typename T> T feature_slope(FeatureMap map, T x) {
  const T gate = 1 / (1 + std::exp(-x));
  switch (map) {
  case FeatureMap::elu:
  case FeatureMap::elu_plus_one: return x > 0 ? T(1) : std::exp(x);
  case FeatureMap::relu: return x > 0 ? T(1) : T(0);
  case FeatureMap::sigmoid: return gate * (1 - gate);
  case FeatureMap::silu: return gate + x * gate * (1 - gate);
  case FeatureMap::exponential: return std::exp(x);
  default: return 1;
  }
}

} // namespace reference

} // namespace ctorch
