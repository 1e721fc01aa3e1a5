// Linear layers on our own products, and what feed-forward layers make of them.
#pragma once

#include "matrix_product.hpp"

namespace ctorch {

using OptionalTensor = std::optional<at::Tensor>;

/// x Wᵀ + b for each weight: by our products where they serve, otherwise by LibTorch's.
torch::autograd::variable_list project(const at::Tensor &x, const std::vector<at::Tensor> &weights,
                                       const std::vector<at::Tensor> &biases);

} // namespace ctorch

/// What the layers' forward and backward passes share. Tensors that are multiplied are contiguous.
namespace ctorch::dense {

using at::Tensor;

/// Whether our products compute residual + f(x upᵀ + up_bias) downᵀ + down_bias: in all of its sizes right, and faster than
/// LibTorch; and the first of the two layers alone.
bool serves(const Tensor &x, const Tensor &up, const Tensor &up_bias, const Tensor &down, const Tensor &down_bias,
            const Tensor &residual);
bool serves(const Tensor &x, const Tensor &weight, const Tensor &bias);

/// Whether a gradient will be asked for.
bool any_gradient(std::initializer_list<const Tensor *> tensors);

/// f(x), and g f'(x), in LibTorch's operations.
Tensor composed(Nonlinearity kind, const Tensor &x);
Tensor composed_slope(Nonlinearity kind, const Tensor &g, const Tensor &x);
/// dx, dW and db of x Wᵀ + b whose gradient is g, in LibTorch's operations.
torch::autograd::variable_list composed_gradients(const Tensor &g, const Tensor &x, const Tensor &weight);

inline Tensor contiguous(const Tensor &t) { return t.defined() ? t.contiguous() : t; }
inline OptionalTensor present(const Tensor &t) { return t.defined() ? OptionalTensor(t.contiguous()) : std::nullopt; }
inline Tensor defined(const OptionalTensor &t) { return t ? *t : Tensor(); }
inline bool wants(const OptionalTensor &t) { return t && t->defined() && t->requires_grad(); }
inline int64_t rows_of(const Tensor &x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

inline Tensor like_with_columns(const Tensor &x, int64_t columns) {
  auto sizes = x.sizes().vec();
  sizes.back() = columns;
  return at::empty(sizes, x.options());
}

/// Calls body(first, count) with ranges of x's rows, so few that as many of what lies between two layers, `columns` wide, take some
/// 16 MiB: they never exist for all rows. For fewer than 256 rows it would not pay to pack the weights again.
template <typename Body> void for_each_rows(const Tensor &x, int64_t columns, Body body) {
  const int64_t bytes = columns * static_cast<int64_t>(x.element_size()), rows = rows_of(x);
  const int64_t most = std::max<int64_t>(256, (int64_t{16} << 20) / bytes), ranges = (rows + most - 1) / most;
  const int64_t count = ranges == 0 ? 0 : (rows + ranges - 1) / ranges;
  for (int64_t first = 0; first < rows; first += count) body(first, std::min(count, rows - first));
}

/// Of a contiguous tensor, which may be undefined.
inline Tensor rows_from(const Tensor &x, int64_t first, int64_t count) {
  return x.defined() ? x.view({-1, x.size(-1)}).narrow(0, first, count) : x;
}

template <typename T> const T *read(const Tensor &t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; }
template <typename T> T *write(const Tensor &t) { return t.defined() ? t.mutable_data_ptr<T>() : nullptr; }

/// x Wᵀ + b, x [rows, inputs] and W [outputs, inputs] contiguous.
template <typename T>
ProductWork<T> forward_work(const Tensor &x, const Tensor &weight, const Tensor &bias, const Tensor &y) {
  ProductWork<T> work{rows_of(x), weight.size(0), weight.size(1), read<T>(x), weight.size(1), 1, read<T>(weight), 1, weight.size(1),
                      write<T>(y), weight.size(0)};
  work.bias = read<T>(bias);
  return work;
}

/// G W
template <typename T> ProductWork<T> input_gradient_work(const Tensor &g, const Tensor &weight, const Tensor &dx) {
  return {rows_of(g), weight.size(1), weight.size(0), read<T>(g), weight.size(0), 1, read<T>(weight), weight.size(1), 1,
          write<T>(dx), weight.size(1)};
}

/// dW = Gᵀ X and db = Σ G, or added to what is there; either may be undefined.
template <typename T>
void weight_gradients(const Tensor &g, const Tensor &x, const Tensor &dw, const Tensor &db, bool accumulate = false) {
  const int64_t outputs = g.size(-1);
  if (!dw.defined()) {
    if (!db.defined()) return;
    auto sum = g.reshape({-1, outputs}).sum(0);
    accumulate ? db.add_(sum) : db.copy_(sum);
    return;
  }
  const int64_t inputs = x.size(-1);
  ProductWork<T> work{outputs, inputs, rows_of(g), read<T>(g), 1, outputs, read<T>(x), inputs, 1, write<T>(dw), inputs};
  work.row_sums = write<T>(db);
  work.accumulate = accumulate;
  product(work);
}

} // namespace ctorch::dense
