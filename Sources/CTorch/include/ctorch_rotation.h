// Positions that turn pairs of channels, in one pass over memory forward and one backward. CPU only.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// Each row z of x [batch, heads, length, columns], after an elementwise `feature_map` (as of ctorch_linear_options) and a
/// reflection z - 2 (z · mirror) mirror, with pairs of channels turned: (a, b) becomes (a cos - b sin, b cos + a sin), for cosines
/// and sines [1 or batch, length, pairs] of x's type. Pair i is channels i and i + pairs, or with `neighbours` 2 i and 2 i + 1; what
/// is behind the pairs stays. `mirror` [columns], a unit vector that takes no gradient, may be NULL.
ctorch_tensor ctorch_rotate(ctorch_tensor x, ctorch_tensor cosines, ctorch_tensor sines, ctorch_tensor mirror, int32_t feature_map,
                            bool neighbours, ctorch_error *error);

CTORCH_END
