// The project's own kernels, one family a file in kernels/.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// The instruction set that the kernels run with: "avx512", "avx2", "baseline" or "reference" (plain loops). The machine's
/// best, unless `ctorch_force_isa` on this thread or the environment's SUBQ_ISA names another; NULL takes the former back. A
/// name that the machine lacks is an error.
const char *ctorch_isa(ctorch_error *error);
void ctorch_force_isa(const char *name, ctorch_error *error);
/// Writes up to `capacity` names, slowest first, which live forever; returns how many there are.
size_t ctorch_available_isas(const char **names, size_t capacity);

/// What the causal linear family carries from one token to the next; `p` only for momentum.
typedef struct {
  ctorch_tensor s; // [batch, heads, features, value_dim]
  ctorch_tensor p; // [batch, heads, features, value_dim] or NULL
  ctorch_tensor z; // [batch, heads, features]
} ctorch_linear_state;

typedef struct {
  int32_t feature_map;   // 0 none, 1 elu + 1, 2 relu, 3 sigmoid, 4 exp, 5 elu, 6 silu
  int32_t normalization; // 0 none, 1 by the sum of the weights, 2 by the root mean square over value_dim
  double momentum, step_size, epsilon;
} ctorch_linear_options;

/// out_i = φq_i · s_i / norm_i with p_i = β p_{i-1} - γ φk_i v_iᵀ, s_i = s_{i-1} - p_i, z_i = z_{i-1} + φk_i, in chunks, O(N)
/// time and memory, gradients included. norm_i is φq_i · z_i + ε, or the root mean square of φq_i · s_i, plus ε. β = 0, γ = 1 is
/// linear attention (`p` stays NULL). `mask` [batch, length] of booleans or NULL: keys where it is false count for nothing.
/// `initial` holds NULLs for zero; no gradient reaches the states. `final` receives owned handles.
ctorch_tensor ctorch_causal_linear(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask,
                                   ctorch_linear_options options, ctorch_linear_state initial, ctorch_linear_state *final,
                                   ctorch_error *error);

CTORCH_END
