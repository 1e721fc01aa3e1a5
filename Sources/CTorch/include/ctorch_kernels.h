// The project's own kernels, one family a file in kernels/.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// What the causal linear family carries from one chunk to the next; `p` only for momentum.
typedef struct {
  ctorch_tensor s; // [batch, heads, features, value_dim]
  ctorch_tensor p; // [batch, heads, features, value_dim] or NULL
  ctorch_tensor z; // [batch, heads, features]
} ctorch_linear_state;

/// out_i = φq_i · s_i / (φq_i · z_i + ε) with p_i = β p_{i-1} - γ φk_i v_iᵀ, s_i = s_{i-1} - p_i, z_i = z_{i-1} + φk_i, in
/// chunks, O(N) time and memory, gradients included. β = 0, γ = 1 is linear attention (`p` stays NULL). `initial` holds NULLs
/// for zero; no gradient reaches the states. `final` receives owned handles.
ctorch_tensor ctorch_causal_linear(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, double momentum, double step_size,
                                   double epsilon, int64_t chunk, ctorch_linear_state initial, ctorch_linear_state *final,
                                   ctorch_error *error);

CTORCH_END
