// What the kernels of gates work on; see gates.cpp for the equations.
#pragma once

#include "nonlinearity.hpp"
#include "team.hpp"

#include <algorithm>
#include <cmath>

namespace ctorch {

/// Numbers of all tensors of a gate that a task takes.
constexpr int64_t gate_block = 8192;

/// out = f(gate) value, all of `count` numbers.
template <typename T> struct GatedProductWork {
  int64_t count;
  Nonlinearity nonlinearity;
  const T *gate, *value;
  T *out; // may be null in the backward pass

  // Backward; the gradient of the value may take the place of the cotangent.
  const T *cotangent;
  T *of_gate, *of_value;
};

/// Computes `out` on the team of threads.
template <typename T> void gated_product(const GatedProductWork<T> &work);

/// Computes the gradients of gate and value, and `out` again.
template <typename T> void gated_product_back(const GatedProductWork<T> &work);

/// out = x + sigmoid(gate) (silu(first + second) - x)
template <typename T> struct GatedResidualWork {
  int64_t count;
  const T *x, *gate, *first, *second, *cotangent;
  T *out, *of_x, *of_gate, *of_sum;
};

} // namespace ctorch
