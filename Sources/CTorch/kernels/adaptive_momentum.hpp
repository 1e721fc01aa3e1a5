// What the kernel of adaptive momentum attention works on; see adaptive_momentum.cpp for the equations.
#pragma once

#include "team.hpp"

#include <cmath>

namespace ctorch {

/// Numbers that the state of one head has: s, p, u with rows padded to 16, then z, then whether the first step was made.
struct AdaptiveLayout {
  int64_t features, values;
  int64_t row() const { return (values + 15) / 16 * 16; }
  int64_t matrix() const { return features * row(); }
  int64_t size() const { return (3 * matrix() + features + 1 + 15) / 16 * 16; }
  template <typename T> T *s(T *state) const { return state; }
  template <typename T> T *p(T *state) const { return state + matrix(); }
  template <typename T> T *u(T *state) const { return state + 2 * matrix(); }
  template <typename T> T *z(T *state) const { return state + 3 * matrix(); }
  template <typename T> T &begun(T *state) const { return state[3 * matrix() + features]; }
};

/// A momentum, and what its gradient needs: r = √(γ a / b), a = |u_i - u_{i-1}|, b = |p_{i-1}|.
template <typename T> struct AdaptiveMomentum {
  T beta, step_size, a, b, slope; // dβ/da = slope γ / b, dβ/db = -slope γ a / b²
  T step_size_of_ratio;           // γ; step_size is 1 in the first step

  AdaptiveMomentum(T squared_a, T squared_b, T step_size, T maximum, bool begun)
      : beta(0), step_size(begun ? step_size : T(1)), a(std::sqrt(squared_a)), b(std::sqrt(squared_b)), slope(0),
        step_size_of_ratio(step_size) {
    if (!(b > 0)) return;
    const T root = std::sqrt(step_size * a / b), free = (1 - root) * (1 - root);
    beta = std::min(free, maximum);
    if (free <= maximum && root > 0) slope = -(1 - root) / root;
  }
};

template <typename T> struct AdaptiveWork {
  AdaptiveLayout layout;
  T step_size, maximum, epsilon;
  bool keep;
  int64_t heads, length;
  Rows<const T> q, k, v, cotangent;
  Rows<T> out, dq, dk, dv;
  const bool *mask; // [batch, length] or null
  T *norm;          // [batch heads, length]
  T *state;         // [batch heads, state]: initial, then final
  T *kept;          // [batch heads, chunks, state] before each chunk

  static constexpr int64_t chunk = 64;
  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  bool real(int64_t head, int64_t i) const { return !mask || mask[head / heads * length + i]; }
};

} // namespace ctorch
