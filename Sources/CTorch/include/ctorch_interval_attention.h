// Softmax attention in which every query sees a few ranges of keys.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// What is added to the scores of key j, which in one of the ranges of query i is at distance d from the range's last key:
/// scale q_i · R_d + c_d + a_j.
///
/// R `table` [heads, Σ counts, D] and c `bias` [heads, Σ counts] have `counts` distances from 0 on for each of the `count` ranges,
/// one range after the other; a `key_bias` [batch, heads, keys].
typedef struct {
  ctorch_tensor table, bias, key_bias;
  const int64_t *counts;
  size_t count;
} ctorch_interval_distances;

/// out_i = softmax over the visible keys j of (scale q_i · k_j), times v_j; a row that sees nothing is 0 and takes no gradient.
///
/// q [batch, heads, queries, D], k [batch, heads, keys, D], v [batch, heads, keys, E]. `intervals`, int32 on the CPU,
/// [K, queries, 2] or [heads, K, queries, 2], holds for every query K half-open ranges start..<end of keys, which do not overlap
/// (empty where start >= end; what lies outside of the keys is left out). `key_mask` [batch, keys] of booleans or NULL: false
/// hides a key. `distances` or NULL add to the scores. O(queries + keys) memory and no matrix of scores, gradients included.
ctorch_tensor ctorch_interval_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor intervals,
                                        ctorch_tensor key_mask, double scale, const ctorch_interval_distances *distances,
                                        ctorch_error *error);

CTORCH_END
