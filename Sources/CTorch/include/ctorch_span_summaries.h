// Keys and values with a summary of each span of them behind.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// [k; k̄] and [v; v̄] with one summary for every `span` tokens: q̄ = pool(a), k̄ = pool(b), v̄ = Σ_j softmax_j(scale q̄ · k_j) v_j
/// over the tokens j of the span. a, b, k [batch, heads, length, D], v [batch, heads, length, E]; `b` NULL stands for k. `pool`
/// is 0 max, 1 mean, 2 sum. `mask` [batch, length] of booleans or NULL: false leaves a token out; a span without tokens gives
/// 0. Returns the keys; `values` receives an owned handle. Gradients included, in O(length) memory.
ctorch_tensor ctorch_span_summaries(ctorch_tensor a, ctorch_tensor b, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask,
                                    int64_t span, int32_t pool, double scale, ctorch_tensor *values, ctorch_error *error);

CTORCH_END
