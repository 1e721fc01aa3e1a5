// The gated feed-forward layer (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202, eq. 5 and 6), with its
// gradients:
//   u = x Gᵀ + g,  v = x Uᵀ + b,  h = f(u) ∘ v,  y = residual + h Dᵀ + c
//   dh = dy D,  dv = dh ∘ f(u),  du = dh ∘ v ∘ f'(u),  dx = dv U + du G, and of each weight the sum of outer products, dense.cpp
//
// Only u and v are kept for the backward pass. Rows go through in ranges, so that h and what the backward pass makes of it never
// exist for all of them.
#include "dense.hpp"
#include "gates.hpp"
#include "normalization.hpp"

using namespace ctorch;
using namespace ctorch::dense;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

struct GatedWeights {
  Tensor gate, gate_bias, up, up_bias, down, down_bias;
  Nonlinearity nonlinearity;
};

template <typename T> GatedProductWork<T> gate_work(Nonlinearity nonlinearity, const Tensor &u, const Tensor &v, const Tensor &h) {
  GatedProductWork<T> work{};
  work.count = u.numel();
  work.nonlinearity = nonlinearity;
  work.gate = read<T>(u), work.value = read<T>(v), work.out = write<T>(h);
  return work;
}

/// y; u and v, if they are defined, are filled in.
Tensor feed(const Tensor &x, const GatedWeights &weights, const Tensor &residual, const Tensor &all_u, const Tensor &all_v) {
  const int64_t hidden = weights.up.size(0);
  auto y = like_with_columns(x, weights.down.size(0));
  for_each_rows(x, hidden, [&](int64_t first, int64_t count) {
    auto h = at::empty({count, hidden}, x.options());
    auto u = all_u.defined() ? rows_from(all_u, first, count) : at::empty_like(h);
    auto v = all_v.defined() ? rows_from(all_v, first, count) : at::empty_like(h);
    const auto input = rows_from(x, first, count), added = rows_from(residual, first, count), output = rows_from(y, first, count);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated feed-forward", [&] {
      product(forward_work<scalar_t>(input, weights.gate, weights.gate_bias, u));
      product(forward_work<scalar_t>(input, weights.up, weights.up_bias, v));
      gated_product(gate_work<scalar_t>(weights.nonlinearity, u, v, h));
      auto down = forward_work<scalar_t>(h, weights.down, weights.down_bias, output);
      down.added = read<scalar_t>(added);
      product(down);
    });
  });
  return y;
}

struct GatedFeedForward : torch::autograd::Function<GatedFeedForward> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &gate, const OptionalTensor &gate_bias,
                        const Tensor &up, const OptionalTensor &up_bias, const Tensor &down, const OptionalTensor &down_bias,
                        const OptionalTensor &residual, int64_t nonlinearity) {
    const GatedWeights weights{gate, defined(gate_bias), up, defined(up_bias), down, defined(down_bias),
                               static_cast<Nonlinearity>(nonlinearity)};
    // No outputs: kept as they are, they own nothing of the graph.
    auto u = like_with_columns(x, up.size(0)), v = at::empty_like(u);
    auto y = feed(x, weights, defined(residual), u, v);
    context->save_for_backward({keep_input(context, x), gate, weights.gate_bias, up, weights.up_bias, down, u, v});
    context->saved_data["nonlinearity"] = nonlinearity;
    int64_t wanted = x.requires_grad() | gate.requires_grad() << 1 | wants(gate_bias) << 2 | up.requires_grad() << 3;
    wanted |= wants(up_bias) << 4 | down.requires_grad() << 5 | wants(down_bias) << 6 | wants(residual) << 7;
    context->saved_data["wanted"] = wanted;
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    auto saved = context->get_saved_variables();
    const GatedWeights weights{saved[1], saved[2], saved[3], saved[4], saved[5], Tensor(),
                               static_cast<Nonlinearity>(context->saved_data["nonlinearity"].toInt())};
    const int64_t wanted = context->saved_data["wanted"].toInt();
    if (!grads[0].defined()) return variable_list(9);
    const auto x = kept_input(context, saved[0]);
    if (at::GradMode::is_enabled()) { // the gradients are differentiated in turn
      auto all = composed(grads[0], x, weights);
      for (size_t i = 0; i < all.size(); ++i)
        if (!(wanted >> i & 1)) all[i] = Tensor();
      return all;
    }
    return by_ranges(grads[0].contiguous(), x, weights, saved[6], saved[7], wanted);
  }

  static variable_list composed(const Tensor &g, const Tensor &x, const GatedWeights &weights) {
    const auto kind = weights.nonlinearity;
    auto u = at::linear(x, weights.gate, weights.gate_bias), v = at::linear(x, weights.up, weights.up_bias);
    auto open = dense::composed(kind, u);
    auto below = composed_gradients(g, open * v, weights.down);
    auto through_gate = composed_gradients(composed_slope(kind, below[0] * v, u), x, weights.gate);
    auto through_up = composed_gradients(below[0] * open, x, weights.up);
    return {through_gate[0] + through_up[0], through_gate[1], through_gate[2], through_up[1], through_up[2],
            below[1], below[2], g, Tensor()};
  }

  static variable_list by_ranges(const Tensor &g, const Tensor &x, const GatedWeights &weights, const Tensor &u, const Tensor &v,
                                 int64_t wanted) {
    const int64_t hidden = weights.up.size(0);
    auto make = [&](int i, at::IntArrayRef sizes) { return wanted >> i & 1 ? at::empty(sizes, x.options()) : Tensor(); };
    auto dx = make(0, x.sizes()), d_gate = make(1, weights.gate.sizes()), d_gate_bias = make(2, {hidden}),
         d_up = make(3, weights.up.sizes()), d_up_bias = make(4, {hidden}), d_down = make(5, weights.down.sizes()),
         d_down_bias = make(6, {weights.down.size(0)});
    for_each_rows(x, hidden, [&](int64_t first, int64_t count) {
      auto h = make(5, {count, hidden}), du = at::empty({count, hidden}, x.options()), dv = at::empty_like(du);
      const auto dy = rows_from(g, first, count), input = rows_from(x, first, count), to = rows_from(dx, first, count);
      const bool adds = first > 0;
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated feed-forward", [&] {
        product(input_gradient_work<scalar_t>(dy, weights.down, dv)); // dh, of which dv takes the place
        auto gates = gate_work<scalar_t>(weights.nonlinearity, rows_from(u, first, count), rows_from(v, first, count), h);
        gates.cotangent = read<scalar_t>(dv);
        gates.of_gate = write<scalar_t>(du), gates.of_value = write<scalar_t>(dv);
        gated_product_back(gates);
        weight_gradients<scalar_t>(dy, h, d_down, d_down_bias, adds);
        weight_gradients<scalar_t>(du, input, d_gate, d_gate_bias, adds);
        weight_gradients<scalar_t>(dv, input, d_up, d_up_bias, adds);
        if (!to.defined()) return;
        product(input_gradient_work<scalar_t>(dv, weights.up, to));
        auto through_gate = input_gradient_work<scalar_t>(du, weights.gate, to);
        through_gate.accumulate = true;
        product(through_gate);
      });
    });
    return {dx, d_gate, d_gate_bias, d_up, d_up_bias, d_down, d_down_bias, wanted >> 7 & 1 ? g : Tensor(), Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_gated_feed_forward(ctorch_tensor x, ctorch_tensor gate, ctorch_tensor gate_bias, ctorch_tensor up,
                                                   ctorch_tensor up_bias, ctorch_tensor down, ctorch_tensor down_bias,
                                                   ctorch_tensor residual, int32_t nonlinearity, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tx = get(x), &wg = get(gate), &wu = get(up), &wd = get(down);
    auto bg = optional(gate_bias), bu = optional(up_bias), bd = optional(down_bias), added = optional(residual);
    const auto kind = static_cast<Nonlinearity>(nonlinearity);
    if (!serves(tx, wg, bg) || !serves(tx, wu, bu, wd, bd, added) || wg.size(0) != wu.size(0)) {
      auto both = project(tx, {wg, wu}, {bg, bu});
      auto y = project(composed(kind, both[0]) * both[1], {wd}, {bd})[0];
      return added.defined() ? added + y : y;
    }
    auto rows = tx.contiguous();
    if (any_gradient({&tx, &wg, &bg, &wu, &bu, &wd, &bd, &added}))
      return GatedFeedForward::apply(rows, wg.contiguous(), present(bg), wu.contiguous(), present(bu), wd.contiguous(), present(bd),
                                     present(added), static_cast<int64_t>(kind));
    const GatedWeights weights{wg.contiguous(), contiguous(bg), wu.contiguous(), contiguous(bu),
                               wd.contiguous(), contiguous(bd), kind};
    return feed(rows, weights, contiguous(added), Tensor(), Tensor());
  });
}
