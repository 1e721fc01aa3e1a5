// Recurrent cells over a window of tokens.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// h after the last `window` tokens, for every token of x [batch, length, dim]; a cell begins from zero at each window's first
/// token, and zero vectors stand before the sequence. cell: 0 GRU, 1 LSTM, 2 tanh. The weights are [gates · dim, dim], the biases
/// [gates · dim], gate after gate: r, z, n or i, f, g, o. O(N window dim²) time, gradients included. The steps are left for the
/// backward pass if that takes no more than `most_kept` bytes; otherwise it takes them again. CPU only.
ctorch_tensor ctorch_local_rnn(ctorch_tensor x, ctorch_tensor input_weight, ctorch_tensor hidden_weight, ctorch_tensor input_bias,
                               ctorch_tensor hidden_bias, int32_t cell, int64_t window, int64_t most_kept, ctorch_error *error);

CTORCH_END
