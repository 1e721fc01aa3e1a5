#include "internal.hpp"

using namespace ctorch;

namespace {

/// The shim's "no dimension named means all" made explicit, for the operations of LibTorch that want names.
std::vector<int64_t> all_if_empty(const at::Tensor &tensor, const int64_t *values, size_t count) {
  std::vector<int64_t> result(values, values + count);
  if (result.empty())
    for (int64_t i = 0; i < tensor.dim(); ++i) result.push_back(i);
  return result;
}

ctorch_tensor with_indices(ctorch_error *error, ctorch_tensor *indices, std::tuple<at::Tensor, at::Tensor> both) {
  return guarded(error, [&] {
    *indices = wrap(std::get<1>(std::move(both)));
    return wrap(std::get<0>(std::move(both)));
  });
}

} // namespace

extern "C" {

#define DEFINE(name)                                                                                                   \
  ctorch_tensor ctorch_##name(ctorch_tensor a, const int64_t *values, size_t count, bool keep, ctorch_error *error) {  \
    return guarded_tensor(error, [&] { return at::name(get(a), all_if_empty(get(a), values, count), keep); });         \
  }
CTORCH_REDUCTION(DEFINE)
#undef DEFINE

ctorch_tensor ctorch_var(ctorch_tensor a, const int64_t *values, size_t count, int64_t correction, bool keep, ctorch_error *error) {
  return guarded_tensor(
      error, [&] { return at::var(get(a), all_if_empty(get(a), values, count), at::Scalar(correction), keep); });
}
ctorch_tensor ctorch_norm(ctorch_tensor a, double order, const int64_t *values, size_t count, bool keep, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::linalg_vector_norm(get(a), order, all_if_empty(get(a), values, count), keep); });
}
ctorch_tensor ctorch_prod(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::prod(get(a), dim, keep); });
}
ctorch_tensor ctorch_all(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::all(get(a)); });
}
ctorch_tensor ctorch_any(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::any(get(a)); });
}
ctorch_tensor ctorch_any_dim(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::any(get(a), dim, keep); });
}

#define DEFINE(name)                                                                                                   \
  ctorch_tensor ctorch_##name(ctorch_tensor a, int64_t dim, ctorch_error *error) {                                     \
    return guarded_tensor(error, [&] { return at::name(get(a), dim); });                                               \
  }
CTORCH_CUMULATIVE(DEFINE)
#undef DEFINE
ctorch_tensor ctorch_cummax(ctorch_tensor a, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return std::get<0>(at::cummax(get(a), dim)); });
}

ctorch_tensor ctorch_argmax(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::argmax(get(a), dim, keep); });
}
ctorch_tensor ctorch_argmin(ctorch_tensor a, int64_t dim, bool keep, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::argmin(get(a), dim, keep); });
}
ctorch_tensor ctorch_argsort(ctorch_tensor a, int64_t dim, bool descending, bool stable, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::argsort(get(a), stable, dim, descending); });
}
ctorch_tensor ctorch_topk(ctorch_tensor a, int64_t k, int64_t dim, bool largest, ctorch_tensor *indices, ctorch_error *error) {
  return guarded(error, [&] { return with_indices(error, indices, at::topk(get(a), k, dim, largest)); });
}
ctorch_tensor ctorch_sort(ctorch_tensor a, int64_t dim, bool descending, ctorch_tensor *indices, ctorch_error *error) {
  return guarded(error, [&] { return with_indices(error, indices, at::sort(get(a), dim, descending)); });
}
bool ctorch_equal(ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {
  return guarded(error, [&] { return at::equal(get(a), get(b)); });
}

} // extern "C"
