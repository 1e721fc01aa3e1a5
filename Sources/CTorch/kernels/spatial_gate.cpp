// The spatial gating unit of gMLP (Liu et al. 2021, arXiv 2105.08050, section 2.1), for z = [u, v] side by side:
//
//   out_t = u_t ⊙ (Σ_s W_ts LayerNorm(v)_s + b_t)        causal: s ≤ t
//
// With m = W n + b and n = LayerNorm(v): du = g ⊙ m, dm = g ⊙ u, db the sum of dm's rows, dn = Wᵀ dm, dW = dm nᵀ. The three
// products are cut into panels of columns, a task each, and go block by block through W, of which a causal one has half as
// many. The gate stands where a product ends, and its gradient where the others begin.
#include "spatial_gate.hpp"
#include "empty_result.hpp"

#define KERNELS "spatial_gate.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops. The vectors' passes are not called for them.
namespace ctorch::reference {
using baseline::gate_backward, baseline::gate_forward, baseline::gate_norm, baseline::gate_norm_backward, baseline::gate_pull,
    baseline::gate_weights;

template <typename T> bool gate_sees(const SpatialGateWork<T> &work, int64_t i, int64_t j) { return !work.causal || j <= i; }

template <typename T> void gate_norm_all(const SpatialGateWork<T> &work) {
  for (int64_t token = 0; token < work.batch * work.length; ++token) {
    const T *v = work.gate(token), count = static_cast<T>(work.channels);
    T sum = 0, squares = 0;
    for (int64_t c = 0; c < work.channels; ++c) sum += v[c];
    for (int64_t c = 0; c < work.channels; ++c) squares += (v[c] - sum / count) * (v[c] - sum / count);
    work.center[token] = sum / count;
    work.inverse[token] = 1 / std::sqrt(squares / count + work.epsilon);
    for (int64_t c = 0; c < work.channels; ++c)
      work.normed[token * work.channels + c] =
          work.mask && !work.mask[token] ? T(0) : (v[c] - sum / count) * work.inverse[token] * work.scale[c] + work.shift[c];
  }
}

template <typename T> void gate_forward_all(const SpatialGateWork<T> &work) {
  gate_norm_all(work);
  for (int64_t i = 0; i < work.batch * work.length; ++i) {
    const int64_t start = i / work.length * work.length;
    for (int64_t c = 0; c < work.channels; ++c) {
      const int64_t head = c / work.head_channels();
      T sum = work.bias[head * work.length + i - start];
      for (int64_t j = 0; j < work.length; ++j)
        if (gate_sees(work, i - start, j))
          sum += work.w[head * work.w_head + (i - start) * work.w_row + j] * work.normed[(start + j) * work.channels + c];
      if (work.mixed) work.mixed[i * work.channels + c] = sum;
      work.out[i * work.channels + c] = work.keep(i)[c] * sum;
    }
  }
}

/// `of_norm` [2, channels], `dw` and `of_normed` are zeros at first.
template <typename T> void gate_backward_all(const SpatialGateWork<T> &work) {
  const int64_t tokens = work.batch * work.length;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t start = i / work.length * work.length;
    for (int64_t c = 0; c < work.channels; ++c) {
      const int64_t head = c / work.head_channels();
      const T g = work.cotangent[i * work.channels + c], of_mixed = g * work.keep(i)[c];
      work.dz[i * 2 * work.channels + c] = g * work.mixed[i * work.channels + c];
      work.dbias[(i / work.length * work.heads + head) * work.length + i - start] += of_mixed;
      for (int64_t j = 0; j < work.length; ++j) {
        if (!gate_sees(work, i - start, j)) continue;
        work.dw[(head * work.length + i - start) * work.length + j] += of_mixed * work.normed[(start + j) * work.channels + c];
        work.of_normed[(start + j) * work.channels + c] += of_mixed * work.w[head * work.w_head + (i - start) * work.w_row + j];
      }
    }
  }
  for (int64_t i = 0; i < tokens; ++i) {
    const bool is_real = !work.mask || work.mask[i];
    T mean = 0, slant = 0;
    auto x = [&](int64_t c) { return (work.gate(i)[c] - work.center[i]) * work.inverse[i]; };
    auto slope = [&](int64_t c) { return is_real ? work.of_normed[i * work.channels + c] : T(0); };
    for (int64_t c = 0; c < work.channels; ++c) {
      mean += slope(c) * work.scale[c] / static_cast<T>(work.channels);
      slant += slope(c) * work.scale[c] * x(c) / static_cast<T>(work.channels);
      work.of_norm[c] += slope(c) * x(c);
      work.of_norm[work.channels + c] += slope(c);
    }
    for (int64_t c = 0; c < work.channels; ++c)
      work.dz[(2 * i + 1) * work.channels + c] = work.inverse[i] * (slope(c) * work.scale[c] - mean - x(c) * slant);
  }
}

} // namespace ctorch::reference

namespace {

/// Tokens of a task that goes through them one by one.
constexpr int64_t some_tokens = 32;

/// Beside the inputs with gradients.
struct GateSetting {
  Tensor mask;
  double epsilon;
  bool causal;
};

template <typename T>
SpatialGateWork<T> gate_work(const GateSetting &setting, const Tensor &z, const Tensor &scale, const Tensor &shift, const Tensor &w,
                             const Tensor &bias) {
  SpatialGateWork<T> work{};
  work.causal = setting.causal;
  work.batch = z.size(0), work.length = z.size(1), work.channels = z.size(2) / 2, work.heads = w.size(0);
  work.epsilon = static_cast<T>(setting.epsilon);
  work.z = z.const_data_ptr<T>(), work.scale = scale.const_data_ptr<T>(), work.shift = shift.const_data_ptr<T>();
  work.mask = setting.mask.defined() ? setting.mask.const_data_ptr<bool>() : nullptr;
  work.w = w.const_data_ptr<T>(), work.bias = bias.const_data_ptr<T>();
  work.w_head = w.stride(0), work.w_row = w.stride(1);
  return work;
}

/// Calls body(first, end, task) for all tokens.
template <typename Body> void for_some_tokens(int64_t tokens, Body body) {
  for_each_task((tokens + some_tokens - 1) / some_tokens,
                [&](int64_t task) { body(task * some_tokens, std::min(tokens, (task + 1) * some_tokens), task); });
}

template <typename T> void backward_of_gate(SpatialGateWork<T> &work, Tensor &of_norm) {
  const int64_t tokens = work.batch * work.length;
  for_some_tokens(tokens, [&](int64_t from, int64_t end, int64_t) { DISPATCH(gate_pull<T>, work, from, end); });
  for_each_task(work.batch * work.heads * work.panels(), [&](int64_t task) { DISPATCH(gate_backward<T>, work, task); });
  const int64_t panels = (work.length + gate_columns - 1) / gate_columns;
  for_each_task(work.heads * panels, [&](int64_t task) { DISPATCH(gate_weights<T>, work, task / panels, task % panels); });
  auto parts = at::empty({(tokens + some_tokens - 1) / some_tokens, 2 * work.channels}, of_norm.options());
  T *part = parts.template mutable_data_ptr<T>(), *sum = of_norm.mutable_data_ptr<T>();
  for_some_tokens(tokens, [&](int64_t from, int64_t end, int64_t task) {
    DISPATCH(gate_norm_backward<T>, work, from, end, part + task * 2 * work.channels);
  });
  for (int64_t task = 0; task < parts.size(0); ++task)
    for (int64_t i = 0; i < 2 * work.channels; ++i) sum[i] += part[task * 2 * work.channels + i];
}

struct SpatialGate : torch::autograd::Function<SpatialGate> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &z, const Tensor &scale, const Tensor &shift,
                        const Tensor &w, const Tensor &bias, GateSetting setting) {
    const bool keep =
        z.requires_grad() || scale.requires_grad() || shift.requires_grad() || w.requires_grad() || bias.requires_grad();
    auto normed = at::empty({z.size(0), z.size(1), z.size(2) / 2}, z.options()), out = at::empty_like(normed);
    auto mixed = keep ? at::empty_like(normed) : Tensor();
    auto center = at::empty({z.size(0), z.size(1)}, z.options()), inverse = at::empty_like(center);
    AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "spatial gate", [&] {
      auto work = gate_work<scalar_t>(setting, z, scale, shift, w, bias);
      work.normed = normed.mutable_data_ptr<scalar_t>(), work.out = out.mutable_data_ptr<scalar_t>();
      work.mixed = keep ? mixed.mutable_data_ptr<scalar_t>() : nullptr;
      work.center = center.mutable_data_ptr<scalar_t>(), work.inverse = inverse.mutable_data_ptr<scalar_t>();
      if (active_isa() == Isa::reference) return reference::gate_forward_all(work);
      for_some_tokens(work.batch * work.length,
                      [&](int64_t from, int64_t end, int64_t) { DISPATCH(gate_norm<scalar_t>, work, from, end); });
      for_each_task(work.batch * work.heads * work.panels(), [&](int64_t task) { DISPATCH(gate_forward<scalar_t>, work, task); });
    });
    if (keep) {
      context->save_for_backward({z, scale, shift, w, bias, setting.mask, normed, mixed, center, inverse});
      context->saved_data["causal"] = setting.causal;
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the spatial gate cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    const auto &z = saved[0], &scale = saved[1], &shift = saved[2], &w = saved[3], &bias = saved[4];
    auto &normed = saved[6], &mixed = saved[7], &center = saved[8], &inverse = saved[9];
    GateSetting setting{saved[5], 0, context->saved_data["causal"].toBool()};
    auto cotangent = grads[0].contiguous();
    auto dz = at::empty_like(z), of_norm = at::zeros({2, scale.size(0)}, z.options());
    auto dbias = at::zeros({z.size(0), bias.size(0), bias.size(1)}, z.options());
    auto dw = at::empty({w.size(0), w.size(1), w.size(1)}, z.options());
    auto of_mixed = at::empty_like(normed), of_normed = at::empty_like(normed);
    AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "spatial gate", [&] {
      auto work = gate_work<scalar_t>(setting, z, scale, shift, w, bias);
      work.normed = normed.mutable_data_ptr<scalar_t>(), work.mixed = mixed.mutable_data_ptr<scalar_t>();
      work.center = center.mutable_data_ptr<scalar_t>(), work.inverse = inverse.mutable_data_ptr<scalar_t>();
      work.cotangent = cotangent.const_data_ptr<scalar_t>();
      work.dz = dz.mutable_data_ptr<scalar_t>(), work.dw = dw.mutable_data_ptr<scalar_t>();
      work.dbias = dbias.mutable_data_ptr<scalar_t>(), work.of_norm = of_norm.mutable_data_ptr<scalar_t>();
      work.of_mixed = of_mixed.mutable_data_ptr<scalar_t>(), work.of_normed = of_normed.mutable_data_ptr<scalar_t>();
      if (active_isa() == Isa::reference) {
        dw.zero_(), of_normed.zero_();
        return reference::gate_backward_all(work);
      }
      backward_of_gate(work, of_norm);
    });
    return {dz, of_norm[0], of_norm[1], dw, dbias.sum(0), Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_spatial_gate(ctorch_tensor z, ctorch_tensor scale, ctorch_tensor shift, ctorch_tensor w,
                                             ctorch_tensor bias, ctorch_tensor mask, double epsilon, bool causal,
                                             ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tz = get(z), &tw = get(w), &tb = get(bias);
    TORCH_CHECK(tz.is_cpu() && tz.dim() == 3 && tz.size(2) > 0 && tz.size(2) % 2 == 0,
                "the spatial gate takes z [batch, length, 2 channels] on the CPU, not ", tz.sizes());
    const int64_t length = tz.size(1), channels = tz.size(2) / 2;
    TORCH_CHECK(tw.dim() == 3 && tw.size(0) > 0 && tw.size(1) == length && tw.size(2) == length && channels % tw.size(0) == 0 &&
                    tb.sizes() == at::IntArrayRef({tw.size(0), length}),
                "the spatial gate needs w [heads, ", length, ", ", length, "] and biases [heads, ", length, "], not ", tw.sizes(),
                ", ", tb.sizes());
    TORCH_CHECK(get(scale).sizes() == at::IntArrayRef({channels}) && get(shift).sizes() == at::IntArrayRef({channels}),
                "the spatial gate needs a norm of ", channels, " channels");
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == tz.sizes().slice(0, 2)),
                "the spatial gate needs a mask of booleans [batch, length], not ", real.sizes());
    if (tz.numel() == 0) return empty_result({tz.size(0), length, channels}, {tz, get(scale), get(shift), tw, tb});
    auto type = at::promote_types(at::promote_types(tz.scalar_type(), tw.scalar_type()), at::kFloat);
    auto given = [&](ctorch_tensor t) { return get(t).to(type).contiguous(); };
    return SpatialGate::apply(given(z), given(scale), given(shift), with_rows(tw.to(type)), given(bias),
                              GateSetting{real, epsilon, causal})
        .to(tz.scalar_type());
  });
}
