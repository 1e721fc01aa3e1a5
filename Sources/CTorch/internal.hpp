// What the shim's files share: LibTorch's headers (silenced, they are not ours to fix), handles, and the wall that no
// exception passes.
#pragma once

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#endif
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <torch/headeronly/version.h>
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "CTorch.h"

struct ctorch_tensor_s {
  at::Tensor tensor;
};
struct ctorch_generator_s {
  at::Generator generator;
};

namespace ctorch {

inline const at::Tensor &get(ctorch_tensor handle) { return handle->tensor; }
inline at::Tensor optional(ctorch_tensor handle) { return handle ? handle->tensor : at::Tensor(); }
inline ctorch_tensor wrap(at::Tensor tensor) { return new ctorch_tensor_s{std::move(tensor)}; }
inline at::IntArrayRef dims(const int64_t *values, size_t count) { return at::IntArrayRef(values, count); }

inline std::vector<at::Tensor> list(const ctorch_tensor *handles, size_t count) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(count);
  for (size_t i = 0; i < count; ++i) tensors.push_back(optional(handles[i]));
  return tensors;
}

inline at::Scalar scalar(ctorch_scalar value) {
  switch (value.kind) {
  case 0: return at::Scalar(value.real);
  case 1: return at::Scalar(value.integer);
  default: return at::Scalar(value.integer != 0);
  }
}

inline at::TensorOptions options(ctorch_options value) {
  return at::TensorOptions()
      .dtype(static_cast<at::ScalarType>(value.dtype))
      .device(at::Device(static_cast<at::DeviceType>(value.device_type), static_cast<at::DeviceIndex>(value.device_index)));
}

inline std::optional<at::Generator> generator(ctorch_generator handle) {
  if (handle) return handle->generator;
  return std::nullopt;
}

/// Puts the exception in flight into `error`, its text cut before LibTorch's stack trace.
void store_exception(ctorch_error *error) noexcept;

/// Runs `body`; an exception ends here, in `error`, and the result is zero.
template <typename Body>
auto guarded(ctorch_error *error, Body body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (...) {
    store_exception(error);
    return decltype(body())();
  }
}

template <typename Body>
ctorch_tensor guarded_tensor(ctorch_error *error, Body body) noexcept {
  return guarded(error, [&] { return wrap(body()); });
}

} // namespace ctorch
