// The spatial gate's kernel.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// u ⊙ (W LayerNorm(v) + b) for z [batch, length, 2 channels] whose halves are u and v; `scale` and `shift` [channels] of the norm,
/// w [heads, length, length] and `bias` [heads, length] for groups of channels. A causal W counts as 0 above its diagonal. `mask`
/// [batch, length] of booleans or NULL: v is 0 where it is false.
ctorch_tensor ctorch_spatial_gate(ctorch_tensor z, ctorch_tensor scale, ctorch_tensor shift, ctorch_tensor w, ctorch_tensor bias,
                                  ctorch_tensor mask, double epsilon, bool causal, ctorch_error *error);

CTORCH_END
