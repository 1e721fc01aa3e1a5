// One token through a model, as a list of operations on small vectors that a team of threads works off without allocating.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

typedef struct ctorch_step_program_s *ctorch_step_program;
/// A vector of the program, by its place.
typedef int64_t ctorch_slot;

/// What happens to a vector after a product: as `activation` below.
enum { CTORCH_STEP_IDENTITY, CTORCH_STEP_RELU, CTORCH_STEP_GELU, CTORCH_STEP_GELU_TANH, CTORCH_STEP_SILU, CTORCH_STEP_TANH, CTORCH_STEP_SIGMOID, CTORCH_STEP_ELU, CTORCH_STEP_SOFTPLUS };
enum { CTORCH_STEP_LAYER_NORM, CTORCH_STEP_RMS_NORM, CTORCH_STEP_SIMPLE_RMS_NORM };

ctorch_step_program ctorch_step_program_new(void);
/// The same list and weights, with vectors and states of its own.
ctorch_step_program ctorch_step_program_copy(ctorch_step_program program);
void ctorch_step_program_free(ctorch_step_program program);

/// A new vector of `count` zeros, or of the numbers of `initial`.
ctorch_slot ctorch_step_slot(ctorch_step_program program, int64_t count, ctorch_tensor initial, ctorch_error *error);

/// y = activation(W x + b) + residual: `weight` [rows, columns] and `bias` [rows] or NULL, contiguous float32 on the CPU, which
/// the program keeps; `residual` -1 for none.
void ctorch_step_linear(ctorch_step_program program, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias, int32_t activation,
                        ctorch_slot residual, ctorch_slot y, ctorch_error *error);
/// y = norm(x) · weight + bias over the whole vector. `epsilon` is added under the root, or to it for the simple one.
void ctorch_step_norm(ctorch_step_program program, int32_t kind, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias, int64_t count,
                      double epsilon, ctorch_slot y, ctorch_error *error);
/// y = a · x + b · z
void ctorch_step_combine(ctorch_step_program program, int64_t count, double a, ctorch_slot x, double b, ctorch_slot z, ctorch_slot y);
/// y = activation(x) · z
void ctorch_step_gate(ctorch_step_program program, int64_t count, int32_t activation, ctorch_slot x, ctorch_slot z, ctorch_slot y);
/// One token of causal linear attention with momentum (ctorch_causal_linear), divided by the sum of the weights. s, p (-1 for
/// none) and z are slots with the state, [heads, head_dim, head_dim] and [heads, head_dim].
void ctorch_step_causal_linear(ctorch_step_program program, int64_t heads, int64_t head_dim, int32_t feature_map, double momentum,
                               double step_size, double epsilon, ctorch_slot q, ctorch_slot k, ctorch_slot v, ctorch_slot s,
                               ctorch_slot p, ctorch_slot z, ctorch_slot y);

/// Sets the vector `x` to `count` numbers of a float32 tensor, works off the list, and copies the vector `y` into `result`.
void ctorch_step_run(ctorch_step_program program, ctorch_tensor input, ctorch_slot x, ctorch_slot y, ctorch_tensor result,
                     ctorch_error *error);

CTORCH_END
