// Norms over the last dimension, after a residual connection. An optional tensor may be NULL.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// The norm of x + added, of `kind` 0 layer, 1 root mean square or 2 simple; `sum`, if not NULL, receives x + added.
ctorch_tensor ctorch_added_norm(ctorch_tensor x, ctorch_tensor added, ctorch_tensor weight, ctorch_tensor bias, int32_t kind,
                                double epsilon, ctorch_tensor *sum, ctorch_error *error);

CTORCH_END
