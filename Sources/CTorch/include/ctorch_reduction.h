// Reductions, cumulative operations, sorting. An empty list of dimensions means all of them.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

#define CTORCH_REDUCTION(X) X(sum) X(mean) X(amax) X(amin) X(logsumexp)
#define CTORCH_DECLARE(name)                                                                                           \
  ctorch_tensor ctorch_##name(ctorch_tensor a, const int64_t *dims, size_t count, bool keep, ctorch_error *error);
CTORCH_REDUCTION(CTORCH_DECLARE)
#undef CTORCH_DECLARE
ctorch_tensor ctorch_var(ctorch_tensor a, const int64_t *dims, size_t count, int64_t correction, bool keep, ctorch_error *error);
ctorch_tensor ctorch_norm(ctorch_tensor a, double order, const int64_t *dims, size_t count, bool keep, ctorch_error *error);
ctorch_tensor ctorch_prod(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error);
ctorch_tensor ctorch_all(ctorch_tensor a, ctorch_error *error);
ctorch_tensor ctorch_any(ctorch_tensor a, ctorch_error *error);
ctorch_tensor ctorch_any_dim(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error);

#define CTORCH_CUMULATIVE(X) X(cumsum) X(cumprod) X(logcumsumexp)
#define CTORCH_DECLARE(name) ctorch_tensor ctorch_##name(ctorch_tensor a, int64_t dim, ctorch_error *error);
CTORCH_CUMULATIVE(CTORCH_DECLARE)
#undef CTORCH_DECLARE
ctorch_tensor ctorch_cummax(ctorch_tensor a, int64_t dim, ctorch_error *error);

ctorch_tensor ctorch_argmax(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error);
ctorch_tensor ctorch_argmin(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error);
ctorch_tensor ctorch_argsort(ctorch_tensor a, int64_t dim, bool descending, bool stable, ctorch_error *error);
/// Return the values; `indices` receives a second handle.
ctorch_tensor ctorch_topk(ctorch_tensor a, int64_t k, int64_t dim, bool largest, ctorch_tensor *indices, ctorch_error *error);
ctorch_tensor ctorch_sort(ctorch_tensor a, int64_t dim, bool descending, ctorch_tensor *indices, ctorch_error *error);
bool ctorch_equal(ctorch_tensor a, ctorch_tensor b, ctorch_error *error);

CTORCH_END
