// What the random features of linear attention work on; see random_features.cpp for the equations.
#pragma once

#include "team.hpp"

#include <algorithm>
#include <cmath>

namespace ctorch {

/// A task takes `block` rows of one head.
template <typename T> struct PositiveFeaturesWork {
  static constexpr int64_t block = 48;

  int64_t heads, length, dim, columns; // heads of all sequences
  int64_t wide_dim, wide_columns;      // rounded up to what the widest vectors hold
  T temperature, offset;
  const T *directions; // √temperature Ω, [dim, wide_columns], in the forward pass
  const T *turned;     // the same transposed, [columns, wide_dim], in the backward pass
  Rows<const T> x, cotangent, features;
  Rows<T> out; // the features, or dx

  int64_t blocks() const { return (length + block - 1) / block; }
  int64_t tasks() const { return heads * blocks(); }
};

} // namespace ctorch
