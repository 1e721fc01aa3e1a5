#include "internal.hpp"

#include <cmath>

using namespace ctorch;

namespace {

/// A whole bound stays whole for whole numbers, which a fractional one would turn into float32.
std::optional<at::Scalar> bound(const at::Tensor &tensor, const double *value) {
  if (!value) return std::nullopt;
  const bool whole = std::nearbyint(*value) == *value && std::abs(*value) < 0x1p62;
  if (whole && at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false)) return at::Scalar(static_cast<int64_t>(*value));
  return at::Scalar(*value);
}

} // namespace

extern "C" {

#define DEFINE(name)                                                                                                   \
  ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_error *error) {                                                  \
    return guarded_tensor(error, [&] { return at::name(get(a)); });                                                    \
  }
CTORCH_UNARY(DEFINE)
#undef DEFINE

#define DEFINE(name)                                                                                                   \
  ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {                                 \
    return guarded_tensor(error, [&] { return at::name(get(a), get(b)); });                                            \
  }                                                                                                                    \
  ctorch_tensor ctorch_##name##_scalar(ctorch_tensor a, ctorch_scalar b, ctorch_error *error) {                        \
    return guarded_tensor(error, [&] { return at::name(get(a), scalar(b)); });                                         \
  }
CTORCH_BINARY(DEFINE)
#undef DEFINE

#define DEFINE(name)                                                                                                   \
  ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {                                 \
    return guarded_tensor(error, [&] { return at::name(get(a), get(b)); });                                            \
  }
CTORCH_BINARY_TENSOR(DEFINE)
#undef DEFINE

ctorch_tensor ctorch_rsub_scalar(ctorch_scalar a, ctorch_tensor b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::rsub(get(b), scalar(a)); });
}
ctorch_tensor ctorch_rpow_scalar(ctorch_scalar a, ctorch_tensor b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::pow(scalar(a), get(b)); });
}
ctorch_tensor ctorch_floor_divide(ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::floor_divide(get(a), get(b)); });
}
ctorch_tensor ctorch_floor_divide_scalar(ctorch_tensor a, ctorch_scalar b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::floor_divide(get(a), scalar(b)); });
}
ctorch_tensor ctorch_clamp(ctorch_tensor a, const double *minimum, const double *maximum, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    return at::clamp(get(a), bound(get(a), minimum), bound(get(a), maximum));
  });
}
ctorch_tensor ctorch_elu(ctorch_tensor a, double alpha, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::elu(get(a), alpha); });
}
ctorch_tensor ctorch_gelu(ctorch_tensor a, bool tanh_approximation, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::gelu(get(a), tanh_approximation ? "tanh" : "none"); });
}
ctorch_tensor ctorch_softplus(ctorch_tensor a, double beta, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::softplus(get(a), beta); });
}
ctorch_tensor ctorch_leaky_relu(ctorch_tensor a, double slope, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::leaky_relu(get(a), slope); });
}
ctorch_tensor ctorch_where(ctorch_tensor condition, ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::where(get(condition), get(a), get(b)); });
}
ctorch_tensor ctorch_masked_fill(ctorch_tensor a, ctorch_tensor mask, ctorch_scalar value, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::masked_fill(get(a), get(mask), scalar(value)); });
}
ctorch_tensor ctorch_lerp(ctorch_tensor a, ctorch_tensor b, double weight, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::lerp(get(a), get(b), weight); });
}

} // extern "C"
