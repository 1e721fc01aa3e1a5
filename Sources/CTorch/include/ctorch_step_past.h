// Operations of step programs over what is kept of the past, and those that go on from a state channel by channel. Weights are
// contiguous float32 on the CPU, and the program keeps them; keys and values of the tokens before are copied.
#pragma once
#include "ctorch_step_program.h"
CTORCH_BEGIN

/// How scores become weights.
enum { CTORCH_STEP_SOFTMAX = 1, CTORCH_STEP_LAPLACE, CTORCH_STEP_RELU2 };
/// Recurrent cells, as in ctorch_local_rnn.
enum { CTORCH_STEP_GRU, CTORCH_STEP_LSTM, CTORCH_STEP_TANH_CELL };

/// y = activation(q) Σ e^(k + w) v / Σ e^(k + w) over all tokens, channel by channel: w is `taps` [heads, window], or the vector
/// `bias` (-1 for none) of `window` numbers, the oldest token first, and 0 for what is before the window. `keys` [window - 1,
/// channels, or heads with taps] and `values` [window - 1, channels] are of the tokens before; exponent, numerator and denominator
/// [channels] are the sums over those before the window.
void ctorch_step_average(ctorch_step_program program, int64_t heads, int32_t activation, ctorch_tensor keys, ctorch_tensor values,
                         ctorch_tensor taps, ctorch_slot bias, ctorch_slot q, ctorch_slot k, ctorch_slot v, ctorch_slot exponent,
                         ctorch_slot numerator, ctorch_slot denominator, ctorch_slot y, ctorch_error *error);
/// y = activation(Σ taps · x) over the last tokens: `taps` [count, channels], the oldest first, `inputs` [count - 1, channels].
void ctorch_step_taps(ctorch_step_program program, int32_t activation, ctorch_tensor taps, ctorch_tensor inputs, ctorch_slot x,
                      ctorch_slot y, ctorch_error *error);
/// s = input x + decay s, y = silu(Σ output s + ω x): `coefficients` [3 numbers + 1, channels] are these four, the state s
/// [numbers, channels].
void ctorch_step_moving_average(ctorch_step_program program, ctorch_tensor coefficients, ctorch_slot x, ctorch_slot s,
                                ctorch_slot y, ctorch_error *error);
/// y = Σ_j weight_j v_j, weights of the scores scale · q · k_j + b by `function`; but for softmax the scale is divided by the
/// number of keys. `bias` is b for the distances from 0 on; or with `frequencies`, float64 [waves], b is
/// Σ_i bias[0, i] cos(distance · f_i) + bias[1, i] sin(distance · f_i). After `chunk` tokens it begins anew; where that is 0, there
/// may be as many tokens as biases, and with frequencies any number.
void ctorch_step_weigh(ctorch_step_program program, int32_t function, double scale, ctorch_tensor bias, ctorch_tensor frequencies,
                       ctorch_tensor keys, ctorch_tensor values, int64_t chunk, ctorch_slot q, ctorch_slot k, ctorch_slot v,
                       ctorch_slot y, ctorch_error *error);
/// y_t = Σ_{s ≤ t} W_ts v_s + b_t for each head: `weights` [heads, n, n], or [heads, 2 n - 1] of the distances s - t from 1 - n on,
/// `bias` [heads, n], `values` [tokens, channels] of the tokens before.
void ctorch_step_position_sum(ctorch_step_program program, ctorch_tensor weights, ctorch_tensor bias, ctorch_tensor values,
                              ctorch_slot v, ctorch_slot y, ctorch_error *error);
/// y_i = W x_i + b for `count` vectors, one behind the other in x and in y.
void ctorch_step_products(ctorch_step_program program, int64_t count, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                          ctorch_slot y, ctorch_error *error);
/// y_j = x · row (position + j) of the table, for `count` rows.
void ctorch_step_row_products(ctorch_step_program program, int64_t count, ctorch_slot x, ctorch_tensor table, ctorch_slot y,
                              ctorch_error *error);
/// A token for the last `window` windows of recurrent cells, which begin from zero: x [gates · channels] is what the input gives,
/// `products` [window - 1, gates · channels] what the hidden vectors give, `bias` that of a hidden zero vector. h and c (-1 but for
/// LSTM) [window - 1, channels] are the states after 1, 2, … tokens; y is h of the window that is complete.
void ctorch_step_cell(ctorch_step_program program, int32_t cell, int64_t window, int64_t channels, ctorch_tensor bias,
                      ctorch_slot x, ctorch_slot products, ctorch_slot h, ctorch_slot c, ctorch_slot y, ctorch_error *error);

CTORCH_END
