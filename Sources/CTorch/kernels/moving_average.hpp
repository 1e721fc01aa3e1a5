// What the kernels of Mega's moving average work on; see moving_average.cpp for the equations.
#pragma once

#include "team.hpp"

#include <algorithm>
#include <cmath>

namespace ctorch {

/// Tokens between two states that the forward pass keeps.
constexpr int64_t average_chunk = 64;
/// The hidden dimensions are padded to a multiple of this.
constexpr int64_t average_group = 8;
/// No vector has more numbers: what is laid out in vectors has room for channels padded to this.
constexpr int64_t average_lanes = 16;

/// The parameters as the layer holds them, [directions · channels, hidden], and their gradients.
template <typename T> struct AverageParameters {
  T *alpha, *delta, *beta, *eta;
  T *omega; // [channels] or null: y alone
};

/// x [batch, length, channels], in one or two directions; direction 1 is the one against time.
template <typename T> struct MovingAverageWork {
  int64_t batch, length, channels, hidden, directions;
  bool keep;
  AverageParameters<const T> parameters;
  Rows<const T> x, cotangent;
  Rows<T> out, dx;
  Rows<T> sums;     // y + ω x, if `keep` and there is an ω
  const bool *mask; // [batch, length] or null
  T *coefficients;  // [directions, vectors, kinds, hidden, lanes]: whatever an instruction set makes of the parameters
  T *states;        // [batch, directions, chunks, vectors, hidden, lanes] before each chunk, if `keep`
  T *partial;       // [batch, directions, vectors, 4, hidden, lanes] gradients of a sequence
  T *omega_partial; // [batch, channels]
  const T *initial; // [batch, channels, hidden] or null: what s is before the first token; of one direction
  T *final;         // the same after the last, or null
  AverageParameters<T> gradients;

  int64_t chunks() const { return (length + average_chunk - 1) / average_chunk; }
  int64_t padded_hidden() const { return (hidden + average_group - 1) / average_group * average_group; }
  const bool *real(int64_t sequence) const { return mask ? mask + sequence * length : nullptr; }
  /// The token that a direction comes to as its `place`th.
  int64_t token(int64_t direction, int64_t place) const { return direction == 0 ? place : length - 1 - place; }
};

} // namespace ctorch
