// Cross entropy of logits z with a target t, the target's share spread out by the smoothing ε over all C classes:
//   loss = log Σ e^z - (1 - ε) z_t - ε / C Σ z,   ∂loss / ∂z_c = e^(z_c - log Σ e^z) - (1 - ε) [c = t] - ε / C
// One pass over the logits forward, one backward: beside them only the gradient itself has their size.
#include "cross_entropy.hpp"

#define KERNELS "cross_entropy.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Plain loops.
namespace ctorch::reference {

template <typename T> std::vector<T> log_probabilities(const CrossEntropyWork<T> &work, int64_t row) {
  const T *z = work.logits + row * work.classes;
  const T largest = *std::max_element(z, z + work.classes);
  T sum = 0;
  for (int64_t c = 0; c < work.classes; ++c) sum += std::exp(z[c] - largest);
  std::vector<T> result(z, z + work.classes);
  for (T &value : result) value -= largest + std::log(sum);
  return result;
}

template <typename T> void cross_entropy_forward(const CrossEntropyWork<T> &work, int64_t task) {
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    work.losses[row] = 0;
    if (work.targets[row] == work.ignored) continue;
    const auto p = log_probabilities(work, row);
    work.losses[row] = -(1 - work.smoothing) * p[work.targets[row]];
    for (T value : p) work.losses[row] -= work.smoothing / static_cast<T>(work.classes) * value;
  }
}

template <typename T> void cross_entropy_backward(const CrossEntropyWork<T> &work, int64_t task) {
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    const auto p = log_probabilities(work, row);
    for (int64_t c = 0; c < work.classes; ++c) {
      const T share = (c == work.targets[row] ? 1 - work.smoothing : T(0)) + work.smoothing / static_cast<T>(work.classes);
      work.gradient[row * work.classes + c] =
          work.targets[row] == work.ignored ? T(0) : (std::exp(p[c]) - share) * work.scale[row * work.scale_step];
    }
  }
}

} // namespace ctorch::reference

namespace {

constexpr int64_t rows_at_once = 32;

struct Settings {
  int64_t reduction, ignored;
  double smoothing;
};

template <typename T>
CrossEntropyWork<T> work_of(const Settings &settings, const Tensor &logits, const Tensor &targets, const Tensor &log_sums) {
  CrossEntropyWork<T> work{};
  work.rows = logits.size(0);
  work.classes = logits.size(1);
  work.block = rows_at_once;
  work.ignored = settings.ignored;
  work.smoothing = static_cast<T>(settings.smoothing);
  work.logits = logits.const_data_ptr<T>();
  work.targets = targets.const_data_ptr<int64_t>();
  work.log_sums = log_sums.mutable_data_ptr<T>();
  return work;
}

int64_t counted(const Tensor &targets, int64_t ignored) {
  const auto *first = targets.const_data_ptr<int64_t>();
  return targets.size(0) - std::count(first, first + targets.size(0), ignored);
}

/// Inputs without a gradient: as a struct, autograd passes them over.
struct Targets {
  Tensor indices;
};

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static Tensor forward(AutogradContext *context, const Tensor &logits, Targets targets, Settings settings) {
    auto losses = at::empty({logits.size(0)}, logits.options()), log_sums = at::empty_like(losses), result = losses;
    AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "cross entropy", [&] {
      auto work = work_of<scalar_t>(settings, logits, targets.indices, log_sums);
      work.losses = losses.mutable_data_ptr<scalar_t>();
      for_each_task(work.blocks(), [&](int64_t task) { DISPATCH(cross_entropy_forward<scalar_t>, work, task); });
      if (settings.reduction == 0) return;
      double sum = 0;
      for (int64_t row = 0; row < work.rows; ++row) sum += static_cast<double>(work.losses[row]);
      if (settings.reduction == 1) sum /= static_cast<double>(counted(targets.indices, settings.ignored));
      result = at::full({}, sum, logits.options());
    });
    context->save_for_backward({logits, targets.indices, log_sums});
    context->saved_data["reduction"] = settings.reduction;
    context->saved_data["ignored"] = settings.ignored;
    context->saved_data["smoothing"] = settings.smoothing;
    return result;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    auto saved = context->get_saved_variables();
    auto &data = context->saved_data;
    const auto &logits = saved[0], &targets = saved[1];
    const Settings settings{data["reduction"].toInt(), data["ignored"].toInt(), data["smoothing"].toDouble()};
    auto scale = grads[0].contiguous();
    if (settings.reduction == 1) scale = scale / static_cast<double>(counted(targets, settings.ignored));
    if (at::GradMode::is_enabled()) { // the gradient is differentiated in turn
      auto real = targets.ne(settings.ignored).unsqueeze(1);
      auto share = at::full_like(logits, settings.smoothing / static_cast<double>(logits.size(1)), at::MemoryFormat::Contiguous);
      share.scatter_add_(1, targets.unsqueeze(1).masked_fill(~real, 0),
                         at::full_like(share.narrow(1, 0, 1), 1 - settings.smoothing));
      auto by = settings.reduction == 0 ? scale.unsqueeze(1) : scale;
      return {((at::softmax(logits, 1) - share) * by).masked_fill(~real, 0), Tensor(), Tensor()};
    }
    auto gradient = at::empty_like(logits);
    AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "cross entropy", [&] {
      auto work = work_of<scalar_t>(settings, logits, targets, saved[2]);
      work.scale = scale.const_data_ptr<scalar_t>();
      work.scale_step = settings.reduction == 0 ? 1 : 0;
      work.gradient = gradient.mutable_data_ptr<scalar_t>();
      for_each_task(work.blocks(), [&](int64_t task) { DISPATCH(cross_entropy_backward<scalar_t>, work, task); });
    });
    return {gradient, Tensor(), Tensor()};
  }
};

/// Whether the kernel takes these; what it does not take, and what is wrong, LibTorch sees.
bool serves(const Tensor &logits, const Tensor &targets, int64_t ignored) {
  const auto type = logits.scalar_type();
  if (!logits.is_cpu() || !targets.is_cpu() || (type != at::kFloat && type != at::kDouble) || targets.scalar_type() != at::kLong ||
      logits.dim() != 2 || targets.dim() != 1 || logits.size(0) != targets.size(0) || logits.numel() == 0)
    return false;
  auto indices = targets.contiguous();
  const auto *first = indices.const_data_ptr<int64_t>();
  return std::all_of(first, first + indices.size(0), [&](int64_t t) { return t == ignored || (t >= 0 && t < logits.size(1)); });
}

} // namespace

extern "C" ctorch_tensor ctorch_cross_entropy(ctorch_tensor logits, ctorch_tensor targets, int64_t reduction, int64_t ignored,
                                              double smoothing, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &z = get(logits), &t = get(targets);
    if (!serves(z, t, ignored)) return at::cross_entropy_loss(z, t, Tensor(), reduction, ignored, smoothing);
    return CrossEntropy::apply(z.contiguous(), Targets{t.contiguous()}, Settings{reduction, ignored, smoothing});
  });
}
