// Linear layers on our own products.
#pragma once

#include "matrix_product.hpp"

namespace ctorch {

using OptionalTensor = std::optional<at::Tensor>;

/// x Wᵀ + b for each weight: by our products where they serve, otherwise by LibTorch's.
torch::autograd::variable_list project(const at::Tensor &x, const std::vector<at::Tensor> &weights,
                                       const std::vector<at::Tensor> &biases);

} // namespace ctorch
