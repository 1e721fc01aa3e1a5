// What the kernels of span summaries work on; see span_summaries.cpp for the equations.
#pragma once

#include "team.hpp"

#include <cmath>

namespace ctorch {

/// How the queries and the keys of a span become one.
enum class SpanPool { max, mean, sum };

/// One pass over [batch, heads, length, …] in spans, the last of which may be shorter.
template <typename T> struct SpanWork {
  SpanPool pool;
  T scale;
  int64_t heads, length, span, spans, features, values;
  /// a and b are pooled; b is k itself where `pools_keys`, and its gradient is part of dk then.
  bool pools_keys;
  Rows<const T> a, b, k, v, keys_cotangent, values_cotangent;
  Rows<T> out_keys, out_values, da, db, dk, dv;
  const bool *mask; // [batch, length] or null

  int64_t begin(int64_t index) const { return std::min(length, index * span); }
  const bool *real(int64_t head, int64_t start) const { return mask ? mask + head / heads * length + start : nullptr; }
};

} // namespace ctorch
