// What the kernel that hashes works on: h_r(i) = argmax [x_i R_r, -x_i R_r], see lsh_attention_hash.cpp.
#pragma once

#include "team.hpp"

namespace ctorch {

/// Digit after digit for x [batch, heads, length, features]; groups are batch × heads.
template <typename T> struct LSHHashWork {
  int64_t heads, length, features, rounds;
  int64_t directions, row;        // of a round; of one feature's row in `rotations`
  const int64_t *factors;         // each twice as many as its directions
  int64_t digits;
  Rows<const T> x;
  const T *rotations; // [heads, features, rounds of which the first count, directions]
  int32_t *buckets;   // [groups, rounds, length]

  const T *rotation(int64_t group) const { return rotations + group % heads * features * row; }
  int32_t *bucket(int64_t group, int64_t round) const { return buckets + (group * rounds + round) * length; }
};

/// Tokens that a task hashes at once.
constexpr int64_t lsh_hash_tokens = 64;

} // namespace ctorch
