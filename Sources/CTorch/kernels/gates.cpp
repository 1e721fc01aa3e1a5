// Gates, each one pass over memory forward and one backward: of gated layers (Shazeer 2020, arXiv 2002.05202) and of Mega (Ma et
// al. 2022, arXiv 2209.10655, eq. 12-14),
//
//   f(a) b     and     x + u (silu(h₁ + h₂) - x),  u = sigmoid(a)
//
// Only the inputs are kept; the backward pass computes the gates again.
#include "gates.hpp"

#define KERNELS "gates.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops.
namespace ctorch::reference {

inline int64_t gate_end(int64_t count, int64_t task) { return std::min(count, (task + 1) * gate_block); }

template <typename T> void gated_product_block(const GatedProductWork<T> &work, int64_t task) {
  for (int64_t i = task * gate_block; i < gate_end(work.count, task); ++i)
    work.out[i] = apply(work.nonlinearity, work.gate[i]) * work.value[i];
}

template <typename T> void gated_product_block_back(const GatedProductWork<T> &work, int64_t task) {
  for (int64_t i = task * gate_block; i < gate_end(work.count, task); ++i) {
    const T given = work.cotangent[i], open = apply(work.nonlinearity, work.gate[i]);
    work.of_gate[i] = given * work.value[i] * slope(work.nonlinearity, work.gate[i]);
    work.of_value[i] = given * open;
    if (work.out) work.out[i] = open * work.value[i];
  }
}

template <typename T> void gated_residual(const GatedResidualWork<T> &work, int64_t task) {
  for (int64_t i = task * gate_block; i < gate_end(work.count, task); ++i)
    work.out[i] = work.x[i] + apply(Nonlinearity::sigmoid, work.gate[i]) *
                                  (apply(Nonlinearity::silu, work.first[i] + work.second[i]) - work.x[i]);
}

template <typename T> void gated_residual_back(const GatedResidualWork<T> &work, int64_t task) {
  for (int64_t i = task * gate_block; i < gate_end(work.count, task); ++i) {
    const T open = apply(Nonlinearity::sigmoid, work.gate[i]), sum = work.first[i] + work.second[i];
    work.of_x[i] = work.cotangent[i] * (1 - open);
    work.of_gate[i] = work.cotangent[i] * (apply(Nonlinearity::silu, sum) - work.x[i]) * open * (1 - open);
    work.of_sum[i] = work.cotangent[i] * open * slope(Nonlinearity::silu, sum);
  }
}

} // namespace ctorch::reference

namespace {

int64_t blocks(int64_t count) { return (count + gate_block - 1) / gate_block; }
void refuse_second_derivatives() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "the gates cannot be differentiated twice (createGraph)");
}

template <typename T> GatedProductWork<T> product_of(Nonlinearity nonlinearity, const Tensor &gate, const Tensor &value) {
  GatedProductWork<T> work{};
  work.count = gate.numel();
  work.nonlinearity = nonlinearity;
  work.gate = gate.const_data_ptr<T>(), work.value = value.const_data_ptr<T>();
  return work;
}

struct GatedProduct : torch::autograd::Function<GatedProduct> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &gate, const Tensor &value, int64_t nonlinearity) {
    auto out = at::empty_like(gate);
    AT_DISPATCH_FLOATING_TYPES(gate.scalar_type(), "gated product", [&] {
      auto work = product_of<scalar_t>(static_cast<Nonlinearity>(nonlinearity), gate, value);
      work.out = out.mutable_data_ptr<scalar_t>();
      gated_product(work);
    });
    context->save_for_backward({gate, value});
    context->saved_data["nonlinearity"] = nonlinearity;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    refuse_second_derivatives();
    auto saved = context->get_saved_variables();
    const auto nonlinearity = static_cast<Nonlinearity>(context->saved_data["nonlinearity"].toInt());
    auto cotangent = grads[0].contiguous(), of_gate = at::empty_like(saved[0]), of_value = at::empty_like(saved[0]);
    AT_DISPATCH_FLOATING_TYPES(cotangent.scalar_type(), "gated product", [&] {
      auto work = product_of<scalar_t>(nonlinearity, saved[0], saved[1]);
      work.cotangent = cotangent.const_data_ptr<scalar_t>();
      work.of_gate = of_gate.mutable_data_ptr<scalar_t>(), work.of_value = of_value.mutable_data_ptr<scalar_t>();
      gated_product_back(work);
    });
    return {of_gate, of_value, Tensor()};
  }
};

struct GatedResidual : torch::autograd::Function<GatedResidual> {
  template <typename T> static GatedResidualWork<T> work_of(const at::ArrayRef<Tensor> inputs) {
    GatedResidualWork<T> work{};
    work.count = inputs[0].numel();
    auto data = [&](size_t index) { return inputs[index].const_data_ptr<T>(); };
    work.x = data(0), work.gate = data(1), work.first = data(2), work.second = data(3);
    return work;
  }

  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &x, const Tensor &gate, const Tensor &first,
                        const Tensor &second) {
    auto out = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated residual", [&] {
      auto work = work_of<scalar_t>({x, gate, first, second});
      work.out = out.mutable_data_ptr<scalar_t>();
      for_each_task(blocks(x.numel()), [&](int64_t task) { DISPATCH(gated_residual<scalar_t>, work, task); });
    });
    context->save_for_backward({x, gate, first, second});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    refuse_second_derivatives();
    auto saved = context->get_saved_variables();
    auto cotangent = grads[0].contiguous();
    auto of_x = at::empty_like(cotangent), of_gate = at::empty_like(cotangent), of_sum = at::empty_like(cotangent);
    AT_DISPATCH_FLOATING_TYPES(cotangent.scalar_type(), "gated residual", [&] {
      auto work = work_of<scalar_t>(saved);
      work.cotangent = cotangent.const_data_ptr<scalar_t>();
      work.of_x = of_x.mutable_data_ptr<scalar_t>(), work.of_gate = of_gate.mutable_data_ptr<scalar_t>();
      work.of_sum = of_sum.mutable_data_ptr<scalar_t>();
      for_each_task(blocks(cotangent.numel()), [&](int64_t task) { DISPATCH(gated_residual_back<scalar_t>, work, task); });
    });
    return {of_x, of_gate, of_sum, of_sum};
  }
};

/// The tensors as the kernels take them: of one shape, contiguous, in at least float32.
std::vector<Tensor> prepared(std::initializer_list<ctorch_tensor> handles) {
  std::vector<Tensor> tensors;
  for (auto handle : handles) {
    const auto &t = get(handle);
    const auto &first = get(*handles.begin());
    TORCH_CHECK(t.is_cpu() && t.sizes() == first.sizes() && t.scalar_type() == first.scalar_type(),
                "a gate takes tensors of one shape and type on the CPU, not ", first.sizes(), " and ", t.sizes());
    tensors.push_back(t.to(at::promote_types(t.scalar_type(), at::kFloat)).contiguous());
  }
  return tensors;
}

} // namespace

template <typename T> void ctorch::gated_product(const GatedProductWork<T> &work) {
  for_each_task(blocks(work.count), [&](int64_t task) { DISPATCH(gated_product_block<T>, work, task); });
}
template <typename T> void ctorch::gated_product_back(const GatedProductWork<T> &work) {
  for_each_task(blocks(work.count), [&](int64_t task) { DISPATCH(gated_product_block_back<T>, work, task); });
}

template void ctorch::gated_product(const GatedProductWork<float> &);
template void ctorch::gated_product(const GatedProductWork<double> &);
template void ctorch::gated_product_back(const GatedProductWork<float> &);
template void ctorch::gated_product_back(const GatedProductWork<double> &);

extern "C" ctorch_tensor ctorch_gated_product(ctorch_tensor gate, ctorch_tensor value, int32_t nonlinearity, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto inputs = prepared({gate, value});
    return GatedProduct::apply(inputs[0], inputs[1], static_cast<int64_t>(nonlinearity)).to(get(gate).scalar_type());
  });
}

extern "C" ctorch_tensor ctorch_gated_residual(ctorch_tensor x, ctorch_tensor gate, ctorch_tensor first, ctorch_tensor second,
                                               ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto inputs = prepared({x, gate, first, second});
    return GatedResidual::apply(inputs[0], inputs[1], inputs[2], inputs[3]).to(get(x).scalar_type());
  });
}
