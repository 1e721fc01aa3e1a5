// The causal linear family as chunks of LibTorch's own products, for devices that the kernels in causal_linear.cpp do not
// serve; the equations are there. It divides by the sum of the weights or not at all.
#include "causal_linear.hpp"

#include <algorithm>
#include <cmath>

using namespace ctorch;
using at::Tensor;

namespace {

/// The constants of a chunk of up to `size` tokens. A shorter, last chunk takes the leading part of what counts from its
/// start, and the trailing part of what counts from its end.
struct ComposedWeights {
  double beta, gamma;
  bool momentum;     // false: plain linear attention, all weights one
  Tensor mask;       // [size, size] ones for c ≤ r
  Tensor weights;    // [size, size] W
  Tensor from_start; // [size, 1] b[r] = β (1 - β^(r+1)) / (1 - β)
  Tensor to_end;     // [size, 1] β (1 - β^(size-c)) / (1 - β), b seen from the end
  Tensor key_s;      // [size, 1] γ (1 - β^(size-c)) / (1 - β)
  Tensor key_p;      // [size, 1] β^(size-1-c)

  ComposedWeights(double beta, double gamma, int64_t size, const at::TensorOptions &options)
      : beta(beta), gamma(gamma), momentum(beta != 0 || gamma != 1) {
    mask = at::ones({size, size}, options).tril();
    if (!momentum) return;
    auto column = [&](auto value) {
      auto c = at::empty({size, 1}, at::kDouble);
      auto *p = c.template mutable_data_ptr<double>();
      for (int64_t r = 0; r < size; ++r) p[r] = value(r);
      return c.to(options);
    };
    auto w = at::zeros({size, size}, at::kDouble);
    auto *p = w.mutable_data_ptr<double>();
    for (int64_t r = 0; r < size; ++r)
      for (int64_t c = 0; c <= r; ++c) p[r * size + c] = gamma * geometric_sum(beta, r - c + 1);
    weights = w.to(options);
    from_start = column([&](int64_t r) { return beta * geometric_sum(beta, r + 1); });
    to_end = column([&](int64_t c) { return beta * geometric_sum(beta, size - c); });
    key_s = column([&](int64_t c) { return gamma * geometric_sum(beta, size - c); });
    key_p = column([&](int64_t c) { return std::pow(beta, static_cast<double>(size - 1 - c)); });
  }

  static Tensor head(const Tensor &t, int64_t n) { return t.narrow(0, 0, n); }
  static Tensor tail(const Tensor &t, int64_t n) { return t.narrow(0, t.size(0) - n, n); }
  static Tensor corner(const Tensor &t, int64_t n) { return t.narrow(0, 0, n).narrow(1, 0, n); }
};

/// s and p (undefined for linear attention) of all heads, [heads, F, M].
struct ComposedState {
  Tensor s, p;

  /// Takes up n tokens whose outer products are a_tᵀ b_t; `to_s` and `to_p` [n, 1] weigh them.
  void advance(const ComposedWeights &w, int64_t n, const Tensor &a, const Tensor &b, const Tensor &to_s, const Tensor &to_p) {
    auto rows = a.transpose(1, 2);
    if (!w.momentum) {
      s = at::baddbmm(s, rows, b);
      return;
    }
    s = at::baddbmm(s, rows, b * to_s).sub_(p, w.beta * geometric_sum(w.beta, n));
    p = at::baddbmm(p, rows, b * to_p, std::pow(w.beta, static_cast<double>(n)), -w.gamma);
  }

  /// x s - diag(b) x p, added to `sum`; `x` [heads, n, F]. With `transposed`, x has M columns and meets sᵀ and pᵀ.
  void add_past(const ComposedWeights &w, Tensor &sum, const Tensor &x, const Tensor &b, bool transposed) const {
    auto matrix = [&](const Tensor &t) { return transposed ? t.transpose(1, 2) : t; };
    sum.baddbmm_(x, matrix(s));
    if (w.momentum) sum.addcmul_(at::bmm(x, matrix(p)), b, -1);
  }
};

struct CausalLinear : torch::autograd::Function<CausalLinear> {
  /// q, k [heads, N, F], v [heads, N, M], contiguous. Returns out, and the last s, p, z.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &q, const Tensor &k,
                                                const Tensor &v, const Tensor &s0, const Tensor &p0, const Tensor &z0, double beta,
                                                double gamma, double epsilon, bool divides, int64_t chunk) {
    const int64_t length = q.size(1);
    ComposedWeights w(beta, gamma, std::min(chunk, length), q.options());
    ComposedState state{s0, p0};
    auto z = z0;
    auto out = at::empty_like(v);
    auto den = at::empty({q.size(0), length, 1}, q.options());
    const bool keep = q.requires_grad() || k.requires_grad() || v.requires_grad();
    torch::autograd::variable_list all_s, all_p, all_z;

    for (int64_t start = 0; start < length; start += chunk) {
      const int64_t n = std::min(chunk, length - start);
      auto qc = q.narrow(1, start, n), kc = k.narrow(1, start, n), vc = v.narrow(1, start, n);
      if (keep) {
        all_s.push_back(state.s);
        all_z.push_back(z);
        if (w.momentum) all_p.push_back(state.p);
      }
      auto a = at::bmm(qc, kc.transpose(1, 2)).mul_(w.corner(w.mask, n));
      auto d = a.sum(-1, true).add_(at::bmm(qc, z.unsqueeze(-1))).add_(epsilon);
      if (w.momentum) a.mul_(w.corner(w.weights, n));
      auto numerator = at::bmm(a, vc);
      state.add_past(w, numerator, qc, w.momentum ? w.head(w.from_start, n) : Tensor(), false);
      auto target = out.narrow(1, start, n);
      if (divides) at::div_out(target, numerator, d);
      else target.copy_(numerator);
      den.narrow(1, start, n).copy_(d);
      state.advance(w, n, kc, vc, w.momentum ? w.tail(w.key_s, n) : Tensor(), w.momentum ? w.tail(w.key_p, n) : Tensor());
      z = z + kc.sum(1);
    }

    if (keep) {
      context->save_for_backward({q, k, v, out, den, at::stack(all_s), w.momentum ? at::stack(all_p) : Tensor(), at::stack(all_z)});
      context->saved_data["beta"] = beta;
      context->saved_data["gamma"] = gamma;
      context->saved_data["divides"] = divides;
      context->saved_data["chunk"] = chunk;
    }
    torch::autograd::variable_list result{out, state.s, w.momentum ? state.p : at::zeros_like(state.s), z};
    context->mark_non_differentiable({result[1], result[2], result[3]});
    return result;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "causal linear attention cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &den = saved[4], &all_s = saved[5], &all_p = saved[6],
         &all_z = saved[7];
    const double beta = context->saved_data["beta"].toDouble(), gamma = context->saved_data["gamma"].toDouble();
    const int64_t chunk = context->saved_data["chunk"].toInt(), length = q.size(1);
    ComposedWeights w(beta, gamma, std::min(chunk, length), q.options());

    // Cotangents of numerator and denominator (spec of the paper's eq. 13-15, completed): g = c / den, e = -(c · out) / den.
    auto cotangent = grads[0].contiguous();
    const bool divides = context->saved_data["divides"].toBool();
    auto g = divides ? cotangent / den : cotangent;
    auto e = divides ? (g * out).sum(-1, true).neg_() : at::zeros_like(den);
    auto dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);

    auto zeros = at::zeros({q.size(0), q.size(2), v.size(2)}, q.options());
    ComposedState later{zeros, w.momentum ? zeros : Tensor()};
    auto later_z = at::zeros_like(all_z[0]);

    const int64_t chunks = (length + chunk - 1) / chunk;
    for (int64_t index = chunks - 1; index >= 0; --index) {
      const int64_t start = index * chunk, n = std::min(chunk, length - start);
      auto qc = q.narrow(1, start, n), kc = k.narrow(1, start, n), vc = v.narrow(1, start, n);
      auto gc = g.narrow(1, start, n), ec = e.narrow(1, start, n);
      ComposedState before{all_s[index], w.momentum ? all_p[index] : Tensor()};
      auto mask = w.corner(w.mask, n);
      auto weights = w.momentum ? w.corner(w.weights, n) : mask;
      auto from_start = w.momentum ? w.head(w.from_start, n) : Tensor(), to_end = w.momentum ? w.tail(w.to_end, n) : Tensor();

      auto d = at::bmm(gc, vc.transpose(1, 2)).mul_(weights).addcmul_(ec, mask); // cotangent of A
      auto dqc = at::bmm(d, kc).addcmul_(ec, all_z[index].unsqueeze(1));
      before.add_past(w, dqc, gc, from_start, true);
      dq.narrow(1, start, n).copy_(dqc);

      auto dkc = at::bmm(d.transpose(1, 2), qc).add_(later_z.unsqueeze(1));
      later.add_past(w, dkc, vc, to_end, true);
      dk.narrow(1, start, n).copy_(dkc);

      auto a = at::bmm(qc, kc.transpose(1, 2)).mul_(weights);
      auto dvc = at::bmm(a.transpose(1, 2), gc);
      later.add_past(w, dvc, kc, to_end, false);
      dv.narrow(1, start, n).copy_(dvc);

      // Seen from the end, token r of the chunk is the (r+1)-th last: γ(1-β^(r+1))/(1-β) = γ b[r] / β, and β^r.
      Tensor to_s, to_p;
      if (w.momentum) {
        to_s = w.weights.narrow(1, 0, 1).narrow(0, 0, n);
        to_p = w.tail(w.key_p, n).flip(0);
      }
      later.advance(w, n, qc, gc, to_s, to_p);
      later_z = later_z + at::bmm(qc.transpose(1, 2), ec).squeeze(-1);
    }
    return {dq, dk, dv, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor mapped(FeatureMap map, const Tensor &x) {
  switch (map) {
  case FeatureMap::elu: return at::elu(x);
  case FeatureMap::elu_plus_one: return at::elu(x) + 1;
  case FeatureMap::relu: return at::relu(x);
  case FeatureMap::sigmoid: return at::sigmoid(x);
  case FeatureMap::silu: return at::silu(x);
  case FeatureMap::exponential: return at::exp(x);
  default: return x;
  }
}

} // namespace

std::pair<Tensor, Tensor> ctorch::composed_causal_linear(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &mask,
                                                         const Tensor &initial, const LinearSettings &settings) {
  constexpr int64_t chunk = 128;
  const int64_t batch = q.size(0), heads = q.size(1), features = q.size(3), values = v.size(3);
  auto joined = [&](const Tensor &t) { return t.flatten(0, 1).contiguous(); };
  auto phi_k = mapped(settings.map, k);
  if (mask.defined()) phi_k = phi_k.masked_fill(mask.logical_not().unsqueeze(1).unsqueeze(-1), 0);
  auto matrix = [&](int64_t index) {
    return initial.narrow(1, index * features * values, features * values).reshape({batch * heads, features, values});
  };
  const bool momentum = settings.momentum();
  auto result = CausalLinear::apply(
      joined(mapped(settings.map, q)), joined(phi_k), joined(v), matrix(0), momentum ? matrix(1) : Tensor(),
      initial.narrow(1, initial.size(1) - features, features), settings.beta, settings.gamma,
      settings.normalization == LinearNormalization::sum ? settings.epsilon : 0.0,
      settings.normalization == LinearNormalization::sum, chunk);
  std::vector<Tensor> states{result[1].flatten(1)};
  if (momentum) states.push_back(result[2].flatten(1));
  states.push_back(result[3]);
  auto out = result[0].reshape({batch, heads, q.size(2), values});
  if (settings.normalization == LinearNormalization::root_mean_square)
    out = out / (out.square().mean(-1, true).sqrt() + settings.epsilon);
  return {out, at::cat(states, 1).detach()};
}
