// Layer norm (Ba et al. 2016, arXiv 1607.06450) and root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467) over the
// last dimension, after a residual connection if there is one:
//   h = x + a,   y = (h - mean(h)) / √(variance(h) + ε) weight + bias   or   y = h / √(mean(h²) + ε) weight
// or the simple one (Qin et al. 2022, arXiv 2210.10340), whose ε stands outside of the root,  y = h / (r + ε), r = √(mean(h²)).
// h is given too, for the stream to go on with; its gradient is added to that of the norm in the same pass.
#include "normalization.hpp"

#define KERNELS "normalization.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Plain loops.
namespace ctorch::reference {

template <typename T> void norm_forward(const NormWork<T> &work, int64_t task) {
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    std::vector<T> h(static_cast<size_t>(work.columns));
    T mean = 0, variance = 0;
    for (int64_t n = 0; n < work.columns; ++n) {
      h[n] = work.x[row * work.columns + n] + (work.added ? work.added[row * work.columns + n] : T(0));
      if (work.sum) work.sum[row * work.columns + n] = h[n];
      if (work.kind == NormKind::layer) mean += h[n] / static_cast<T>(work.columns);
    }
    const bool is_simple = work.kind == NormKind::simple;
    T unit = 1;
    for (T value : h) unit = is_simple ? std::max(unit, std::abs(value)) : T(1);
    for (T value : h) variance += (value - mean) / unit * ((value - mean) / unit) / static_cast<T>(work.columns);
    const T root = unit * std::sqrt(variance);
    work.center[row] = is_simple ? (root > 0 ? (root + work.epsilon) / root : T(1)) : mean;
    work.scale[row] = is_simple ? 1 / (root + work.epsilon) : 1 / std::sqrt(variance + work.epsilon);
    for (int64_t n = 0; n < work.columns; ++n)
      work.y[row * work.columns + n] =
          (h[n] - mean) * work.scale[row] * (work.weight ? work.weight[n] : T(1)) + (work.bias ? work.bias[n] : T(0));
  }
}

/// dh_j = Σ_i dy_i weight_i ∂x̂_i / ∂h_j, the sum taken literally.
template <typename T> void norm_backward(const NormWork<T> &work, int64_t task) {
  const int64_t columns = work.columns;
  const T count = static_cast<T>(columns), centered = work.kind == NormKind::layer ? T(1) : T(0);
  const bool is_simple = work.kind == NormKind::simple;
  if (work.parts) std::fill_n(work.parts + task * 2 * columns, 2 * columns, T(0));
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    const T *x = work.x + row * columns, *dy = work.dy + row * columns;
    const T mean = is_simple ? T(0) : work.center[row], scale = work.scale[row], factor = is_simple ? work.center[row] : T(1);
    for (int64_t j = 0; j < columns; ++j) {
      T sum = work.dsum ? work.dsum[row * columns + j] : T(0);
      for (int64_t i = 0; i < columns; ++i) {
        const T slope = scale * ((i == j ? T(1) : T(0)) - centered / count) -
                        factor * scale * (scale * (x[i] - mean)) * (scale * (x[j] - mean)) / count;
        sum += dy[i] * (work.weight ? work.weight[i] : T(1)) * slope;
      }
      work.dx[row * columns + j] = sum;
      if (!work.parts) continue;
      work.parts[task * 2 * columns + j] += dy[j] * (x[j] - mean) * scale;
      work.parts[(task * 2 + 1) * columns + j] += dy[j];
    }
  }
}

} // namespace ctorch::reference

namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int64_t rows_at_once = 32;

template <typename T> const T *read(const Tensor &t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; }

template <typename T> NormWork<T> work_of(NormKind kind, double epsilon, const Tensor &x, const Tensor &weight) {
  NormWork<T> work{};
  work.kind = kind;
  work.columns = x.size(-1);
  work.rows = work.columns ? x.numel() / work.columns : 0;
  work.block = rows_at_once;
  work.epsilon = static_cast<T>(epsilon);
  work.x = read<T>(x);
  work.weight = read<T>(weight);
  return work;
}

struct Normalized {
  Tensor sum, y, center, scale;
};

Normalized normalize(NormKind kind, double epsilon, const Tensor &x, const Tensor &added, const Tensor &weight,
                     const Tensor &bias) {
  Normalized result{added.defined() ? at::empty_like(x) : x, at::empty_like(x), {}, {}};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    auto work = work_of<scalar_t>(kind, epsilon, x, weight);
    result.center = at::empty({work.rows}, x.options());
    result.scale = at::empty({work.rows}, x.options());
    work.added = read<scalar_t>(added);
    work.bias = read<scalar_t>(bias);
    work.sum = added.defined() ? result.sum.mutable_data_ptr<scalar_t>() : nullptr;
    work.y = result.y.mutable_data_ptr<scalar_t>();
    work.center = result.center.mutable_data_ptr<scalar_t>();
    work.scale = result.scale.mutable_data_ptr<scalar_t>();
    for_each_task(work.blocks(), [&](int64_t task) { DISPATCH(norm_forward<scalar_t>, work, task); });
  });
  return result;
}

/// r by LibTorch's operations, with a gradient of 0 where it is 0.
Tensor simple_root(const Tensor &x) {
  auto unit = x.detach().abs().amax(-1, true).clamp_min(1);
  return at::linalg_vector_norm(x / unit, 2, -1, true) * unit / std::sqrt(static_cast<double>(x.size(-1)));
}

struct Norm : torch::autograd::Function<Norm> {
  /// Returns y, and after it the sum where something was added.
  static variable_list forward(AutogradContext *context, const Tensor &x, const OptionalTensor &added, const OptionalTensor &weight,
                               const OptionalTensor &bias, int64_t kind, double epsilon) {
    auto scale_by = weight.value_or(Tensor());
    auto found = normalize(static_cast<NormKind>(kind), epsilon, x, added.value_or(Tensor()), scale_by, bias.value_or(Tensor()));
    context->save_for_backward({found.sum, scale_by, found.center, found.scale, bias.value_or(Tensor())});
    context->saved_data["kind"] = kind;
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["added"] = added.has_value();
    context->saved_data["weights"] = (weight && weight->requires_grad()) || (bias && bias->requires_grad());
    context->saved_data["bias"] = bias.has_value();
    context->set_materialize_grads(false);
    if (!added) return {found.y};
    return {found.y, found.sum};
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    auto saved = context->get_saved_variables();
    auto &data = context->saved_data;
    const auto &h = saved[0], &weight = saved[1];
    const auto kind = static_cast<NormKind>(data["kind"].toInt());
    const bool added = data["added"].toBool(), has_bias = data["bias"].toBool();
    const Tensor through = grads.size() > 1 ? grads[1] : Tensor();
    Tensor dx = through, dweight, dbias;
    if (grads[0].defined() && at::GradMode::is_enabled()) { // the gradients are differentiated in turn
      const double epsilon = data["epsilon"].toDouble();
      auto mean = kind == NormKind::layer ? h.mean(-1, true) : at::zeros_like(h.narrow(-1, 0, 1));
      auto root = kind == NormKind::simple ? simple_root(h) : Tensor();
      auto scale = root.defined() ? (root + epsilon).reciprocal() : ((h - mean).square().mean(-1, true) + epsilon).rsqrt();
      auto normalized = (h - mean) * scale, g = weight.defined() ? grads[0] * weight : grads[0];
      auto shift = kind == NormKind::layer ? g.mean(-1, true) : at::zeros_like(mean);
      auto share = (g * normalized).mean(-1, true);
      // Where all is zero, so is what is multiplied.
      if (root.defined()) share = share * (root + epsilon) / at::where(root == 0, at::ones_like(root), root);
      dx = (g - shift - normalized * share) * scale;
      if (through.defined()) dx = dx + through;
      if (weight.defined()) dweight = (grads[0] * normalized).reshape({-1, h.size(-1)}).sum(0);
      if (has_bias) dbias = grads[0].reshape({-1, h.size(-1)}).sum(0);
    } else if (grads[0].defined()) {
      auto dy = grads[0].contiguous(), dsum = through.defined() ? through.contiguous() : Tensor();
      dx = at::empty_like(h);
      AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norm", [&] {
        auto work = work_of<scalar_t>(kind, 0, h, weight);
        auto parts = at::empty({data["weights"].toBool() ? work.blocks() : 0, 2, work.columns}, h.options());
        work.dy = read<scalar_t>(dy);
        work.dsum = read<scalar_t>(dsum);
        work.center = saved[2].mutable_data_ptr<scalar_t>();
        work.scale = saved[3].mutable_data_ptr<scalar_t>();
        work.dx = dx.mutable_data_ptr<scalar_t>();
        work.parts = parts.size(0) ? parts.mutable_data_ptr<scalar_t>() : nullptr;
        for_each_task(work.blocks(), [&](int64_t task) { DISPATCH(norm_backward<scalar_t>, work, task); });
        if (!work.parts) return;
        auto sums = at::zeros({2, work.columns}, h.options());
        auto *to = sums.mutable_data_ptr<scalar_t>();
        for (int64_t block = 0; block < work.blocks(); ++block)
          for (int64_t n = 0; n < 2 * work.columns; ++n) to[n] += work.parts[block * 2 * work.columns + n];
        if (weight.defined()) dweight = sums.select(0, 0);
        if (has_bias) dbias = sums.select(0, 1);
      });
    }
    return {dx, added ? dx : Tensor(), dweight, dbias, Tensor(), Tensor()};
  }
};

Tensor composed(NormKind kind, double epsilon, const Tensor &x, const Tensor &weight, const Tensor &bias) {
  auto shape = x.dim() ? x.sizes().slice(x.dim() - 1) : x.sizes();
  if (kind == NormKind::simple) {
    auto y = x.numel() ? x / (simple_root(x) + epsilon) : x.clone();
    if (weight.defined()) y = y * weight;
    return bias.defined() ? y + bias : y;
  }
  return kind == NormKind::layer ? at::layer_norm(x, shape, weight, bias, epsilon) : at::rms_norm(x, shape, weight, epsilon);
}

using NormNode = torch::autograd::CppNode<Norm>;

/// The norm whose output a function has kept.
struct KeptNorm : torch::CustomClassHolder {
  std::decay_t<decltype(Tensor().grad_fn())> node;
};

bool serves(const Tensor &x, const Tensor &other) {
  return !other.defined() || (other.is_cpu() && other.scalar_type() == x.scalar_type());
}

OptionalTensor present(const Tensor &t) { return t.defined() ? OptionalTensor(t.contiguous()) : std::nullopt; }

/// y, and x + added.
std::pair<Tensor, Tensor> norm_of(NormKind kind, double epsilon, const Tensor &x, const Tensor &added, const Tensor &weight,
                                  const Tensor &bias) {
  const auto type = x.scalar_type();
  const bool ours = x.is_cpu() && (type == at::kFloat || type == at::kDouble) && x.numel() > 0 && x.dim() > 0 && serves(x, added) &&
                    serves(x, weight) && serves(x, bias) && (!added.defined() || added.sizes() == x.sizes()) &&
                    (!weight.defined() || weight.sizes() == x.sizes().slice(x.dim() - 1)) &&
                    (!bias.defined() || bias.sizes() == x.sizes().slice(x.dim() - 1));
  if (!ours) {
    auto sum = added.defined() ? x + added : x;
    return {composed(kind, epsilon, sum, weight, bias), sum};
  }
  auto rows = x.contiguous();
  const auto wants = [](const Tensor &t) { return t.defined() && t.requires_grad(); };
  if (at::GradMode::is_enabled() && (wants(x) || wants(added) || wants(weight) || wants(bias))) {
    auto found = Norm::apply(rows, present(added), present(weight), present(bias), static_cast<int64_t>(kind), epsilon);
    return {found[0], added.defined() ? found[1] : x};
  }
  auto contiguous = [](const Tensor &t) { return t.defined() ? t.contiguous() : t; };
  auto found = normalize(kind, epsilon, rows, contiguous(added), contiguous(weight), contiguous(bias));
  return {found.y, found.sum};
}

} // namespace

Tensor ctorch::keep_input(AutogradContext *context, const Tensor &x) {
  if (!dynamic_cast<NormNode *>(x.grad_fn().get()) || x.output_nr() != 0) return x;
  auto norm = c10::make_intrusive<KeptNorm>();
  norm->node = x.grad_fn();
  context->saved_data["norm"] = c10::IValue::make_capsule(std::move(norm));
  return Tensor();
}

Tensor ctorch::kept_input(AutogradContext *context, const Tensor &saved) {
  const auto found = context->saved_data.find("norm");
  if (found == context->saved_data.end()) return saved;
  auto &norm = static_cast<NormNode *>(static_cast<KeptNorm *>(found->second.toCapsule().get())->node.get())->ctx_;
  const auto kept = norm.get_saved_variables();
  const auto kind = static_cast<NormKind>(norm.saved_data["kind"].toInt());
  const double epsilon = norm.saved_data["epsilon"].toDouble();
  if (at::GradMode::is_enabled()) return composed(kind, epsilon, kept[0], kept[1], kept[4]);
  return normalize(kind, epsilon, kept[0], Tensor(), kept[1], kept[4]).y;
}

extern "C" ctorch_tensor ctorch_added_norm(ctorch_tensor x, ctorch_tensor added, ctorch_tensor weight, ctorch_tensor bias,
                                           int32_t kind, double epsilon, ctorch_tensor *sum, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto [y, h] = norm_of(static_cast<NormKind>(kind), epsilon, get(x), optional(added), optional(weight), optional(bias));
    if (sum) *sum = wrap(h);
    return y;
  });
}
