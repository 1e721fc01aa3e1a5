// What a kernel gives where a sequence, a batch or the heads are none: there is nothing to compute, and no piece of work to cut.
#pragma once

#include "../internal.hpp"

namespace ctorch {

/// Zeros of these sizes and of the first input's type, which depend on the inputs: their gradients are zeros.
inline at::Tensor empty_result(at::IntArrayRef sizes, std::initializer_list<at::Tensor> inputs) {
  auto result = at::zeros(sizes, inputs.begin()->options());
  for (const auto &input : inputs)
    if (input.defined() && input.requires_grad())
      result = result + input.flatten().narrow(0, 0, 0).sum().to(result.scalar_type());
  return result;
}

} // namespace ctorch
