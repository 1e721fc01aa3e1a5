// What the kernels of softmax attention over ranges of keys work on; see interval_attention.cpp for the equations.
#pragma once

#include "team.hpp"

#include <cmath>

namespace ctorch {

/// One pass over [batch, heads, queries or keys, …].
template <typename T> struct IntervalWork {
  int64_t heads, queries, keys, features, values;
  T scale;
  Rows<const T> q, k, v, cotangent;
  Rows<T> out, dq, dk, dv;
  const bool *mask; // [batch, keys] or null
  T *peak;          // [batch heads, queries]: the largest score of a row, infinity where it sees nothing
  T *inverse_sum;   // [batch heads, queries]: 1 / Σ exp(score - peak), 0 where it sees nothing
  T *partial;       // [batch heads, partials, tile, features + values], padded: gradients of keys that several tasks meet

  const bool *real(int64_t head) const { return mask ? mask + head / heads * keys : nullptr; }
};

/// The ranges of one head, [ranges, queries, 2].
struct Intervals {
  const int32_t *data;
  int64_t ranges, queries, keys;

  int64_t start(int64_t range, int64_t query) const { return std::max<int64_t>(0, data[(range * queries + query) * 2]); }
  int64_t end(int64_t range, int64_t query) const { return std::min<int64_t>(keys, data[(range * queries + query) * 2 + 1]); }
};

} // namespace ctorch
