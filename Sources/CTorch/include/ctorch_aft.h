// The Attention Free Transformer's kernels.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// What the biases of ctorch_aft are for: none, [length, taps] of each position, [heads, taps].
typedef enum { ctorch_aft_zero = 0, ctorch_aft_positions = 1, ctorch_aft_heads = 2 } ctorch_aft_bias;

/// mean_i = Σ_j e^(k_j + w_ij) v_j / Σ_j e^(k_j + w_ij), channel by channel, times σ(q_i) unless `q` is NULL. q, v [batch, heads,
/// length, channels]; k alike, or with one channel. `mask` [batch, length] of booleans or NULL: keys where it is false count for
/// nothing. w is `bias` where j lies in the window around i, if causal the `taps` keys up to i, and 0 elsewhere.
ctorch_tensor ctorch_aft(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask, ctorch_tensor bias, int32_t kind,
                         bool causal, ctorch_error *error);

CTORCH_END
