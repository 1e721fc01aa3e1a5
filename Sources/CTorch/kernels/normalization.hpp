// What the norms of the last dimension work on; see normalization.cpp for the equations.
#pragma once

#include "team.hpp"

namespace ctorch {

enum class NormKind { layer, root_mean_square, simple };

/// [rows, columns], contiguous; a task takes `block` rows.
template <typename T> struct NormWork {
  NormKind kind;
  int64_t rows, columns, block;
  T epsilon;
  const T *x, *added, *weight, *bias; // all but x may be null
  T *sum;                             // x + added, null without `added`
  T *y;
  T *center, *scale;                  // [rows] the mean, or of the simple norm (r + ε) / r; and what h is multiplied by
  const T *dy, *dsum;                 // backward; dsum may be null
  T *dx;
  T *parts;                           // [blocks, 2, columns]: each block's part of dweight and dbias, null if not wanted

  int64_t blocks() const { return (rows + block - 1) / block; }
};

/// Keeps the input of a function for its backward pass, in `context`. Of the output of a norm only the norm is kept, which keeps
/// its own input anyway: what this returns to be saved is then undefined.
at::Tensor keep_input(torch::autograd::AutogradContext *context, const at::Tensor &x);

/// What ``keep_input`` kept: `saved`, or the norm computed again, with the same bits.
at::Tensor kept_input(torch::autograd::AutogradContext *context, const at::Tensor &saved);

} // namespace ctorch
