// One token through a model, as a list of operations on small vectors that a team of threads works off without allocating.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

typedef struct ctorch_step_program_s *ctorch_step_program;
/// A vector of the program, by its place.
typedef int64_t ctorch_slot;

/// What happens to a vector after a product: as `activation` below.
enum {
  CTORCH_STEP_IDENTITY,
  CTORCH_STEP_RELU,
  CTORCH_STEP_GELU,
  CTORCH_STEP_GELU_TANH,
  CTORCH_STEP_SILU,
  CTORCH_STEP_TANH,
  CTORCH_STEP_SIGMOID,
  CTORCH_STEP_ELU,
  CTORCH_STEP_SOFTPLUS,
  CTORCH_STEP_ELU_PLUS_ONE
};
enum { CTORCH_STEP_LAYER_NORM, CTORCH_STEP_RMS_NORM, CTORCH_STEP_SIMPLE_RMS_NORM, CTORCH_STEP_DEVIATION_NORM };

ctorch_step_program ctorch_step_program_new(void);
/// The same list and weights, with vectors and states of its own.
ctorch_step_program ctorch_step_program_copy(ctorch_step_program program);
void ctorch_step_program_free(ctorch_step_program program);

/// A new vector of `count` zeros, or of the numbers of `initial`.
ctorch_slot ctorch_step_slot(ctorch_step_program program, int64_t count, ctorch_tensor initial, ctorch_error *error);

/// y = activation(W x + b) + residual: `weight` [rows, columns] and `bias` [rows] or NULL, contiguous float32 on the CPU, which
/// the program keeps; `residual` -1 for none. With `heads` above 1, of each of so many parts of x and y.
void ctorch_step_linear(ctorch_step_program program, int64_t heads, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                        int32_t activation, ctorch_slot residual, ctorch_slot y, ctorch_error *error);
/// y = norm(x) · weight + bias over the whole vector. `epsilon` is added under the root, or to it for the simple one and for that
/// by the deviation, which divides the sum of the squares by `count` - 1.
void ctorch_step_norm(ctorch_step_program program, int32_t kind, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                      int64_t count, double epsilon, ctorch_slot y, ctorch_error *error);
/// y = a · x + b · z
void ctorch_step_combine(ctorch_step_program program, int64_t count, double a, ctorch_slot x, double b, ctorch_slot z,
                         ctorch_slot y);
/// y = activation(x) · z
void ctorch_step_gate(ctorch_step_program program, int64_t count, int32_t activation, ctorch_slot x, ctorch_slot z, ctorch_slot y);
/// y = x + row `token`, or `position`, of the table [rows, count], which the program keeps; x -1 for none.
void ctorch_step_lookup(ctorch_step_program program, ctorch_tensor table, bool by_position, ctorch_slot x, ctorch_slot y,
                        ctorch_error *error);
/// y = x + sin and cos, taking turns, of the position times each frequency: float64 [⌈count / 2⌉], which the program keeps.
void ctorch_step_waves(ctorch_step_program program, ctorch_tensor frequencies, int64_t count, ctorch_slot x, ctorch_slot y,
                       ctorch_error *error);
/// One token of causal linear attention with momentum (ctorch_causal_linear), divided by the sum of the weights. s, p (-1 for
/// none) and z are slots with the state, [heads, features, values] and [heads, features]; without z nothing is divided.
void ctorch_step_causal_linear(ctorch_step_program program, int64_t heads, int64_t features, int64_t values, int32_t feature_map,
                               double momentum, double step_size, double epsilon, ctorch_slot q, ctorch_slot k, ctorch_slot v,
                               ctorch_slot s, ctorch_slot p, ctorch_slot z, ctorch_slot y);

/// y = x with pairs of each head's channels turned by position · frequencies, float64 [head_dim / 2], which the program keeps:
/// the pair of c is c + head_dim / 2, or its neighbour. Positions begin anew after `period`, if that is above 0.
void ctorch_step_rotate(ctorch_step_program program, ctorch_tensor frequencies, int64_t heads, bool neighbours, int64_t period,
                        ctorch_slot x, ctorch_slot y, ctorch_error *error);

/// Sets the vector `x` to the numbers of a float32 tensor.
void ctorch_step_set(ctorch_step_program program, ctorch_slot x, ctorch_tensor numbers, ctorch_error *error);
/// Works off the list for a token at a position.
void ctorch_step_run(ctorch_step_program program, int64_t token, int64_t position, ctorch_error *error);
/// Copies the first `count` numbers of the vector `y`.
void ctorch_step_get(ctorch_step_program program, ctorch_slot y, int64_t count, float *numbers);

CTORCH_END
