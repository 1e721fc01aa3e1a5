// Causal linear attention whose momentum is found at each step.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// What it carries from one token to the next: s, p, u [batch, heads, features, value_dim], z [batch, heads, features], all
/// float32 or wider, and begun [batch], 1 after the first step and else 0.
typedef struct {
  ctorch_tensor s, p, u, z, begun;
} ctorch_adaptive_state;

/// u_i = φk_i v_iᵀ, β_i = min((1 - √(γ |u_i - u_{i-1}| / |p_{i-1}|))², maximum) or 0 where nothing moved yet,
/// p_i = β_i p_{i-1} - γ u_i (γ = 1 in the first step), s_i = s_{i-1} - p_i, z_i = z_{i-1} + φk_i,
/// out_i = φq_i · s_i / (φq_i · z_i + ε), token by token; q and k come with φ applied. A token where `mask` [batch, length] is
/// false is no step, and its output is 0. O(N) time and memory, gradients included; none reaches the state. On the CPU.
ctorch_tensor ctorch_adaptive_momentum(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask, double step_size,
                                       double maximum, double epsilon, ctorch_adaptive_state initial, ctorch_adaptive_state *final,
                                       ctorch_error *error);

CTORCH_END
