// Mega's moving average.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// The parameters [directions · channels, hidden]: the logits of α and δ, β and η; ω [channels] or NULL.
typedef struct {
  ctorch_tensor alpha, delta, beta, eta, omega;
} ctorch_average_parameters;

/// s_t = α β x_t + (1 - αδ) s_{t-1}, y_t = ⟨η, s_t⟩ / √hidden for each channel of x [batch, length, channels]; out = y, or with
/// ω silu(y + ω x). In two directions y is the sum of both. `mask` [batch, length] of booleans or NULL: x counts as 0 in s where
/// it is false. O(N) time and memory, gradients included. `initial` [batch, channels, hidden] or NULL is s before the first
/// token, in one direction and without gradients; `final`, if given, receives s after the last, without a gradient.
ctorch_tensor ctorch_moving_average(ctorch_tensor x, ctorch_tensor mask, ctorch_average_parameters parameters,
                                    ctorch_tensor initial, ctorch_tensor *final, ctorch_error *error);

CTORCH_END
