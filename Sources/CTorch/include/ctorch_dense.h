// Linear and feed-forward layers on products of their own, where those beat LibTorch's. An optional tensor may be NULL.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// x Wᵀ + b of up to three weights and one x: the first is returned, `others` receives the rest. `biases` may hold NULLs.
ctorch_tensor ctorch_projections(ctorch_tensor x, const ctorch_tensor *weights, const ctorch_tensor *biases, size_t count,
                                 ctorch_tensor *others, ctorch_error *error);
/// residual + f(x upᵀ + up_bias) downᵀ + down_bias; `nonlinearity`: 0 none, 1 relu, 2 gelu, 3 gelu by tanh, 4 silu, 5 sigmoid
ctorch_tensor ctorch_feed_forward(ctorch_tensor x, ctorch_tensor up, ctorch_tensor up_bias, ctorch_tensor down,
                                  ctorch_tensor down_bias, ctorch_tensor residual, int32_t nonlinearity, ctorch_error *error);
/// residual + (f(x gateᵀ + gate_bias) ∘ (x upᵀ + up_bias)) downᵀ + down_bias
ctorch_tensor ctorch_gated_feed_forward(ctorch_tensor x, ctorch_tensor gate, ctorch_tensor gate_bias, ctorch_tensor up,
                                        ctorch_tensor up_bias, ctorch_tensor down, ctorch_tensor down_bias, ctorch_tensor residual,
                                        int32_t nonlinearity, ctorch_error *error);

CTORCH_END
