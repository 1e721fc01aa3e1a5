// What the kernels of AFT with a bias in a window work on; see aft.cpp for the equations.
#pragma once

#include "aft.hpp"

namespace ctorch {

/// Rows, or keys, whose window is one product of matrices.
constexpr int64_t aft_strip = 12;

/// AFT whose query i has biases for the keys from i - left to i + right; a causal one sees none behind itself.
///
/// A head's sequence is cut into chunks, at least as long as a window. The weights e^(w - ω) of a row, with ω = max(0, max w),
/// stand in a table, with what the keys beside the window weigh left and right of it.
template <typename T> struct AftWindowWork : AftChannels<T> {
  bool by_position;  // the biases are of positions, otherwise of heads
  int64_t left, right, chunk, chunks, groups;
  T limit;           // how far exponents in a product may lie apart
  const T *bias;     // [rows, taps]
  T *table;          // [rows, taps + 2 (aft_strip - 1)]
  T *beside;         // [rows] e^-ω
  T *spread;         // [rows] ω - min(0, min w)
  T *sums;           // [units, 2, chunks + 1, 3 block]: of the keys before each chunk's windows, and after them
  T *asked;          // the same of the queries: after each chunk, and before it
  T *shift;          // [units, chunks, block] the exponent of a chunk's sums
  bool *direct;      // [units, chunks] a chunk whose exponents lie too far apart: summed pair by pair
  Rows<T> mean, inverse; // inverse: 1 / Σ e^(k + w - shift - ω), or relative to the row's largest exponent
  T *dbias;          // partial sums: [groups, length, taps] or [units, chunks, taps]

  int64_t taps() const { return left + 1 + right; }
  int64_t table_row() const { return taps() + 2 * (aft_strip - 1); }
  int64_t bias_rows() const { return by_position ? this->length : this->heads; }
  /// Of a query.
  int64_t bias_index(int64_t unit, int64_t i) const { return by_position ? i : this->head(unit) % this->heads; }
  /// From one query to the next.
  int64_t table_step() const { return by_position ? table_row() : 0; }
  /// What query i gives key j.
  const T *weight(int64_t unit, int64_t i, int64_t j) const {
    return table + bias_index(unit, i) * table_row() + (j - i) + left + aft_strip - 1;
  }
  T bias_of(int64_t unit, int64_t i, int64_t j) const {
    const int64_t tap = j - i + left;
    return tap >= 0 && tap < taps() ? bias[bias_index(unit, i) * taps() + tap] : T(0);
  }
  int64_t begin(int64_t index) const { return std::min(this->length, index * chunk); }
  /// The keys that stand in windows of a chunk's rows.
  int64_t first_key(int64_t index) const { return std::max<int64_t>(0, begin(index) - left); }
  int64_t last_key(int64_t index) const { return std::min(this->length, begin(index + 1) + right); }
  AftSums<T> at(T *start, int64_t unit, int64_t side, int64_t index) const {
    T *state = start + ((unit * 2 + side) * (chunks + 1) + index) * 3 * this->block;
    return {state, state + this->block, state + 2 * this->block};
  }
  T *shift_of(int64_t unit, int64_t index) const { return shift + (unit * chunks + index) * this->block; }
  bool &is_direct(int64_t unit, int64_t index) const { return direct[unit * chunks + index]; }
};

} // namespace ctorch
