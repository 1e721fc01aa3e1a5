// What the kernels of segment mixtures work on; see segment_mixtures.cpp for the equations.
#pragma once

#include "team.hpp"

#include <cmath>

namespace ctorch {

/// The numbers of a layer norm, or their gradients.
template <typename T> struct MixtureNorm {
  T *gain, *bias;
};

/// Keys or values: rows [batch, 1, length, heads · width] before the norms, and with the mixtures behind after them.
template <typename T> struct MixedRows {
  Rows<const T> from, cotangent;
  Rows<T> to, gradient;
};

/// One pass over [batch, length, heads · width].
template <typename T> struct MixtureWork {
  int64_t length, segment, segments, rank, heads, width;
  T epsilon;
  MixedRows<T> sides[2]; // keys, values
  Rows<const T> logits;
  Rows<T> logits_gradient;
  MixtureNorm<const T> token, mixture;
  const bool *mask; // [batch, length] or null

  int64_t columns() const { return heads * width; }
  int64_t weights() const { return heads * rank; }
  const bool *real(int64_t batch, int64_t start) const { return mask ? mask + batch * length + start : nullptr; }
};

/// Of one task: its sums for the gradients of the norms, in four arrays of `columns` numbers.
template <typename T> struct MixtureNormGradients {
  MixtureNorm<T> token, mixture;

  MixtureNormGradients(T *sums, int64_t columns)
      : token{sums, sums + columns}, mixture{sums + 2 * columns, sums + 3 * columns} {}
};

} // namespace ctorch
