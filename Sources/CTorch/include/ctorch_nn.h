// Products, Fourier transforms and the functions of neural networks. An optional tensor may be NULL.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

ctorch_tensor ctorch_matmul(ctorch_tensor a, ctorch_tensor b, ctorch_error *error);
ctorch_tensor ctorch_einsum(const char *equation, const ctorch_tensor *tensors, size_t count, ctorch_error *error);
ctorch_tensor ctorch_linear(ctorch_tensor x, ctorch_tensor weight, ctorch_tensor bias, ctorch_error *error);
/// Returns Q; `r` receives R.
ctorch_tensor ctorch_qr(ctorch_tensor a, ctorch_tensor *r, ctorch_error *error);

/// Real transforms; `count` 0 means the whole dimension. `orthonormal` scales both ways by 1/sqrt(n).
ctorch_tensor ctorch_rfft(ctorch_tensor a, int64_t count, int64_t dim, bool orthonormal, ctorch_error *error);
ctorch_tensor ctorch_irfft(ctorch_tensor a, int64_t count, int64_t dim, bool orthonormal, ctorch_error *error);
/// Complex numbers as a last dimension of two, and back.
ctorch_tensor ctorch_view_as_real(ctorch_tensor a, ctorch_error *error);
ctorch_tensor ctorch_view_as_complex(ctorch_tensor a, ctorch_error *error);

ctorch_tensor ctorch_softmax(ctorch_tensor a, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_log_softmax(ctorch_tensor a, int64_t dim, ctorch_error *error);
ctorch_tensor ctorch_layer_norm(ctorch_tensor x, const int64_t *shape, size_t rank, ctorch_tensor weight, ctorch_tensor bias,
                                double epsilon, ctorch_error *error);
ctorch_tensor ctorch_rms_norm(ctorch_tensor x, const int64_t *shape, size_t rank, ctorch_tensor weight, double epsilon,
                              ctorch_error *error);
ctorch_tensor ctorch_conv1d(ctorch_tensor x, ctorch_tensor weight, ctorch_tensor bias, int64_t stride, int64_t padding,
                            int64_t dilation, int64_t groups, ctorch_error *error);
ctorch_tensor ctorch_embedding(ctorch_tensor weight, ctorch_tensor indices, int64_t padding_index, ctorch_error *error);
/// `reduction`: 0 none, 1 mean, 2 sum
ctorch_tensor ctorch_cross_entropy(ctorch_tensor logits, ctorch_tensor targets, int64_t reduction, int64_t ignored,
                                   double smoothing, ctorch_error *error);
/// softmax(scale q kᵀ + mask) v through LibTorch's own blocked kernel; `mask` is bool or additive, NULL for none.
ctorch_tensor ctorch_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask, double dropout, bool causal,
                               double scale, ctorch_error *error);

CTORCH_END
