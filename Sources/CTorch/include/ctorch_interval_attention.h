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
/// q [batch, heads, queries, D], k [batch, heads, keys, D], v [batch, heads, keys, E]. `key_mask` [batch, keys] of booleans or
/// NULL: false hides a key. What is visible is the union of `pass_count` passes, three tensors each, all int32 on the CPU:
///   intervals [K, queries, 2] or [heads, K, queries, 2]: for every query K half-open ranges start..<end of keys, which do not
///     overlap (empty where start >= end; what lies outside of the keys is left out),
///   an order of the queries, or NULL: the pass has these rows of q, as many as the intervals, each at most once,
///   an order of the keys, or NULL: the ranges count places in this list of rows of k and v, each at most once.
/// No pair may be in two passes, and the first pass has all queries and keys. `distances` or NULL add to the scores of a single
/// pass without orders. O(queries + keys) memory for each pass and no matrix of scores, gradients included.
ctorch_tensor ctorch_interval_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, const ctorch_tensor *passes,
                                        size_t pass_count, ctorch_tensor key_mask, double scale,
                                        const ctorch_interval_distances *distances, ctorch_error *error);

CTORCH_END
