#include "internal.hpp"

using namespace ctorch;

extern "C" {

ctorch_tensor ctorch_matmul(ctorch_tensor a, ctorch_tensor b, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::matmul(get(a), get(b)); });
}
ctorch_tensor ctorch_einsum(const char *equation, const ctorch_tensor *tensors, size_t count, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::einsum(equation, list(tensors, count)); });
}
ctorch_tensor ctorch_qr(ctorch_tensor a, ctorch_tensor *r, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto both = at::linalg_qr(get(a));
    *r = wrap(std::get<1>(both));
    return std::get<0>(both);
  });
}

ctorch_tensor ctorch_rfft(ctorch_tensor a, int64_t count, int64_t dim, bool orthonormal, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto n = count ? std::optional<int64_t>(count) : std::nullopt;
    return at::fft_rfft(get(a), n, dim, orthonormal ? "ortho" : "backward");
  });
}
ctorch_tensor ctorch_irfft(ctorch_tensor a, int64_t count, int64_t dim, bool orthonormal, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto n = count ? std::optional<int64_t>(count) : std::nullopt;
    return at::fft_irfft(get(a), n, dim, orthonormal ? "ortho" : "backward");
  });
}
ctorch_tensor ctorch_view_as_real(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::view_as_real(get(a)); });
}
ctorch_tensor ctorch_view_as_complex(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::view_as_complex(get(a)); });
}

ctorch_tensor ctorch_softmax(ctorch_tensor a, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::softmax(get(a), dim); });
}
ctorch_tensor ctorch_log_softmax(ctorch_tensor a, int64_t dim, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::log_softmax(get(a), dim); });
}
ctorch_tensor ctorch_layer_norm(ctorch_tensor x, const int64_t *shape, size_t rank, ctorch_tensor weight, ctorch_tensor bias,
                                double epsilon, ctorch_error *error) {
  return guarded_tensor(
      error, [&] { return at::layer_norm(get(x), dims(shape, rank), optional(weight), optional(bias), epsilon); });
}
ctorch_tensor ctorch_rms_norm(ctorch_tensor x, const int64_t *shape, size_t rank, ctorch_tensor weight, double epsilon,
                              ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::rms_norm(get(x), dims(shape, rank), optional(weight), epsilon); });
}
ctorch_tensor ctorch_conv1d(ctorch_tensor x, ctorch_tensor weight, ctorch_tensor bias, int64_t stride, int64_t padding,
                            int64_t dilation, int64_t groups, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    return at::conv1d(get(x), get(weight), optional(bias), at::IntArrayRef{stride}, at::IntArrayRef{padding},
                      at::IntArrayRef{dilation}, groups);
  });
}
ctorch_tensor ctorch_embedding(ctorch_tensor weight, ctorch_tensor indices, int64_t padding_index, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::embedding(get(weight), get(indices), padding_index); });
}
ctorch_tensor ctorch_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask, double dropout, bool causal,
                               double scale, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto m = mask ? std::optional<at::Tensor>(get(mask)) : std::nullopt;
    return at::scaled_dot_product_attention(get(q), get(k), get(v), m, dropout, causal, scale);
  });
}

} // extern "C"
