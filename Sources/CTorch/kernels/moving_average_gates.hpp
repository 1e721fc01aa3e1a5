// What the kernels of Mega's gates work on; see moving_average_gates.cpp for the equations.
#pragma once

#include "team.hpp"

#include <algorithm>
#include <cmath>

namespace ctorch {

/// Numbers of all tensors of a gate that a task takes.
constexpr int64_t gate_block = 8192;

/// out = silu(gate) value, all of `count` numbers.
template <typename T> struct GatedProductWork {
  int64_t count;
  const T *gate, *value, *cotangent;
  T *out, *of_gate, *of_value;
};

/// out = x + sigmoid(gate) (silu(first + second) - x)
template <typename T> struct GatedResidualWork {
  int64_t count;
  const T *x, *gate, *first, *second, *cotangent;
  T *out, *of_x, *of_gate, *of_sum;
};

} // namespace ctorch
