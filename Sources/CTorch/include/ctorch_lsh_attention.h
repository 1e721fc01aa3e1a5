// LSH attention: the buckets of a hash, and attention within what it brought together.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// h_r(i) = argmax [x_i R_r, -x_i R_r] for the first `rounds` of `rotations` [heads, D, rounds, Σ factors / 2] and x
/// [batch, heads, n, D]: int32 [batch, heads, rounds, n]. Each of the `count` factors, all even, takes its own piece of R_r and
/// gives one digit, the first the lowest.
ctorch_tensor ctorch_lsh_buckets(ctorch_tensor x, ctorch_tensor rotations, int64_t rounds, const int64_t *factors, size_t count,
                                 ctorch_error *error);

typedef struct {
  bool causal, within_bucket, unique_pairs;
  bool real_length; // rounds are as long as a sequence's own tokens, not as the padded sequence
  int64_t chunk, chunks_before, chunks_after, bucket_count;
  double scale, key_norm_epsilon;
  double self_logit; // far above -1e9, at which hidden keys count for nothing
} ctorch_lsh_options;

/// Softmax attention of each token to the tokens of its chunk and the chunks around it, in all rounds together, its keys being
/// its queries brought to length 1. qk [batch, heads, n, D], v [batch, heads, n, E], `buckets` [batch, heads, rounds, n] from 0 to
/// below `bucket_count`, `mask` [batch, n] of booleans or NULL. O(n · rounds) memory, gradients included.
ctorch_tensor ctorch_lsh_attention(ctorch_tensor qk, ctorch_tensor v, ctorch_tensor buckets, ctorch_tensor mask,
                                   ctorch_lsh_options options, ctorch_error *error);

CTORCH_END
