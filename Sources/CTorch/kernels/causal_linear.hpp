// What the causal linear family's kernels work on; see causal_linear.cpp for the equations.
#pragma once

#include "feature_maps.hpp"
#include "team.hpp"

#include <cmath>
#include <utility>

namespace ctorch {

/// By what the sum over the keys is divided.
enum class LinearNormalization { none, sum, root_mean_square };

struct LinearSettings {
  FeatureMap map;
  LinearNormalization normalization;
  double beta, gamma, epsilon;
  bool momentum() const { return beta != 0 || gamma != 1; }
};

/// (1 - β^m) / (1 - β) without cancellation for β near 1.
inline double geometric_sum(double beta, int64_t m) {
  if (beta == 0) return m > 0 ? 1 : 0;
  return -std::expm1(static_cast<double>(m) * std::log(beta)) / (1 - beta);
}

/// For any device: out, and the last states [batch heads, state].
std::pair<at::Tensor, at::Tensor> composed_causal_linear(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                                                         const at::Tensor &mask, const at::Tensor &initial,
                                                         const LinearSettings &settings);

/// The constants of a chunk of up to `size` tokens, as arrays. A shorter, last chunk takes the leading part of what counts
/// from its start, and the trailing part of what counts from its end.
template <typename T> struct ChunkWeights {
  double beta, gamma;
  int64_t size;
  const T *lagged;     // [size + 16]: w(size - 1 - i), then zeros
  const T *by_lag;     // [size] w(d) = γ (1 - β^(d+1)) / (1 - β)
  const T *powers;     // [size] β^d
  const T *from_start; // [size] b[r] = β (1 - β^(r+1)) / (1 - β)
  const T *to_end;     // [size] b seen from the end
  const T *key_s;      // [size] γ (1 - β^(size-c)) / (1 - β)
  const T *key_p;      // [size] β^(size-1-c)

  const T *key_s_of(int64_t n) const { return key_s + size - n; }
  const T *key_p_of(int64_t n) const { return key_p + size - n; }
  const T *to_end_of(int64_t n) const { return to_end + size - n; }
  double geometric(int64_t m) const { return geometric_sum(beta, m); }
};

/// s, p [features, values] and z [features] of one head at one place.
template <typename T> struct StateAt {
  T *s, *p, *z;
};

/// One pass over [batch, heads, length, …]; a head's sequence is cut into segments of whole chunks, a task each.
template <typename T> struct CausalLinearWork {
  FeatureMap map;
  LinearNormalization normalization;
  bool momentum, keep;
  T epsilon;
  int64_t heads, length, features, values, segment_length, segments;
  ChunkWeights<T> weights;
  Rows<const T> q, k, v, cotangent;
  Rows<T> out, dq, dk, dv;
  const bool *mask; // [batch, length] or null
  T *norm;          // [batch heads, length]: what out was divided by
  T *segment_state; // [batch heads, segments + 1, state]: before each segment and after the last; of what comes later, backward
  T *chunk_state;   // [batch heads, chunks, state] before each chunk, if `keep`
  T *final_state;   // [batch heads, state]

  int64_t begin(int64_t segment) const { return std::min(length, segment * segment_length); }
  int64_t last_chunk(int64_t segment) const {
    return begin(segment) + (begin(segment + 1) - begin(segment) - 1) / weights.size * weights.size;
  }
  const bool *real(int64_t head, int64_t start) const { return mask ? mask + head / heads * length + start : nullptr; }
  int64_t matrix() const { return features * values; }
  int64_t state_size() const { return (momentum ? 2 : 1) * matrix() + features; }
  int64_t chunks() const { return (length + weights.size - 1) / weights.size; }
  StateAt<T> at(T *state) const {
    return {state, momentum ? state + matrix() : nullptr, state + (momentum ? 2 : 1) * matrix()};
  }
  StateAt<T> segment(int64_t head, int64_t index) const {
    return at(segment_state + (head * (segments + 1) + index) * state_size());
  }
  StateAt<T> chunk(int64_t head, int64_t index) const { return at(chunk_state + (head * chunks() + index) * state_size()); }
  StateAt<T> end_of(int64_t head, int64_t index) const {
    return index + 1 < segments || !final_state ? StateAt<T>{} : at(final_state + head * state_size());
  }
};

} // namespace ctorch
