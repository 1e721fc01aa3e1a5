// Random features of linear attention, in one pass over memory forward and one backward. CPU only.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// [e^(u - o), e^(-u - o)] of each row of x [batch, heads, length, dim], with u = √temperature x · directions [dim, columns] and
/// o = temperature |x|² / 2 + offset: [batch, heads, length, 2 columns]. No gradient reaches the directions.
ctorch_tensor ctorch_positive_features(ctorch_tensor x, ctorch_tensor directions, double temperature, double offset,
                                       ctorch_error *error);

CTORCH_END
