#include "internal.hpp"

using namespace ctorch;

extern "C" {

ctorch_tensor ctorch_reshape(ctorch_tensor a, const int64_t *shape, size_t rank, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::reshape(get(a), dims(shape, rank)); });
}
ctorch_tensor ctorch_expand(ctorch_tensor a, const int64_t *shape, size_t rank, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).expand(dims(shape, rank)); });
}
ctorch_tensor ctorch_permute(ctorch_tensor a, const int64_t *order, size_t rank, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::permute(get(a), dims(order, rank)); });
}
ctorch_tensor ctorch_transpose(ctorch_tensor a, int64_t first, int64_t second, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::transpose(get(a), first, second); });
}
ctorch_tensor ctorch_squeeze(ctorch_tensor a, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::squeeze(get(a), dim); });
}
ctorch_tensor ctorch_unsqueeze(ctorch_tensor a, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::unsqueeze(get(a), dim); });
}
ctorch_tensor ctorch_flatten(ctorch_tensor a, int64_t first, int64_t last, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::flatten(get(a), first, last); });
}
ctorch_tensor ctorch_select(ctorch_tensor a, int64_t dim, int64_t index, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::select(get(a), dim, index); });
}
ctorch_tensor ctorch_slice(ctorch_tensor a, int64_t dim, int64_t start, int64_t end, int64_t step, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::slice(get(a), dim, start, end, step); });
}
ctorch_tensor ctorch_cat(const ctorch_tensor *tensors, size_t count, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::cat(list(tensors, count), dim); });
}
ctorch_tensor ctorch_stack(const ctorch_tensor *tensors, size_t count, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::stack(list(tensors, count), dim); });
}
ctorch_tensor ctorch_repeat(ctorch_tensor a, const int64_t *times, size_t count, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).repeat(dims(times, count)); });
}
ctorch_tensor ctorch_repeat_interleave(ctorch_tensor a, int64_t times, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::repeat_interleave(get(a), times, dim); });
}
ctorch_tensor ctorch_pad(ctorch_tensor a, const int64_t *amounts, size_t count, double value, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::constant_pad_nd(get(a), dims(amounts, count), value); });
}
ctorch_tensor ctorch_roll(ctorch_tensor a, int64_t shift, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::roll(get(a), {shift}, {dim}); });
}
ctorch_tensor ctorch_flip(ctorch_tensor a, const int64_t *values, size_t count, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::flip(get(a), dims(values, count)); });
}
ctorch_tensor ctorch_unfold(ctorch_tensor a, int64_t dim, int64_t size, int64_t step, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).unfold(dim, size, step); });
}
ctorch_tensor ctorch_tril(ctorch_tensor a, int64_t diagonal, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::tril(get(a), diagonal); });
}
ctorch_tensor ctorch_triu(ctorch_tensor a, int64_t diagonal, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::triu(get(a), diagonal); });
}
ctorch_tensor ctorch_diagonal(ctorch_tensor a, int64_t offset, int64_t first, int64_t second, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::diagonal(get(a), offset, first, second); });
}

ctorch_tensor ctorch_index_select(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::index_select(get(a), dim, get(index)); });
}
ctorch_tensor ctorch_gather(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::gather(get(a), dim, get(index)); });
}
ctorch_tensor ctorch_scatter(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::scatter(get(a), dim, get(index), get(source)); });
}
ctorch_tensor ctorch_scatter_add(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::scatter_add(get(a), dim, get(index), get(source)); });
}
ctorch_tensor ctorch_index_add(ctorch_tensor a, int64_t dim, ctorch_tensor index, ctorch_tensor source, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::index_add(get(a), dim, get(index), get(source)); });
}
ctorch_tensor ctorch_masked_select(ctorch_tensor a, ctorch_tensor mask, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::masked_select(get(a), get(mask)); });
}
ctorch_tensor ctorch_nonzero(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::nonzero(get(a)); });
}
ctorch_tensor ctorch_one_hot(ctorch_tensor a, int64_t classes, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::one_hot(get(a), classes); });
}

} // extern "C"
