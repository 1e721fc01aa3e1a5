// Operations element by element. Each line of a list declares one function, named `ctorch_` and the operation.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// f(a)
#define CTORCH_UNARY(X)                                                                                                \
  X(neg) X(abs) X(sign) X(exp) X(expm1) X(log) X(log1p) X(log2) X(sqrt) X(rsqrt) X(square) X(reciprocal) X(sin) X(cos)   \
  X(tanh) X(sigmoid) X(relu) X(silu) X(erf) X(erfc) X(floor) X(ceil) X(round) X(trunc) X(logical_not) X(isnan) X(isinf)  \
  X(isfinite)

/// f(a, b), broadcast; and with a number on the right, under the name with `_scalar`
#define CTORCH_BINARY(X)                                                                                               \
  X(add) X(sub) X(mul) X(div) X(pow) X(remainder) X(eq) X(ne) X(lt) X(le) X(gt) X(ge)

/// f(a, b), broadcast, without a form for numbers
#define CTORCH_BINARY_TENSOR(X) X(minimum) X(maximum) X(logical_and) X(logical_or)

#define CTORCH_DECLARE(name) ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_error *error);
CTORCH_UNARY(CTORCH_DECLARE)
#undef CTORCH_DECLARE
#define CTORCH_DECLARE(name)                                                                                           \
  ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_tensor b, ctorch_error *error);                                  \
  ctorch_tensor ctorch_##name##_scalar(ctorch_tensor a, ctorch_scalar b, ctorch_error *error);
CTORCH_BINARY(CTORCH_DECLARE)
#undef CTORCH_DECLARE
#define CTORCH_DECLARE(name) ctorch_tensor ctorch_##name(ctorch_tensor a, ctorch_tensor b, ctorch_error *error);
CTORCH_BINARY_TENSOR(CTORCH_DECLARE)
#undef CTORCH_DECLARE

/// a - b and a ^ b with the number on the left
ctorch_tensor ctorch_rsub_scalar(ctorch_scalar a, ctorch_tensor b, ctorch_error *error);
ctorch_tensor ctorch_rpow_scalar(ctorch_scalar a, ctorch_tensor b, ctorch_error *error);
ctorch_tensor ctorch_floor_divide(ctorch_tensor a, ctorch_tensor b, ctorch_error *error);
ctorch_tensor ctorch_floor_divide_scalar(ctorch_tensor a, ctorch_scalar b, ctorch_error *error);
/// NULL leaves that side open.
ctorch_tensor ctorch_clamp(ctorch_tensor a, const double *minimum, const double *maximum, ctorch_error *error);
ctorch_tensor ctorch_elu(ctorch_tensor a, double alpha, ctorch_error *error);
ctorch_tensor ctorch_gelu(ctorch_tensor a, bool tanh_approximation, ctorch_error *error);
ctorch_tensor ctorch_softplus(ctorch_tensor a, double beta, ctorch_error *error);
ctorch_tensor ctorch_leaky_relu(ctorch_tensor a, double slope, ctorch_error *error);
ctorch_tensor ctorch_where(ctorch_tensor condition, ctorch_tensor a, ctorch_tensor b, ctorch_error *error);
ctorch_tensor ctorch_masked_fill(ctorch_tensor a, ctorch_tensor mask, ctorch_scalar value, ctorch_error *error);
ctorch_tensor ctorch_lerp(ctorch_tensor a, ctorch_tensor b, double weight, ctorch_error *error);

CTORCH_END
