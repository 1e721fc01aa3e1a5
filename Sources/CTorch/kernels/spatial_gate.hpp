// What the spatial gate's kernels work on; see spatial_gate.cpp for the equations.
#pragma once

#include "team.hpp"

namespace ctorch {

/// Columns of a task; rows and depth of the blocks of W that are packed.
constexpr int64_t gate_columns = 64, gate_rows = 48, gate_depth = 128;

template <typename T> struct SpatialGateWork {
  bool causal;
  int64_t batch, length, channels, heads;
  T epsilon;
  const T *z, *scale, *shift; // [batch, length, 2 channels], [channels] of the norm
  const bool *mask;           // [batch, length] or null
  const T *w, *bias;          // [heads, length, length] with rows `w_row` apart, heads `w_head`; [heads, length]
  int64_t w_head, w_row;
  T *out, *normed, *mixed;    // [batch, length, channels]
  T *center, *inverse;        // [batch, length]: the mean, and one by the deviation
  const T *cotangent;
  T *dz, *dw, *dbias;         // as z, [heads, length, length], [batch, heads, length]
  T *of_mixed, *of_normed;    // [batch, length, channels]
  T *of_norm;                 // [tasks, 2, channels]

  int64_t head_channels() const { return channels / heads; }
  int64_t panels() const { return (head_channels() + gate_columns - 1) / gate_columns; }
  const T *keep(int64_t token) const { return z + token * 2 * channels; }
  const T *gate(int64_t token) const { return keep(token) + channels; }
};

} // namespace ctorch
