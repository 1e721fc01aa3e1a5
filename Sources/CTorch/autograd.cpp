#include "internal.hpp"

using namespace ctorch;

namespace {

/// A node of the graph whose gradient is a Swift closure.
struct PullbackNode : torch::autograd::Node {
  ctorch_pullback pullback;
  size_t inputs;

  PullbackNode(ctorch_pullback pullback, size_t inputs) : pullback(pullback), inputs(inputs) {}
  ~PullbackNode() override { release_variables(); }

  torch::autograd::variable_list apply(torch::autograd::variable_list &&grads) override {
    TORCH_CHECK(pullback.context, "the graph was already used by backward(); ask for it to be kept to use it twice");
    // Gradients are recorded only to be differentiated again, and what the closure does is not recorded.
    TORCH_CHECK(!at::GradMode::is_enabled(), "a custom gradient cannot be differentiated again (createGraph)");
    std::vector<ctorch_tensor> given, results(inputs, nullptr);
    for (auto &grad : grads) given.push_back(grad.defined() ? wrap(grad) : nullptr);
    ctorch_error error{CTORCH_OK, nullptr};
    pullback.backward(pullback.context, given.data(), given.size(), results.data(), results.size(), &error);
    for (auto handle : given) ctorch_tensor_free(handle);
    torch::autograd::variable_list list;
    for (auto handle : results) {
      list.push_back(optional(handle));
      ctorch_tensor_free(handle);
    }
    if (error.message) {
      std::string text(error.message);
      free(error.message);
      TORCH_CHECK_WITH(OutOfMemoryError, error.kind != CTORCH_OUT_OF_MEMORY, text);
      TORCH_CHECK_INDEX(error.kind != CTORCH_INDEX_OUT_OF_RANGE, text);
      TORCH_CHECK_NOT_IMPLEMENTED(error.kind != CTORCH_NOT_SUPPORTED, text);
      TORCH_CHECK(false, text);
    }
    return list;
  }

  void release_variables() override {
    if (!pullback.context) return;
    pullback.release(pullback.context);
    pullback.context = nullptr;
  }

  std::string name() const override { return "SwiftPullback"; }
};

/// LibTorch counts a node's owners inside the node since 2.13, and through shared_ptr before.
template <typename Owner = torch::autograd::Node>
auto make_node(ctorch_pullback pullback, size_t inputs) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Owner>)
    return c10::make_intrusive<PullbackNode>(pullback, inputs);
  else
    return std::make_shared<PullbackNode>(pullback, inputs);
}

} // namespace

extern "C" {

bool ctorch_requires_grad(ctorch_tensor a) { return get(a).requires_grad(); }
void ctorch_set_requires_grad(ctorch_tensor a, bool value, ctorch_error *error) {
  guarded(error, [&] { get(a).set_requires_grad(value); });
}
ctorch_tensor ctorch_grad(ctorch_tensor a) {
  const auto &grad = get(a).grad();
  return grad.defined() ? wrap(grad) : nullptr;
}
void ctorch_set_grad(ctorch_tensor a, ctorch_tensor grad, ctorch_error *error) {
  guarded(error, [&] {
    const auto given = optional(grad);
    TORCH_CHECK(!given.defined() || (given.sizes() == get(a).sizes() && given.scalar_type() == get(a).scalar_type() &&
                                     given.device() == get(a).device()),
                "a gradient has its tensor's shape, type and device, ", get(a).sizes(), " ", get(a).scalar_type(), " on ",
                get(a).device(), "; this one is ", given.sizes(), " ", given.scalar_type(), " on ", given.device());
    get(a).mutable_grad() = given;
  });
}
ctorch_tensor ctorch_detach(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).detach(); });
}
void ctorch_backward(ctorch_tensor a, ctorch_tensor grad, bool keep_graph, ctorch_error *error) {
  guarded(error, [&] { torch::autograd::backward({get(a)}, {optional(grad)}, keep_graph, false); });
}
void ctorch_gradients(const ctorch_tensor *outputs, const ctorch_tensor *grads, size_t output_count, const ctorch_tensor *inputs,
                      size_t input_count, bool keep_graph, bool create_graph, ctorch_tensor *results, ctorch_error *error) {
  guarded(error, [&] {
    auto found = torch::autograd::grad(list(outputs, output_count), list(inputs, input_count), list(grads, output_count),
                                       keep_graph, create_graph, /*allow_unused=*/true);
    for (size_t i = 0; i < input_count; ++i) results[i] = found[i].defined() ? wrap(found[i]) : nullptr;
  });
}
bool ctorch_grad_enabled(void) { return at::GradMode::is_enabled(); }
void ctorch_set_grad_enabled(bool enabled) { at::GradMode::set_enabled(enabled); }

void ctorch_attach_pullback(const ctorch_tensor *inputs, size_t input_count, const ctorch_tensor *outputs, size_t output_count,
                            ctorch_pullback pullback, ctorch_error *error) {
  guarded(error, [&] {
    auto node = make_node(pullback, input_count);
    node->set_next_edges(torch::autograd::collect_next_edges(list(inputs, input_count)));
    for (size_t i = 0; i < output_count; ++i) {
      // Whole numbers have no gradient; the pullback gets an undefined one in their place.
      const bool smooth = torch::autograd::isDifferentiableType(get(outputs[i]).scalar_type());
      torch::autograd::set_history(smooth ? get(outputs[i]) : at::Tensor(), node);
    }
  });
}

} // extern "C"
