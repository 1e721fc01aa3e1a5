#include "internal.hpp"

using namespace ctorch;

namespace {

/// In-place changes stay out of the graph whatever the caller's mode.
template <typename Body>
void in_place(ctorch_error *error, Body body) {
  guarded(error, [&] {
    at::NoGradGuard guard;
    body();
  });
}

} // namespace

extern "C" {

void ctorch_copy_(ctorch_tensor a, ctorch_tensor source, ctorch_error *error) {
  in_place(error, [&] { get(a).copy_(get(source)); });
}
void ctorch_fill_(ctorch_tensor a, ctorch_scalar value, ctorch_error *error) {
  in_place(error, [&] { get(a).fill_(scalar(value)); });
}
void ctorch_add_(ctorch_tensor a, ctorch_tensor b, double scale, ctorch_error *error) {
  in_place(error, [&] { get(a).add_(get(b), scale); });
}
void ctorch_mul_(ctorch_tensor a, double factor, ctorch_error *error) {
  in_place(error, [&] { get(a).mul_(factor); });
}
void ctorch_lerp_(ctorch_tensor a, ctorch_tensor b, double weight, ctorch_error *error) {
  in_place(error, [&] { get(a).lerp_(get(b), weight); });
}
void ctorch_addcmul_(ctorch_tensor a, ctorch_tensor b, ctorch_tensor c, double value, ctorch_error *error) {
  in_place(error, [&] { get(a).addcmul_(get(b), get(c), value); });
}
void ctorch_addcdiv_(ctorch_tensor a, ctorch_tensor b, ctorch_tensor c, double value, ctorch_error *error) {
  in_place(error, [&] { get(a).addcdiv_(get(b), get(c), value); });
}
void ctorch_uniform_(ctorch_tensor a, double low, double high, ctorch_generator g, ctorch_error *error) {
  in_place(error, [&] { get(a).uniform_(low, high, generator(g)); });
}
void ctorch_normal_(ctorch_tensor a, double mean, double deviation, ctorch_generator g, ctorch_error *error) {
  in_place(error, [&] { get(a).normal_(mean, deviation, generator(g)); });
}
void ctorch_slice_copy_(ctorch_tensor a, int64_t dim, int64_t start, int64_t end, ctorch_tensor source, ctorch_error *error) {
  in_place(error, [&] { get(a).slice(dim, start, end).copy_(get(source)); });
}

void ctorch_fused_adamw_(const ctorch_tensor *parameters, const ctorch_tensor *grads, const ctorch_tensor *means,
                         const ctorch_tensor *squares, const ctorch_tensor *steps, size_t count, double learning_rate, double beta1,
                         double beta2, double weight_decay, double epsilon, ctorch_error *error) {
  in_place(error, [&] {
    auto updated = list(steps, count);
    // The kernel reads the count of this update, it does not raise it itself.
    at::_foreach_add_(updated, 1);
    at::_fused_adamw_(list(parameters, count), list(grads, count), list(means, count), list(squares, count), {}, updated,
                      learning_rate, beta1, beta2, weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false);
  });
}
ctorch_tensor ctorch_global_norm(const ctorch_tensor *tensors, size_t count, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    at::NoGradGuard guard;
    if (count == 0) return at::zeros({});
    return at::linalg_vector_norm(at::stack(at::_foreach_norm(list(tensors, count), 2)), 2);
  });
}

} // extern "C"
