// Views, rearrangements, joins, indexing.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

ctorch_tensor ctorch_reshape(ctorch_tensor a, const int64_t *shape, size_t rank, ctorch_error *error);
ctorch_tensor ctorch_expand(ctorch_tensor a, const int64_t *shape, size_t rank, ctorch_error *error);
ctorch_tensor ctorch_permute(ctorch_tensor a, const int64_t *dims, size_t rank, ctorch_error *error);
ctorch_tensor ctorch_transpose(ctorch_tensor a, int64_t first, int64_t second, ctorch_error *error);
ctorch_tensor ctorch_squeeze(ctorch_tensor a, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_unsqueeze(ctorch_tensor a, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_flatten(ctorch_tensor a, int64_t first, int64_t last, ctorch_error *error);
ctorch_tensor ctorch_select(ctorch_tensor a, int64_t dim, int64_t index, ctorch_error *error);
ctorch_tensor ctorch_slice(ctorch_tensor a, int64_t dim, int64_t start, int64_t end, int64_t step, ctorch_error *error);
ctorch_tensor ctorch_cat(const ctorch_tensor *tensors, size_t count, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_stack(const ctorch_tensor *tensors, size_t count, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_repeat(ctorch_tensor a, const int64_t *times, size_t count, ctorch_error *error);
ctorch_tensor ctorch_repeat_interleave(ctorch_tensor a, int64_t times, int64_t dim, ctorch_error *error);
/// `amounts`: before and after, from the last dimension backwards.
ctorch_tensor ctorch_pad(ctorch_tensor a, const int64_t *amounts, size_t count, double value, ctorch_error *error);
ctorch_tensor ctorch_roll(ctorch_tensor a, int64_t shift, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_flip(ctorch_tensor a, const int64_t *dims, size_t count, ctorch_error *error);
ctorch_tensor ctorch_unfold(ctorch_tensor a, int64_t dim, int64_t size, int64_t step, ctorch_error *error);
ctorch_tensor ctorch_tril(ctorch_tensor a, int64_t diagonal, ctorch_error *error);
ctorch_tensor ctorch_triu(ctorch_tensor a, int64_t diagonal, ctorch_error *error);
ctorch_tensor ctorch_diagonal(ctorch_tensor a, int64_t offset, int64_t first, int64_t second, ctorch_error *error);

ctorch_tensor ctorch_index_select(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_error *error);
ctorch_tensor ctorch_gather(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_error *error);
ctorch_tensor ctorch_scatter(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error);
ctorch_tensor ctorch_scatter_add(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error);
ctorch_tensor ctorch_index_add(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error);
ctorch_tensor ctorch_masked_select(ctorch_tensor a, ctorch_tensor mask, ctorch_error *error);
ctorch_tensor ctorch_nonzero(ctorch_tensor a, ctorch_error *error);
ctorch_tensor ctorch_one_hot(ctorch_tensor a, int64_t classes, ctorch_error *error);

CTORCH_END
