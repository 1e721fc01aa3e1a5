// Changes in place, for optimizers and for loading weights. None of them is recorded by autograd.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

void ctorch_copy_(ctorch_tensor a, ctorch_tensor source, ctorch_error *error);
void ctorch_fill_(ctorch_tensor a, ctorch_scalar value, ctorch_error *error);
void ctorch_add_(ctorch_tensor a, ctorch_tensor b, double scale, ctorch_error *error);
void ctorch_mul_(ctorch_tensor a, double factor, ctorch_error *error);
/// a <- a + weight (b - a)
void ctorch_lerp_(ctorch_tensor a, ctorch_tensor b, double weight, ctorch_error *error);
/// a <- a + value b c, and a <- a + value b / c
void ctorch_addcmul_(ctorch_tensor a, ctorch_tensor b, ctorch_tensor c, double value, ctorch_error *error);
void ctorch_addcdiv_(ctorch_tensor a, ctorch_tensor b, ctorch_tensor c, double value, ctorch_error *error);
void ctorch_uniform_(ctorch_tensor a, double low, double high, ctorch_generator generator, ctorch_error *error);
void ctorch_normal_(ctorch_tensor a, double mean, double deviation, ctorch_generator generator, ctorch_error *error);
/// a[position] along `dim` <- source
void ctorch_slice_copy_(ctorch_tensor a, int64_t dim, int64_t start, int64_t end, ctorch_tensor source, ctorch_error *error);

/// LibTorch's fused AdamW over lists of equal length; `steps` hold each parameter's count of updates as a float tensor.
void ctorch_fused_adamw_(const ctorch_tensor *parameters, const ctorch_tensor *grads, const ctorch_tensor *means,
                         const ctorch_tensor *squares, const ctorch_tensor *steps, size_t count, double learning_rate, double beta1,
                         double beta2, double weight_decay, double epsilon, ctorch_error *error);
/// The Euclidean norm over all tensors together, as a scalar tensor.
ctorch_tensor ctorch_global_norm(const ctorch_tensor *tensors, size_t count, ctorch_error *error);

CTORCH_END
