// Momentum attention whose momentum is found at each step (Nguyen et al. 2022, arXiv 2208.00579), token by token:
//   u_i = φk_i v_iᵀ,  β_i = min((1 - √(γ |u_i - u_{i-1}| / |p_{i-1}|))², maximum),  p_i = β_i p_{i-1} - γ u_i,
//   s_i = s_{i-1} - p_i,  z_i = z_{i-1} + φk_i,  out_i = φq_i s_i / (φq_i · z_i + ε)
// with Frobenius norms of a head. Nothing can be done for several tokens at once, as β_i hangs on p_{i-1}: a head is a task,
// its state stays in the caches. Forward keeps the state before each 64 tokens; backward goes through them again.
#include "adaptive_momentum.hpp"
#include "empty_result.hpp"
#include "CTorch.h"

#define KERNELS "adaptive_momentum.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops.
namespace ctorch::reference {
namespace {

/// All that one step leaves behind.
template <typename T> struct Step {
  int64_t token;
  std::vector<T> s, p, u, z, u_before, p_before;
  AdaptiveMomentum<T> momentum;
};

/// A head's real tokens, one after the other, from the state given, which becomes that after the last.
template <typename T> std::vector<Step<T>> steps(const AdaptiveWork<T> &work, int64_t head, T *state) {
  const auto &l = work.layout;
  std::vector<Step<T>> all;
  for (int64_t i = 0; i < work.length; ++i) {
    if (!work.real(head, i)) continue;
    const T *k = work.k.head(head) + i * work.k.row, *v = work.v.head(head) + i * work.v.row;
    T change = 0, distance = 0;
    std::vector<T> u_before(l.u(state), l.z(state)), p_before(l.p(state), l.u(state));
    for (int64_t f = 0; f < l.features; ++f)
      for (int64_t c = 0; c < l.values; ++c) {
        const int64_t at = f * l.row() + c;
        l.u(state)[at] = k[f] * v[c];
        change += (k[f] * v[c] - u_before[at]) * (k[f] * v[c] - u_before[at]);
        distance += p_before[at] * p_before[at];
      }
    AdaptiveMomentum<T> momentum(change, distance, work.step_size, work.maximum, l.begun(state) != 0);
    for (int64_t at = 0; at < l.matrix(); ++at) {
      l.p(state)[at] = momentum.beta * p_before[at] - momentum.step_size * l.u(state)[at];
      l.s(state)[at] -= l.p(state)[at];
    }
    for (int64_t f = 0; f < l.features; ++f) l.z(state)[f] += k[f];
    l.begun(state) = 1;
    all.push_back({i, {l.s(state), l.p(state)}, {l.p(state), l.u(state)}, {l.u(state), l.z(state)},
                   {l.z(state), l.z(state) + l.features}, u_before, p_before, momentum});
  }
  return all;
}

template <typename T> void adaptive_forward(const AdaptiveWork<T> &work, int64_t head) {
  const auto &l = work.layout;
  T *state = work.state + head * l.size();
  if (work.keep) std::copy_n(state, l.size(), work.kept + head * work.chunks() * l.size());
  for (int64_t i = 0; i < work.length; ++i)
    std::fill_n(work.out.head(head) + i * work.out.row, l.values, T(0));
  for (const auto &step : steps(work, head, state)) {
    const T *q = work.q.head(head) + step.token * work.q.row;
    T *out = work.out.head(head) + step.token * work.out.row, &norm = work.norm[head * work.length + step.token];
    norm = work.epsilon;
    for (int64_t f = 0; f < l.features; ++f) norm += q[f] * step.z[f];
    for (int64_t f = 0; f < l.features; ++f)
      for (int64_t c = 0; c < l.values; ++c) out[c] += q[f] * step.s[f * l.row() + c] / norm;
  }
}

template <typename T> void adaptive_backward(const AdaptiveWork<T> &work, int64_t head) {
  const auto &l = work.layout;
  std::vector<T> state(work.kept + head * work.chunks() * l.size(), work.kept + (head * work.chunks() + 1) * l.size());
  std::vector<T> of_s(l.matrix()), of_p(l.matrix()), of_u(l.matrix()), of_z(l.features);
  for (int64_t i = 0; i < work.length; ++i) {
    std::fill_n(work.dq.head(head) + i * work.dq.row, l.features, T(0));
    std::fill_n(work.dk.head(head) + i * work.dk.row, l.features, T(0));
    std::fill_n(work.dv.head(head) + i * work.dv.row, l.values, T(0));
  }
  auto all = steps(work, head, state.data());
  for (auto step = all.rbegin(); step != all.rend(); ++step) {
    const int64_t i = step->token;
    const T *q = work.q.head(head) + i * work.q.row, *k = work.k.head(head) + i * work.k.row;
    const T *v = work.v.head(head) + i * work.v.row;
    const T *cotangent = work.cotangent.head(head) + i * work.cotangent.row, *out = work.out.head(head) + i * work.out.row;
    T *dq = work.dq.head(head) + i * work.dq.row, *dk = work.dk.head(head) + i * work.dk.row;
    T *dv = work.dv.head(head) + i * work.dv.row;
    const T norm = work.norm[head * work.length + i];
    T e = 0, of_beta = 0;
    for (int64_t c = 0; c < l.values; ++c) e -= cotangent[c] * out[c] / norm;
    const auto &m = step->momentum;
    for (int64_t f = 0; f < l.features; ++f) {
      for (int64_t c = 0; c < l.values; ++c) {
        const int64_t at = f * l.row() + c;
        of_s[at] += q[f] * cotangent[c] / norm;
        of_p[at] -= of_s[at];
        of_u[at] -= m.step_size * of_p[at];
        of_beta += of_p[at] * step->p_before[at];
        dq[f] += cotangent[c] / norm * step->s[at];
      }
      dq[f] += e * step->z[f];
      of_z[f] += e * q[f];
    }
    std::vector<T> of_u_before(l.matrix());
    for (int64_t f = 0; f < l.features; ++f)
      for (int64_t c = 0; c < l.values; ++c) {
        const int64_t at = f * l.row() + c;
        if (m.a > 0 && m.b > 0) {
          const T change = of_beta * m.slope * work.step_size / m.b * (step->u[at] - step->u_before[at]) / m.a;
          of_u[at] += change;
          of_u_before[at] = -change;
        }
        of_p[at] *= m.beta;
        if (m.b > 0) of_p[at] -= of_beta * m.slope * work.step_size * m.a / (m.b * m.b) * step->p_before[at] / m.b;
        dk[f] += of_u[at] * v[c];
        dv[c] += of_u[at] * k[f];
      }
    for (int64_t f = 0; f < l.features; ++f) dk[f] += of_z[f];
    of_u = of_u_before;
  }
}

} // namespace
} // namespace ctorch::reference

namespace {

struct AdaptiveSettings {
  double step_size, maximum, epsilon;
};

/// Inputs without a gradient: as a struct, autograd passes them over, and `mask` may be undefined.
struct Constants {
  Tensor mask, state; // the latter [batch heads, state], which becomes the final one
};

template <typename T>
AdaptiveWork<T> work_of(const AdaptiveSettings &settings, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &mask) {
  AdaptiveWork<T> work{};
  work.layout = {q.size(3), v.size(3)};
  work.step_size = static_cast<T>(settings.step_size);
  work.maximum = static_cast<T>(settings.maximum);
  work.epsilon = static_cast<T>(settings.epsilon);
  work.heads = q.size(1), work.length = q.size(2);
  work.q = rows<T>(q), work.k = rows<T>(k), work.v = rows<T>(v);
  work.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  return work;
}

struct AdaptiveFunction : torch::autograd::Function<AdaptiveFunction> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &q, const Tensor &k, const Tensor &v,
                        Constants constants, AdaptiveSettings settings) {
    const auto &[mask, state] = constants;
    const bool keep = q.requires_grad() || k.requires_grad() || v.requires_grad();
    const int64_t heads = q.size(0) * q.size(1);
    auto out = heads_side_by_side(v);
    auto norm = at::empty({heads, q.size(2)}, q.options());
    Tensor kept;
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "adaptive momentum attention", [&] {
      auto work = work_of<scalar_t>(settings, q, k, v, mask);
      kept = at::empty({keep ? heads : 0, work.chunks(), work.layout.size()}, q.options());
      work.keep = keep;
      work.out = mutable_rows<scalar_t>(out);
      work.norm = norm.mutable_data_ptr<scalar_t>();
      work.state = state.mutable_data_ptr<scalar_t>();
      work.kept = kept.mutable_data_ptr<scalar_t>();
      for_each_task(heads, [&](int64_t head) { DISPATCH(adaptive_forward<scalar_t>, work, head); });
    });
    if (keep) {
      context->save_for_backward({q, k, v, mask, out, norm, kept});
      context->saved_data["step_size"] = settings.step_size;
      context->saved_data["maximum"] = settings.maximum;
      context->saved_data["epsilon"] = settings.epsilon;
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "adaptive momentum attention cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2], &mask = saved[3], &out = saved[4], &norm = saved[5], &kept = saved[6];
    auto &data = context->saved_data;
    AdaptiveSettings settings{data["step_size"].toDouble(), data["maximum"].toDouble(), data["epsilon"].toDouble()};
    auto cotangent = with_rows(grads[0]);
    auto dq = heads_side_by_side(q), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "adaptive momentum attention", [&] {
      auto work = work_of<scalar_t>(settings, q, k, v, mask);
      work.cotangent = rows<scalar_t>(cotangent);
      work.out = mutable_rows<scalar_t>(out);
      work.dq = mutable_rows<scalar_t>(dq), work.dk = mutable_rows<scalar_t>(dk), work.dv = mutable_rows<scalar_t>(dv);
      work.norm = norm.mutable_data_ptr<scalar_t>();
      work.kept = kept.mutable_data_ptr<scalar_t>();
      for_each_task(q.size(0) * q.size(1), [&](int64_t head) { DISPATCH(adaptive_backward<scalar_t>, work, head); });
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

/// The state's tensors in rows of one [batch heads, state]; zeros for what is not given.
Tensor packed(const ctorch_adaptive_state &given, const AdaptiveLayout &layout, int64_t batch, int64_t heads,
              at::TensorOptions options) {
  auto state = at::zeros({batch * heads, layout.size()}, options);
  auto put = [&](ctorch_tensor part, int64_t place) {
    if (part)
      state.narrow(1, place * layout.matrix(), layout.matrix())
          .view({batch * heads, layout.features, layout.row()})
          .narrow(2, 0, layout.values)
          .copy_(get(part).detach().reshape({batch * heads, layout.features, layout.values}));
  };
  put(given.s, 0), put(given.p, 1), put(given.u, 2);
  if (given.z)
    state.narrow(1, 3 * layout.matrix(), layout.features)
        .copy_(get(given.z).detach().reshape({batch * heads, layout.features}));
  if (given.begun)
    state.select(1, 3 * layout.matrix() + layout.features)
        .view({batch, heads})
        .copy_(get(given.begun).detach().reshape({batch, 1}));
  return state;
}

ctorch_adaptive_state unpacked(const Tensor &state, const AdaptiveLayout &layout, int64_t batch, int64_t heads) {
  auto matrix = [&](int64_t place) {
    return wrap(state.narrow(1, place * layout.matrix(), layout.matrix())
                    .view({batch, heads, layout.features, layout.row()})
                    .narrow(3, 0, layout.values)
                    .contiguous());
  };
  auto z = state.narrow(1, 3 * layout.matrix(), layout.features).reshape({batch, heads, layout.features}).contiguous();
  auto begun = state.select(1, 3 * layout.matrix() + layout.features).view({batch, heads}).select(1, 0).contiguous();
  return {matrix(0), matrix(1), matrix(2), wrap(z), wrap(begun)};
}

} // namespace

extern "C" ctorch_tensor ctorch_adaptive_momentum(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask,
                                                  double step_size, double maximum, double epsilon,
                                                  ctorch_adaptive_state initial, ctorch_adaptive_state *final,
                                                  ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tq = get(q), &tk = get(k), &tv = get(v);
    TORCH_CHECK(tq.dim() == 4 && tv.dim() == 4 && tq.sizes() == tk.sizes() && tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3),
                "adaptive momentum attention needs φ(q) and φ(k) of one shape [batch, heads, length, features] and v of the same "
                "batch, heads and length, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.size(1) > 0 && tq.size(3) > 0 && tv.size(3) > 0,
                "adaptive momentum attention needs at least one head, feature and value, not ", tq.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.is_cpu(), "adaptive momentum attention has a kernel on the CPU only");
    // Sums over the sequence leave half precision's range.
    const auto type = at::promote_types(at::promote_types(tq.scalar_type(), tv.scalar_type()), at::kFloat);
    const AdaptiveLayout layout{tq.size(3), tv.size(3)};
    auto state = packed(initial, layout, tq.size(0), tq.size(1), tq.options().dtype(type).requires_grad(false));
    auto out = tv.numel() == 0 ? empty_result(tv.sizes(), {tv, tq, tk})
                               : AdaptiveFunction::apply(with_rows(tq.to(type)), with_rows(tk.to(type)), with_rows(tv.to(type)),
                                                         Constants{mask ? get(mask).contiguous() : Tensor(), state},
                                                         AdaptiveSettings{step_size, maximum, epsilon});
    if (final) *final = unpacked(state, layout, tq.size(0), tq.size(1));
    return out.to(tv.scalar_type());
  });
}
