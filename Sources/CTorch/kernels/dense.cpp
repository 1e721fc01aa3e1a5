// Linear layers, and the feed-forward layer y = residual + f(x Uᵀ + b) Dᵀ + c, with their gradients:
//   Y = X Wᵀ + b      dX = G W,  dW = Gᵀ X,  db = Σ G  (summed while Gᵀ is packed)
//   feed-forward      dU = (G D) ∘ f'(u), and f(u) again, as that product is finished; only u is kept from the forward pass
// Several weights with one X share the sum of their dX. An X that a norm made is not kept but made again.
#include "dense.hpp"
#include "isa.hpp"
#include "normalization.hpp"

using namespace ctorch;
using namespace ctorch::dense;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

variable_list ctorch::dense::composed_gradients(const Tensor &g, const Tensor &x, const Tensor &weight) {
  auto rows = g.reshape({-1, g.size(-1)});
  return {at::matmul(g, weight), at::mm(rows.t(), x.reshape({-1, x.size(-1)})), rows.sum(0)};
}

Tensor ctorch::dense::composed(Nonlinearity kind, const Tensor &x) {
  switch (kind) {
  case Nonlinearity::relu: return at::relu(x);
  case Nonlinearity::gelu: return at::gelu(x);
  case Nonlinearity::gelu_tanh: return at::gelu(x, "tanh");
  case Nonlinearity::silu: return at::silu(x);
  case Nonlinearity::sigmoid: return at::sigmoid(x);
  default: return x;
  }
}

Tensor ctorch::dense::composed_slope(Nonlinearity kind, const Tensor &g, const Tensor &x) {
  switch (kind) {
  case Nonlinearity::relu: return at::where(x > 0, g, 0);
  case Nonlinearity::gelu: return at::gelu_backward(g, x);
  case Nonlinearity::gelu_tanh: return at::gelu_backward(g, x, "tanh");
  case Nonlinearity::silu: {
    auto s = at::sigmoid(x);
    return g * s * (1 + x * (1 - s));
  }
  case Nonlinearity::sigmoid: {
    auto s = at::sigmoid(x);
    return g * s * (1 - s);
  }
  default: return g;
  }
}

bool ctorch::dense::serves(const Tensor &x, const Tensor &weight, const Tensor &bias) {
  const auto type = x.scalar_type();
  const bool fits = x.is_cpu() && weight.is_cpu() && x.dim() > 0 && weight.dim() == 2 && x.size(-1) == weight.size(1) &&
                    (type == at::kFloat || type == at::kDouble) && weight.scalar_type() == type && x.layout() == at::kStrided &&
                    x.numel() > 0 && weight.numel() > 0 &&
                    (!bias.defined() ||
                     (bias.is_cpu() && bias.scalar_type() == type && bias.sizes() == at::IntArrayRef({weight.size(0)})));
  if (!fits || forced_isa() != unforced) return fits;
  return type == at::kFloat && products_are_faster(rows_of(x), weight.size(0), weight.size(1));
}

bool ctorch::dense::serves(const Tensor &x, const Tensor &up, const Tensor &up_bias, const Tensor &down, const Tensor &down_bias,
                           const Tensor &residual) {
  const auto type = x.scalar_type();
  return serves(x, up, up_bias) && down.dim() == 2 && down.size(1) == up.size(0) && down.is_cpu() && down.scalar_type() == type &&
         down.numel() > 0 &&
         (!down_bias.defined() || (down_bias.is_cpu() && down_bias.scalar_type() == type &&
                                   down_bias.sizes() == at::IntArrayRef({down.size(0)}))) &&
         (!residual.defined() || (residual.scalar_type() == type && residual.is_cpu() && residual.dim() == x.dim() &&
                                  residual.sizes().slice(0, x.dim() - 1) == x.sizes().slice(0, x.dim() - 1) &&
                                  residual.size(-1) == down.size(0)));
}

bool ctorch::dense::any_gradient(std::initializer_list<const Tensor *> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const auto *t : tensors)
    if (t->defined() && t->requires_grad()) return true;
  return false;
}

namespace {

struct Projections : torch::autograd::Function<Projections> {
  static variable_list forward(AutogradContext *context, const Tensor &x, const Tensor &w0, const OptionalTensor &b0,
                               const OptionalTensor &w1, const OptionalTensor &b1, const OptionalTensor &w2,
                               const OptionalTensor &b2) {
    const OptionalTensor weights[] = {w0, w1, w2}, biases[] = {b0, b1, b2};
    variable_list outputs, saved{keep_input(context, x)};
    int64_t wanted = x.requires_grad() ? 1 : 0, bit = 2;
    for (int i = 0; i < 3; ++i, bit *= 4) {
      auto weight = defined(weights[i]), bias = defined(biases[i]);
      saved.push_back(weight);
      wanted |= (wants(weights[i]) ? bit : 0) | (wants(biases[i]) ? 2 * bit : 0);
      if (!weight.defined()) continue;
      outputs.push_back(like_with_columns(x, weight.size(0)));
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear",
                                 [&] { product(forward_work<scalar_t>(x, weight, bias, outputs.back())); });
    }
    context->save_for_backward(saved);
    context->saved_data["wanted"] = wanted;
    return outputs;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto x = kept_input(context, saved[0]);
    const int64_t wanted = context->saved_data["wanted"].toInt();
    variable_list results(7);
    auto &dx = results[0];
    for (size_t i = 0; i < grads.size(); ++i) {
      const auto &weight = saved[i + 1];
      const bool wants_weight = wanted >> (2 * i + 1) & 1, wants_bias = wanted >> (2 * i + 2) & 1;
      auto &dw = results[2 * i + 1], &db = results[2 * i + 2];
      if (!grads[i].defined()) continue;
      if (at::GradMode::is_enabled()) { // the gradients are differentiated in turn
        auto found = composed_gradients(grads[i], x, weight);
        if (wanted & 1) dx = dx.defined() ? dx + found[0] : found[0];
        if (wants_weight) dw = found[1];
        if (wants_bias) db = found[2];
        continue;
      }
      auto g = grads[i].contiguous();
      const bool first = !dx.defined();
      if (wanted & 1 && first) dx = at::empty_like(x);
      if (wants_weight) dw = at::empty_like(weight);
      if (wants_bias) db = at::empty({weight.size(0)}, x.options());
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear", [&] {
        if (wanted & 1) {
          auto work = input_gradient_work<scalar_t>(g, weight, dx);
          work.accumulate = !first;
          product(work);
        }
        weight_gradients<scalar_t>(g, x, dw, db);
      });
    }
    return results;
  }
};

/// residual + f(x upᵀ + up_bias) downᵀ + down_bias; u, if it is defined, becomes x upᵀ + up_bias.
Tensor feed(const Tensor &x, const Tensor &up, const Tensor &up_bias, const Tensor &down, const Tensor &down_bias,
            const Tensor &residual, Nonlinearity kind, const Tensor &u) {
  auto y = like_with_columns(x, down.size(0));
  for_each_rows(x, up.size(0), [&](int64_t first, int64_t count) {
    auto hidden = at::empty({count, up.size(0)}, x.options()), above = rows_from(x, first, count), to = rows_from(y, first, count);
    auto before = u.defined() ? rows_from(u, first, count) : at::empty_like(hidden), added = rows_from(residual, first, count);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "feed-forward", [&] {
      auto work = forward_work<scalar_t>(above, up, up_bias, before);
      work.nonlinearity = kind;
      work.activated = write<scalar_t>(hidden);
      product(work);
      auto second = forward_work<scalar_t>(hidden, down, down_bias, to);
      second.added = read<scalar_t>(added);
      product(second);
    });
  });
  return y;
}

struct FeedForward : torch::autograd::Function<FeedForward> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &up, const OptionalTensor &up_bias,
                        const Tensor &down, const OptionalTensor &down_bias, const OptionalTensor &residual, int64_t kind) {
    auto u = like_with_columns(x, up.size(0)); // no output: kept as it is, it owns nothing of the graph
    auto y = feed(x, up, defined(up_bias), down, defined(down_bias), defined(residual), static_cast<Nonlinearity>(kind), u);
    context->save_for_backward({keep_input(context, x), up, defined(up_bias), down, u});
    context->saved_data["kind"] = kind;
    int64_t wanted = x.requires_grad() | up.requires_grad() << 1 | wants(up_bias) << 2 | down.requires_grad() << 3;
    context->saved_data["wanted"] = wanted | wants(down_bias) << 4 | wants(residual) << 5;
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto x = kept_input(context, saved[0]);
    const auto &up = saved[1], &up_bias = saved[2], &down = saved[3], &u = saved[4];
    const auto kind = static_cast<Nonlinearity>(context->saved_data["kind"].toInt());
    const int64_t wanted = context->saved_data["wanted"].toInt();
    variable_list results(7);
    if (!grads[0].defined()) return results;
    if (at::GradMode::is_enabled()) {
      auto again = at::linear(x, up, up_bias);
      auto below = composed_gradients(grads[0], composed(kind, again), down);
      auto above = composed_gradients(composed_slope(kind, below[0], again), x, up);
      variable_list all{above[0], above[1], above[2], below[1], below[2], grads[0]};
      for (size_t i = 0; i < all.size(); ++i)
        if (wanted >> i & 1) results[i] = all[i];
      return results;
    }
    auto g = grads[0].contiguous();
    auto make = [&](int i, at::IntArrayRef sizes) { return wanted >> i & 1 ? at::empty(sizes, x.options()) : Tensor(); };
    auto dx = make(0, x.sizes()), d_up = make(1, up.sizes()), d_up_bias = make(2, {up.size(0)}), d_down = make(3, down.sizes()),
         d_down_bias = make(4, {down.size(0)});
    for_each_rows(x, up.size(0), [&](int64_t first, int64_t count) {
      auto du = at::empty({count, up.size(0)}, x.options()), hidden = at::empty_like(du), to = rows_from(dx, first, count);
      auto above = rows_from(x, first, count), before = rows_from(u, first, count), from = rows_from(g, first, count);
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "feed-forward", [&] {
        auto work = input_gradient_work<scalar_t>(from, down, du);
        work.nonlinearity = kind;
        work.activation_input = read<scalar_t>(before);
        work.activated = write<scalar_t>(hidden);
        product(work);
        weight_gradients<scalar_t>(from, hidden, d_down, d_down_bias, first > 0);
        weight_gradients<scalar_t>(du, above, d_up, d_up_bias, first > 0);
        if (to.defined()) product(input_gradient_work<scalar_t>(du, up, to));
      });
    });
    return {dx, d_up, d_up_bias, d_down, d_down_bias, wanted >> 5 & 1 ? grads[0] : Tensor(), Tensor()};
  }
};

} // namespace

variable_list ctorch::project(const Tensor &x, const std::vector<Tensor> &weights, const std::vector<Tensor> &biases) {
  const size_t count = weights.size();
  TORCH_CHECK(count >= 1 && count <= 3 && biases.size() == count, "projections takes one to three weights");
  bool ours = true, has_gradient = false;
  for (size_t i = 0; i < count; ++i) {
    ours = ours && serves(x, weights[i], biases[i]);
    has_gradient = has_gradient || any_gradient({&x, &weights[i], &biases[i]});
  }
  variable_list results;
  if (!ours) {
    for (size_t i = 0; i < count; ++i) results.push_back(at::linear(x, weights[i], biases[i]));
    return results;
  }
  auto rows = x.contiguous();
  if (has_gradient) {
    OptionalTensor w[3], b[3];
    for (size_t i = 0; i < count; ++i) w[i] = present(weights[i]), b[i] = present(biases[i]);
    return Projections::apply(rows, *w[0], b[0], w[1], b[1], w[2], b[2]);
  }
  for (size_t i = 0; i < count; ++i) {
    results.push_back(like_with_columns(rows, weights[i].size(0)));
    auto weight = weights[i].contiguous(), bias = biases[i].defined() ? biases[i].contiguous() : Tensor();
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear",
                               [&] { product(forward_work<scalar_t>(rows, weight, bias, results.back())); });
  }
  return results;
}

extern "C" {

ctorch_tensor ctorch_linear(ctorch_tensor x, ctorch_tensor weight, ctorch_tensor bias, ctorch_error *error) {
  return guarded_tensor(error, [&] { return project(get(x), {get(weight)}, {optional(bias)})[0]; });
}

ctorch_tensor ctorch_projections(ctorch_tensor x, const ctorch_tensor *weights, const ctorch_tensor *biases, size_t count,
                                 ctorch_tensor *others, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto results = project(get(x), list(weights, count), list(biases, count));
    for (size_t i = 1; i < count; ++i) others[i - 1] = wrap(results[i]);
    return results[0];
  });
}

ctorch_tensor ctorch_feed_forward(ctorch_tensor x, ctorch_tensor up, ctorch_tensor up_bias, ctorch_tensor down,
                                  ctorch_tensor down_bias, ctorch_tensor residual, int32_t nonlinearity, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tx = get(x), &wu = get(up), &wd = get(down);
    auto bu = optional(up_bias), bd = optional(down_bias), added = optional(residual);
    const auto kind = static_cast<Nonlinearity>(nonlinearity);
    if (!serves(tx, wu, bu, wd, bd, added)) {
      auto y = project(composed(kind, project(tx, {wu}, {bu})[0]), {wd}, {bd})[0];
      return added.defined() ? added + y : y;
    }
    auto rows = tx.contiguous();
    auto other = added.defined() ? added.contiguous() : Tensor();
    if (any_gradient({&tx, &wu, &bu, &wd, &bd, &added}))
      return FeedForward::apply(rows, wu.contiguous(), present(bu), wd.contiguous(), present(bd), present(other),
                                static_cast<int64_t>(kind));
    return feed(rows, wu.contiguous(), contiguous(bu), wd.contiguous(), contiguous(bd), other, kind, Tensor());
  });
}

} // extern "C"
