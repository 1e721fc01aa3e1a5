// What the kernels of the Attention Free Transformer work on; see aft.cpp for the equations.
#pragma once

#include "team.hpp"

namespace ctorch {

/// The exponent of a key that does not count, and of a sum over no keys: finite, so that e^(nothing - nothing) is 1.
constexpr double aft_nothing = -1e30;

/// The channels of the heads, each by itself, in units that one task works on.
template <typename T> struct AftChannels {
  bool causal, gated; // gated: times σ(q)
  bool shared_key;    // k has one channel a head; a unit is then a head
  bool streams;       // results are so large that the caches would have lost them before anyone reads them
  int64_t heads, length, channels;
  int64_t block;  // the channels of a unit, a multiple of every vector's width
  int64_t blocks; // the units of a head
  int64_t units;  // batch × heads × blocks
  Rows<const T> q, k, v, cotangent;
  Rows<T> out, dq, dk, dv;
  const bool *mask; // [batch, length] or null

  int64_t head(int64_t unit) const { return unit / blocks; }
  int64_t first(int64_t unit) const { return unit % blocks * block; }
  int64_t count(int64_t unit) const { return std::min(block, channels - first(unit)); }
  bool is_real(int64_t unit, int64_t token) const { return !mask || mask[head(unit) / heads * length + token]; }
  const T *row(const Rows<const T> &rows, int64_t unit, int64_t token) const {
    return rows.head(head(unit)) + token * rows.row + first(unit);
  }
  T *row(const Rows<T> &rows, int64_t unit, int64_t token) const { return rows.head(head(unit)) + token * rows.row + first(unit); }
  const T *key(int64_t unit, int64_t token) const {
    return k.head(head(unit)) + token * k.row + (shared_key ? 0 : first(unit));
  }
};

/// The largest exponent m of some keys, and Σ e^(k-m) v and Σ e^(k-m); backward the smallest exponent of some queries' sums and
/// two sums relative to that. [block] each.
template <typename T> struct AftSums {
  T *exponent, *numerator, *denominator;
};

/// AFT without a bias.
template <typename T> struct AftSimpleWork : AftChannels<T> {
  int64_t segment_length, segments; // segments are whole chunks
  int64_t chunk, chunks;
  bool keep;
  T *sums;   // [units, chunks + 1, 3 block]: causal, before each chunk; otherwise of each segment, and in the end of all
  T *carried; // [units, segments + 1, 3 block]: sums of what comes after, backward

  int64_t begin(int64_t segment) const { return std::min(this->length, segment * segment_length); }
  AftSums<T> at(T *state) const { return {state, state + this->block, state + 2 * this->block}; }
  AftSums<T> before(int64_t unit, int64_t chunk_index) const {
    return at(sums + (unit * (chunks + 1) + chunk_index) * 3 * this->block);
  }
  AftSums<T> after(int64_t unit, int64_t segment) const {
    return at(carried + (unit * (segments + 1) + segment) * 3 * this->block);
  }
  AftSums<T> at_segment(int64_t unit, int64_t segment) const {
    return before(unit, std::min(chunks, segment * segment_length / chunk));
  }
};

} // namespace ctorch
