// What the kernels of LSH attention work on; see lsh_attention.cpp for the equations.
#pragma once

#include "team.hpp"

#include <algorithm>

namespace ctorch {

struct LSHSettings {
  bool causal, within_bucket, unique_pairs, real_length;
  int64_t chunk, before, after, bucket_count;
  double scale, epsilon, self_logit;
};

/// How the tokens of one sequence are cut into chunks. Those of all rounds are counted through, and the first follows on the
/// last. What fits into one chunk has one round.
struct LSHRounds {
  int64_t count;  // tokens that take part
  int64_t rounds; // at least 1
  int64_t chunks; // of a round
  int64_t before, after;
  bool single() const { return chunks == 1 && rounds == 1; }
  int64_t all() const { return rounds * chunks; }
  int64_t window() const { return before + 1 + after; }
  /// The chunk that lies `offset` after chunk c.
  int64_t around(int64_t c, int64_t offset) const { return ((c + offset) % all() + all()) % all(); }
};

/// Tokens of a chunk that are worked on together, in the order of their positions; within a chunk no other order matters.
struct LSHStretch {
  int64_t id = -1, round = 0, count = 0;
  const int32_t *tokens = nullptr;
};

/// One pass over x [batch, heads, length, features] and v [batch, heads, length, values]; groups are batch × heads. A task has
/// a segment of a group's chunks, and sums of its own over what these chunks see, for all tokens of the group.
template <typename T> struct LSHWork {
  LSHSettings settings;
  int64_t heads, length, features, values, rounds, segments;
  Rows<const T> x, v, cotangent;
  Rows<T> out, dx, dv;
  const int64_t *counts;     // [batch]: tokens that take part
  const bool *mask;          // [batch, length], true for a real token, or null
  const int32_t *buckets;    // [groups, rounds, length]
  int32_t *order;            // [groups, rounds, length]: the tokens chunk by chunk, by position within each
  int32_t *place;            // [groups, rounds, length]: of each token the chunk, counted through all rounds; for unique pairs
  const float *discounts;    // ln n for n of at least 1; for unique pairs
  T *inverse;                // [groups, length]: 1 / √(|x|² + D ε)
  T *largest, *sum;          // [groups, length]: t and l
  T *part_largest, *part_sum; // [groups, segments, length]; those above if there is one segment
  T *part_out;               // [groups, segments, length, values], or null: `out`
  T *drift;                  // [groups, length]: cotangent · out
  T *part_dx, *part_dv;      // [groups, segments, length, …], or null: `dx` and `dv`

  LSHRounds rounds_of(int64_t group) const {
    const int64_t count = counts[group / heads];
    if (count <= settings.chunk) return {count, 1, 1, 0, 0};
    return {count, rounds, (count + settings.chunk - 1) / settings.chunk, settings.before, settings.after};
  }
  int64_t row(int64_t group, int64_t round) const { return (group * rounds + round) * length; }
  const bool *real(int64_t group) const { return mask ? mask + group / heads * length : nullptr; }

  /// Stretch `part` of chunk c, of up to `size` tokens.
  LSHStretch stretch(const LSHRounds &all, int64_t group, int64_t c, int64_t part, int64_t size) const {
    const int64_t first = c % all.chunks * settings.chunk, from = first + part * size;
    const int64_t to = std::min({from + size, first + settings.chunk, all.count});
    const int32_t *tokens = order + row(group, c / all.chunks);
    return {c * parts(all, size) + part, c / all.chunks, std::max<int64_t>(to - from, 0), tokens + from};
  }
  int64_t parts(const LSHRounds &all, int64_t size) const { return (std::min(settings.chunk, all.count) + size - 1) / size; }

  /// Rows of one segment's sums: of the token t at data + t · row.
  struct Sums {
    T *data;
    int64_t row;
  };
  Sums sums(T *parts_of, const Rows<T> &whole, int64_t width, int64_t group, int64_t segment) const {
    if (!parts_of) return {whole.head(group), whole.row};
    return {parts_of + (group * segments + segment) * length * width, width};
  }
  int64_t part(int64_t group, int64_t segment) const { return (group * segments + segment) * length; }
};

} // namespace ctorch
