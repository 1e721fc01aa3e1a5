// The gated feed-forward layer (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202, eq. 5 and 6), with its
// gradients:
//   u = x Gᵀ + g,  v = x Uᵀ + b,  h = f(u) ∘ v,  y = residual + h Dᵀ + c
//   dh = dy D,  dv = dh ∘ f(u),  du = dh ∘ v ∘ f'(u),  dx = dv U + du G, and of each weight the sum of outer products, dense.cpp
//
// Only u and v are kept for the backward pass. All rows are alike and go through in blocks, so that h and what the backward pass
// makes of it are never more than a block, and meet the caches between the products.
#include "dense.hpp"
#include "gates.hpp"

using namespace ctorch;
using namespace ctorch::dense;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

/// Large enough that packing the weights again for each block does not count.
constexpr int64_t rows_at_once = 1024;

/// Rows of all blocks but the last.
int64_t block_of(int64_t rows) {
  const int64_t blocks = (rows + rows_at_once - 1) / rows_at_once;
  return (rows + blocks - 1) / blocks;
}

struct GatedWeights {
  Tensor gate, gate_bias, up, up_bias, down, down_bias;
  Nonlinearity nonlinearity;
};

Tensor as_rows(const Tensor &t) { return t.defined() ? t.view({-1, t.size(-1)}) : t; }
Tensor part(const Tensor &t, int64_t row, int64_t rows) { return t.defined() ? t.narrow(0, row, rows) : t; }

template <typename T> GatedProductWork<T> gate_work(Nonlinearity nonlinearity, const Tensor &u, const Tensor &v, const Tensor &h) {
  GatedProductWork<T> work{};
  work.count = u.numel();
  work.nonlinearity = nonlinearity;
  work.gate = read<T>(u), work.value = read<T>(v), work.out = write<T>(h);
  return work;
}

struct GatedOutput {
  Tensor u, v, y; // u and v [rows, hidden], or of the last block only
};

GatedOutput feed(const Tensor &x, const GatedWeights &weights, const Tensor &residual, bool keep) {
  const int64_t rows = rows_of(x), block = block_of(rows), hidden = weights.up.size(0);
  GatedOutput out{at::empty({keep ? rows : block, hidden}, x.options()), {}, like_with_columns(x, weights.down.size(0))};
  out.v = at::empty_like(out.u);
  auto h = at::empty({block, hidden}, x.options());
  const auto inputs = as_rows(x), added = as_rows(residual), outputs = as_rows(out.y);
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t count = std::min(block, rows - row), kept_row = keep ? row : 0;
    const auto x_part = part(inputs, row, count), h_part = part(h, 0, count);
    const auto u = part(out.u, kept_row, count), v = part(out.v, kept_row, count);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated feed-forward", [&] {
      product(forward_work<scalar_t>(x_part, weights.gate, weights.gate_bias, u));
      product(forward_work<scalar_t>(x_part, weights.up, weights.up_bias, v));
      gated_product(gate_work<scalar_t>(weights.nonlinearity, u, v, h_part));
      auto down = forward_work<scalar_t>(h_part, weights.down, weights.down_bias, part(outputs, row, count));
      down.added = read<scalar_t>(part(added, row, count));
      product(down);
    });
  }
  return out;
}

struct GatedFeedForward : torch::autograd::Function<GatedFeedForward> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &gate, const OptionalTensor &gate_bias,
                        const Tensor &up, const OptionalTensor &up_bias, const Tensor &down, const OptionalTensor &down_bias,
                        const OptionalTensor &residual, int64_t nonlinearity) {
    const GatedWeights weights{gate, defined(gate_bias), up, defined(up_bias), down, defined(down_bias),
                               static_cast<Nonlinearity>(nonlinearity)};
    auto [u, v, y] = feed(x, weights, defined(residual), true);
    // u and v are no outputs: kept as they are, they own nothing of the graph.
    context->save_for_backward({x, gate, weights.gate_bias, up, weights.up_bias, down, u, v});
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
    if (at::GradMode::is_enabled()) { // the gradients are differentiated in turn
      auto all = composed(grads[0], saved[0], weights);
      for (size_t i = 0; i < all.size(); ++i)
        if (!(wanted >> i & 1)) all[i] = Tensor();
      return all;
    }
    return by_blocks(grads[0], saved[0], weights, saved[6], saved[7], wanted);
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

  static variable_list by_blocks(const Tensor &g, const Tensor &x, const GatedWeights &weights, const Tensor &u, const Tensor &v,
                                 int64_t wanted) {
    const int64_t rows = rows_of(x), block = block_of(rows), hidden = weights.up.size(0), outputs = weights.down.size(0);
    auto make = [&](int i, at::IntArrayRef sizes) { return wanted >> i & 1 ? at::empty(sizes, x.options()) : Tensor(); };
    auto dx = make(0, x.sizes()), d_gate = make(1, weights.gate.sizes()), d_gate_bias = make(2, {hidden}),
         d_up = make(3, weights.up.sizes()), d_up_bias = make(4, {hidden}), d_down = make(5, weights.down.sizes()),
         d_down_bias = make(6, {outputs});
    auto h = make(5, {block, hidden}), du = at::empty({block, hidden}, x.options()), dv = at::empty_like(du);
    const auto all_g = as_rows(g.contiguous()), all_x = as_rows(x), all_dx = as_rows(dx);
    for (int64_t row = 0; row < rows; row += block) {
      const int64_t count = std::min(block, rows - row);
      const auto dy = part(all_g, row, count), x_part = part(all_x, row, count), dx_part = part(all_dx, row, count);
      const auto h_part = part(h, 0, count), du_part = part(du, 0, count), dv_part = part(dv, 0, count);
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated feed-forward", [&] {
        product(input_gradient_work<scalar_t>(dy, weights.down, dv_part)); // dh, of which dv takes the place
        auto gates = gate_work<scalar_t>(weights.nonlinearity, part(u, row, count), part(v, row, count), h_part);
        gates.cotangent = read<scalar_t>(dv_part);
        gates.of_gate = write<scalar_t>(du_part), gates.of_value = write<scalar_t>(dv_part);
        gated_product_back(gates);
        weight_gradients<scalar_t>(dy, h_part, d_down, d_down_bias, row > 0);
        weight_gradients<scalar_t>(du_part, x_part, d_gate, d_gate_bias, row > 0);
        weight_gradients<scalar_t>(dv_part, x_part, d_up, d_up_bias, row > 0);
        if (!dx.defined()) return;
        product(input_gradient_work<scalar_t>(dv_part, weights.up, dx_part));
        auto through_gate = input_gradient_work<scalar_t>(du_part, weights.gate, dx_part);
        through_gate.accumulate = true;
        product(through_gate);
      });
    }
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
    return feed(rows, weights, contiguous(added), false).y;
  });
}
