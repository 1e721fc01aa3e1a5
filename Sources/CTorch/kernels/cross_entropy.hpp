// What the kernels of the cross entropy work on; see cross_entropy.cpp for the equations.
#pragma once

#include "team.hpp"

namespace ctorch {

/// logits [rows, classes], contiguous; a task takes `block` rows.
template <typename T> struct CrossEntropyWork {
  int64_t rows, classes, block, ignored;
  T smoothing;
  const T *logits;
  const int64_t *targets;
  T *losses;      // [rows]
  T *log_sums;    // [rows] log Σ e^logit
  const T *scale; // backward: one number for each row, or one for all
  int64_t scale_step;
  T *gradient;

  int64_t blocks() const { return (rows + block - 1) / block; }
};

} // namespace ctorch
