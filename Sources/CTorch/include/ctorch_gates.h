// Gates of layers, each a pass over memory forward and one backward. CPU only.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// f(gate) value, of one shape; `nonlinearity` as of ctorch_feed_forward.
ctorch_tensor ctorch_gated_product(ctorch_tensor gate, ctorch_tensor value, int32_t nonlinearity, ctorch_error *error);
/// x + sigmoid(gate) (silu(first + second) - x), of one shape.
ctorch_tensor ctorch_gated_residual(ctorch_tensor x, ctorch_tensor gate, ctorch_tensor first, ctorch_tensor second,
                                    ctorch_error *error);

CTORCH_END
