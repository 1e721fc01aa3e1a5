// The Attention Free Transformer in plain loops, pair by pair, forward and backward.
#pragma once

#include "aft_window.hpp"

namespace ctorch::reference {

/// One channel of one query: the weights of all keys, which sum up to 1 or are all 0.
template <typename T> std::vector<T> aft_weights(const AftWindowWork<T> &work, int64_t unit, int64_t c, int64_t i) {
  std::vector<T> weights(static_cast<size_t>(work.length), T(0));
  T largest = -std::numeric_limits<T>::infinity(), sum = 0;
  auto is_seen = [&](int64_t j) { return work.is_real(unit, j) && (!work.causal || j <= i); };
  auto exponent = [&](int64_t j) {
    return work.key(unit, j)[work.shared_key ? 0 : c] + (work.bias ? work.bias_of(unit, i, j) : T(0));
  };
  for (int64_t j = 0; j < work.length; ++j)
    if (is_seen(j)) largest = std::max(largest, exponent(j));
  for (int64_t j = 0; j < work.length; ++j)
    if (is_seen(j)) sum += weights[j] = std::exp(exponent(j) - largest);
  if (sum > 0)
    for (T &weight : weights) weight /= sum;
  return weights;
}

template <typename T> T aft_mean(const AftWindowWork<T> &work, int64_t unit, int64_t c, const std::vector<T> &weights) {
  T mean = 0;
  for (int64_t j = 0; j < work.length; ++j) mean += weights[j] * work.row(work.v, unit, j)[c];
  return mean;
}

template <typename T> T aft_gate(const AftWindowWork<T> &work, int64_t unit, int64_t c, int64_t i) {
  return work.gated ? 1 / (1 + std::exp(-work.row(work.q, unit, i)[c])) : T(1);
}

template <typename T> void aft_forward(const AftWindowWork<T> &work, int64_t unit) {
  for (int64_t i = 0; i < work.length; ++i)
    for (int64_t c = 0; c < work.count(unit); ++c)
      work.row(work.out, unit, i)[c] = aft_gate(work, unit, c, i) * aft_mean(work, unit, c, aft_weights(work, unit, c, i));
}

/// Adds to the gradients, which are zeros at first. `dbias` is [rows, taps].
template <typename T> void aft_backward(const AftWindowWork<T> &work, int64_t unit, T *dbias) {
  for (int64_t i = 0; i < work.length; ++i) {
    for (int64_t c = 0; c < work.count(unit); ++c) {
      const auto weights = aft_weights(work, unit, c, i);
      const T mean = aft_mean(work, unit, c, weights), gate = aft_gate(work, unit, c, i), g = work.row(work.cotangent, unit, i)[c];
      if (work.gated) work.row(work.dq, unit, i)[c] = g * mean * gate * (1 - gate);
      for (int64_t j = 0; j < work.length; ++j) {
        const T slope = weights[j] * g * gate * (work.row(work.v, unit, j)[c] - mean);
        work.row(work.dv, unit, j)[c] += weights[j] * g * gate;
        if (work.shared_key) work.dk.head(work.head(unit))[j * work.dk.row] += slope;
        else work.row(work.dk, unit, j)[c] += slope;
        const int64_t tap = j - i + work.left;
        if (work.bias && tap >= 0 && tap < work.taps()) dbias[work.bias_index(unit, i) * work.taps() + tap] += slope;
      }
    }
  }
}

} // namespace ctorch::reference
