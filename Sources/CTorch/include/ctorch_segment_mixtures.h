// Normalized keys and values with mixtures of each segment of them behind.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// Two layer norms over all channels: of the tokens, and of the mixtures.
typedef struct {
  ctorch_tensor token_gain, token_bias, mixture_gain, mixture_bias; // [heads · width]
  double epsilon;
} ctorch_mixture_norms;

/// [LN(k); LN'(k̄)] and [LN(v); LN'(v̄)] with `rank` mixtures k̄ = Σ_t softmax_t(logits_t) k_t, head by head, of every `segment`
/// tokens, the last of which (whole or not) has none. k, v [batch, length, heads · width], logits [batch, length, heads · rank],
/// `mask` [batch, length] of booleans or NULL: false leaves a token out of its mixtures. Mixtures are in the order of the
/// segments. Returns the keys [batch, length + mixtures, heads · width]; `values` receives an owned handle. Gradients included.
ctorch_tensor ctorch_segment_mixtures(ctorch_tensor k, ctorch_tensor v, ctorch_tensor logits, ctorch_tensor mask,
                                      ctorch_mixture_norms norms, int64_t segment, int64_t rank, int64_t heads,
                                      ctorch_tensor *values, ctorch_error *error);

CTORCH_END
