// Mega's multi-dimensional damped exponential moving average (Ma et al. 2022, arXiv 2209.10655, eq. 3-5), with its gate and
// the backward pass in one. For each channel, with `hidden` numbers of α, δ, β and η,
//   s_t = α β x_t + (1 - αδ) s_{t-1},  y_t = ⟨η, s_t⟩ / √hidden,  out_t = silu(y_t + ω x_t).
// With r_t = η g_t / √hidden + (1 - αδ) r_{t+1}, g being the cotangent of y, the gradients are sums over the tokens:
//   dx = ⟨αβ, r⟩,  dα = Σ r (β x - δ s'),  dδ = -Σ r α s',  dβ = Σ r α x,  dη = Σ g s / √hidden,  s' the state before.
//
// A scan takes 2 · hidden multiply-adds for a channel of a token and 5 · hidden more for the gradients, all in registers. The
// product of Fourier transforms takes about 8 log₂ 2N operations forward, more than a scan with 16 hidden dimensions, and in
// memory: measured at N 4096, ten times the time. The kernels scan s / (αβ), whose input is x, and put αβη / √hidden where it
// is read.
// The forward pass keeps the states before each chunk of 64 tokens, hidden / 64 times as many numbers as x has.
#include "moving_average.hpp"
#include "empty_result.hpp"

#define KERNELS "moving_average_backward.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops, one channel a task.
namespace ctorch::reference {

template <typename T> int64_t moving_average_tasks(int64_t batch, int64_t channels) { return batch * channels; }
template <typename T> int64_t moving_average_tables(int64_t) { return 1; }
template <typename T> void moving_average_coefficients(const MovingAverageWork<T> &, int64_t, int64_t) {}

template <typename T> T logistic(T x) { return 1 / (1 + std::exp(-x)); }

/// A channel's parameters in one direction.
template <typename T> struct Average {
  std::vector<T> alpha, delta, beta, eta;

  Average(const MovingAverageWork<T> &work, int64_t direction, int64_t channel) {
    for (int64_t h = 0; h < work.hidden; ++h) {
      const int64_t place = (direction * work.channels + channel) * work.hidden + h;
      alpha.push_back(logistic(work.parameters.alpha[place]));
      delta.push_back(logistic(work.parameters.delta[place]));
      beta.push_back(work.parameters.beta[place]);
      eta.push_back(work.parameters.eta[place] / std::sqrt(static_cast<T>(work.hidden)));
    }
  }
};

/// The input of one channel, token by token in a direction's order, with zeros for padding.
template <typename T>
std::vector<T> average_input(const MovingAverageWork<T> &work, int64_t sequence, int64_t direction, int64_t channel) {
  std::vector<T> x;
  for (int64_t i = 0; i < work.length; ++i) {
    const int64_t token = work.token(direction, i);
    x.push_back(work.mask && !work.real(sequence)[token] ? T(0) : work.x.head(sequence)[token * work.x.row + channel]);
  }
  return x;
}

/// s before the first token and after each, [length + 1, hidden].
template <typename T>
std::vector<T> average_states(const MovingAverageWork<T> &work, const Average<T> &p, const std::vector<T> &x, const T *initial) {
  std::vector<T> s(static_cast<size_t>((work.length + 1) * work.hidden));
  for (int64_t h = 0; h < work.hidden; ++h) s[h] = initial ? initial[h] : T(0);
  for (int64_t i = 0; i < work.length; ++i)
    for (int64_t h = 0; h < work.hidden; ++h)
      s[(i + 1) * work.hidden + h] = p.alpha[h] * p.beta[h] * x[i] + (1 - p.alpha[h] * p.delta[h]) * s[i * work.hidden + h];
  return s;
}

template <typename T> void moving_average_forward(const MovingAverageWork<T> &work, int64_t task) {
  const int64_t sequence = task / work.channels, channel = task % work.channels;
  std::vector<T> y(static_cast<size_t>(work.length));
  for (int64_t direction = 0; direction < work.directions; ++direction) {
    const Average<T> p(work, direction, channel);
    const auto s = average_states(work, p, average_input(work, sequence, direction, channel),
                                  work.initial ? work.initial + task * work.hidden : nullptr);
    for (int64_t i = 0; i < work.length; ++i)
      for (int64_t h = 0; h < work.hidden; ++h) y[work.token(direction, i)] += p.eta[h] * s[(i + 1) * work.hidden + h];
    if (work.final) std::copy(s.end() - work.hidden, s.end(), work.final + task * work.hidden);
  }
  for (int64_t i = 0; i < work.length; ++i) {
    T &out = work.out.head(sequence)[i * work.out.row + channel];
    out = y[i];
    if (!work.parameters.omega) continue;
    const T sum = y[i] + work.parameters.omega[channel] * work.x.head(sequence)[i * work.x.row + channel];
    if (work.keep) work.sums.head(sequence)[i * work.sums.row + channel] = sum;
    out = sum * logistic(sum);
  }
}

template <typename T> void moving_average_backward(const MovingAverageWork<T> &work, int64_t task) {
  const int64_t sequence = task / work.channels, channel = task % work.channels, hidden = work.hidden;
  std::vector<T> g(static_cast<size_t>(work.length)), dx(g.size());
  T of_omega = 0;
  for (int64_t i = 0; i < work.length; ++i) {
    g[i] = work.cotangent.head(sequence)[i * work.cotangent.row + channel];
    if (!work.parameters.omega) continue;
    const T sum = work.sums.head(sequence)[i * work.sums.row + channel], gate = logistic(sum);
    g[i] *= gate + sum * gate * (1 - gate);
    dx[i] = g[i] * work.parameters.omega[channel];
    of_omega += g[i] * work.x.head(sequence)[i * work.x.row + channel];
  }
  for (int64_t direction = 0; direction < work.directions; ++direction) {
    const Average<T> p(work, direction, channel);
    const auto x = average_input(work, sequence, direction, channel), s = average_states<T>(work, p, x, nullptr);
    T *found = work.partial + ((sequence * work.directions + direction) * work.channels + channel) * 4 * hidden;
    std::fill_n(found, 4 * hidden, T(0));
    std::vector<T> r(static_cast<size_t>(hidden));
    for (int64_t i = work.length - 1; i >= 0; --i) {
      const int64_t token = work.token(direction, i);
      for (int64_t h = 0; h < hidden; ++h) {
        const T before = s[i * hidden + h];
        r[h] = p.eta[h] * g[token] + (1 - p.alpha[h] * p.delta[h]) * r[h];
        if (!work.mask || work.real(sequence)[token]) dx[token] += p.alpha[h] * p.beta[h] * r[h];
        found[h] += r[h] * (p.beta[h] * x[i] - p.delta[h] * before) * p.alpha[h] * (1 - p.alpha[h]);
        found[hidden + h] -= r[h] * p.alpha[h] * before * p.delta[h] * (1 - p.delta[h]);
        found[2 * hidden + h] += r[h] * p.alpha[h] * x[i];
        found[3 * hidden + h] += g[token] * s[(i + 1) * hidden + h] / std::sqrt(static_cast<T>(hidden));
      }
    }
  }
  for (int64_t i = 0; i < work.length; ++i) work.dx.head(sequence)[i * work.dx.row + channel] = dx[i];
  if (work.parameters.omega) work.omega_partial[task] = of_omega;
}

template <typename T> void moving_average_gradients(const MovingAverageWork<T> &work, int64_t direction, int64_t) {
  T *const to[4] = {work.gradients.alpha, work.gradients.delta, work.gradients.beta, work.gradients.eta};
  for (int64_t channel = 0; channel < work.channels; ++channel) {
    for (int64_t i = 0; i < 4 * work.hidden; ++i) {
      T &sum = to[i / work.hidden][(direction * work.channels + channel) * work.hidden + i % work.hidden];
      sum = 0;
      for (int64_t sequence = 0; sequence < work.batch; ++sequence)
        sum += work.partial[((sequence * work.directions + direction) * work.channels + channel) * 4 * work.hidden + i];
    }
    if (direction > 0 || !work.parameters.omega) continue;
    work.gradients.omega[channel] = 0;
    for (int64_t sequence = 0; sequence < work.batch; ++sequence)
      work.gradients.omega[channel] += work.omega_partial[sequence * work.channels + channel];
  }
}

} // namespace ctorch::reference

namespace {

/// What has no gradient, and may be undefined.
struct AverageConstants {
  Tensor mask, initial;
  bool keep, gated;
};

template <typename T> MovingAverageWork<T> work_of(const Tensor &x, const at::ArrayRef<Tensor> parameters, const Tensor &mask) {
  MovingAverageWork<T> work{};
  work.batch = x.size(0), work.length = x.size(1), work.channels = x.size(2);
  work.hidden = parameters[0].size(1);
  work.directions = parameters[0].size(0) / work.channels;
  work.x = ctorch::rows<T>(x.unsqueeze(1));
  auto data = [&](size_t index) { return parameters[index].const_data_ptr<T>(); };
  work.parameters = {data(0), data(1), data(2), data(3), parameters.size() > 4 ? data(4) : nullptr};
  work.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  return work;
}

/// Rows of [batch, length, channels].
template <typename T> Rows<T> rows_of(Tensor &t) {
  auto wide = t.unsqueeze(1);
  return mutable_rows<T>(wide);
}

/// How many numbers the lanes of all vectors of channels hold, times the hidden dimensions.
template <typename T> int64_t room_of(const MovingAverageWork<T> &work) {
  return (work.channels + average_lanes - 1) / average_lanes * average_lanes * work.padded_hidden();
}

struct MovingAverage : torch::autograd::Function<MovingAverage> {
  /// Returns out, and the last states [batch, channels, hidden].
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &x, const Tensor &alpha,
                                                const Tensor &delta, const Tensor &beta, const Tensor &eta, const Tensor &omega,
                                                AverageConstants constants) {
    const auto &[mask, initial, keep, gated] = constants;
    std::vector<Tensor> parameters{alpha, delta, beta, eta};
    if (gated) parameters.push_back(omega);
    auto out = at::empty(x.sizes(), x.options()), final = at::empty({x.size(0), x.size(2), alpha.size(1)}, x.options());
    auto sums = at::empty(keep && gated ? x.sizes() : at::IntArrayRef({0, 0, 0}), x.options());
    Tensor states;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "moving average", [&] {
      auto work = work_of<scalar_t>(x, parameters, mask);
      work.keep = keep;
      work.out = rows_of<scalar_t>(out);
      if (keep && gated) work.sums = rows_of<scalar_t>(sums);
      auto coefficients = at::empty({work.directions * 5 * room_of(work)}, x.options());
      states = at::empty({keep ? work.batch * work.directions * work.chunks() * room_of(work) : 0}, x.options());
      work.coefficients = coefficients.template mutable_data_ptr<scalar_t>();
      work.states = states.mutable_data_ptr<scalar_t>();
      work.initial = initial.defined() ? initial.const_data_ptr<scalar_t>() : nullptr;
      work.final = work.directions == 1 ? final.mutable_data_ptr<scalar_t>() : nullptr;
      prepare(work);
      for_each_task(DISPATCH(moving_average_tasks<scalar_t>, work.batch, work.channels),
                    [&](int64_t task) { DISPATCH(moving_average_forward<scalar_t>, work, task); });
    });
    if (keep) {
      context->save_for_backward({x, alpha, delta, beta, eta, omega, mask, sums, states});
      context->saved_data["gated"] = gated;
    }
    context->mark_non_differentiable({final});
    return {out, final};
  }

  /// The tables of coefficients.
  template <typename T> static void prepare(const MovingAverageWork<T> &work) {
    const int64_t tables = DISPATCH(moving_average_tables<T>, work.channels);
    for_each_task(work.directions * tables,
                  [&](int64_t task) { DISPATCH(moving_average_coefficients<T>, work, task / tables, task % tables); });
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the moving average cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &x = saved[0], &mask = saved[6], &sums = saved[7], &states = saved[8];
    const bool gated = context->saved_data["gated"].toBool();
    const auto parameters = at::ArrayRef<Tensor>(saved).slice(1, gated ? 5 : 4);
    auto cotangent = with_rows(grads[0]);
    auto dx = at::empty(x.sizes(), x.options());
    std::vector<Tensor> found;
    for (const auto &parameter : parameters) found.push_back(at::empty_like(parameter));
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "moving average", [&] {
      auto work = work_of<scalar_t>(x, parameters, mask);
      auto data = [&](size_t index) { return found[index].mutable_data_ptr<scalar_t>(); };
      work.gradients = {data(0), data(1), data(2), data(3), gated ? data(4) : nullptr};
      work.cotangent = ctorch::rows<scalar_t>(cotangent.unsqueeze(1));
      work.dx = rows_of<scalar_t>(dx);
      if (gated) work.sums = rows_of<scalar_t>(sums);
      auto coefficients = at::empty({work.directions * 5 * room_of(work)}, x.options());
      auto partial = at::empty({work.batch * work.directions * 4 * room_of(work)}, x.options());
      auto omega_partial = at::empty({work.batch, work.channels}, x.options());
      work.coefficients = coefficients.template mutable_data_ptr<scalar_t>();
      work.states = states.mutable_data_ptr<scalar_t>();
      work.partial = partial.template mutable_data_ptr<scalar_t>();
      work.omega_partial = omega_partial.template mutable_data_ptr<scalar_t>();
      prepare(work);
      for_each_task(DISPATCH(moving_average_tasks<scalar_t>, work.batch, work.channels),
                    [&](int64_t task) { DISPATCH(moving_average_backward<scalar_t>, work, task); });
      const int64_t tables = DISPATCH(moving_average_tables<scalar_t>, work.channels);
      for_each_task(work.directions * tables,
                    [&](int64_t task) { DISPATCH(moving_average_gradients<scalar_t>, work, task / tables, task % tables); });
    });
    if (!gated) found.push_back(Tensor());
    return {dx, found[0], found[1], found[2], found[3], found[4], Tensor()};
  }
};

void check(const Tensor &x, const at::ArrayRef<Tensor> parameters, const Tensor &omega, const Tensor &mask, const Tensor &initial) {
  TORCH_CHECK(x.is_cpu() && x.dim() == 3, "the moving average takes x [batch, length, channels] on the CPU, not ", x.sizes());
  const int64_t channels = x.size(2);
  TORCH_CHECK(channels > 0, "the moving average needs at least one channel, not x ", x.sizes());
  const auto &first = parameters[0];
  TORCH_CHECK(first.dim() == 2 && first.size(1) > 0 && (first.size(0) == channels || first.size(0) == 2 * channels) &&
                  std::all_of(parameters.begin(), parameters.end(), [&](const Tensor &t) { return t.sizes() == first.sizes(); }),
              "the moving average needs parameters [channels, hidden] of one shape, or twice as many rows for two directions, not ",
              first.sizes(), " for x ", x.sizes());
  TORCH_CHECK(!omega.defined() || omega.sizes() == at::IntArrayRef({channels}), "the moving average needs omega [channels], not ",
              omega.sizes());
  TORCH_CHECK(!mask.defined() || (mask.scalar_type() == at::kBool && mask.sizes() == x.sizes().slice(0, 2)),
              "the moving average needs a mask of booleans [batch, length], not ", mask.sizes());
  TORCH_CHECK(!initial.defined() || (first.size(0) == channels &&
                                     initial.sizes() == at::IntArrayRef({x.size(0), channels, first.size(1)})),
              "the moving average takes an initial state [batch, channels, hidden] in one direction only, not ", initial.sizes());
}

} // namespace

extern "C" ctorch_tensor ctorch_moving_average(ctorch_tensor x, ctorch_tensor mask, ctorch_average_parameters parameters,
                                               ctorch_tensor initial, ctorch_tensor *final, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tx = get(x);
    auto omega = optional(parameters.omega), real = optional(mask), first = optional(initial);
    std::vector<Tensor> raw{get(parameters.alpha), get(parameters.delta), get(parameters.beta), get(parameters.eta)};
    check(tx, raw, omega, real, first);
    // Sums over the sequence leave half precision's range.
    const auto type = at::promote_types(at::promote_types(tx.scalar_type(), raw[0].scalar_type()), at::kFloat);
    if (tx.numel() == 0) {
      const auto state = at::zeros({tx.size(0), tx.size(2), raw[0].size(1)}, tx.options().dtype(type));
      if (final && raw[0].size(0) == tx.size(2)) *final = wrap(first.defined() ? first.detach().to(type).clone() : state);
      return empty_result(tx.sizes(), {tx, raw[0], raw[1], raw[2], raw[3], omega});
    }
    for (auto &parameter : raw) parameter = parameter.to(type).contiguous();
    const auto gate = omega.defined() ? omega.to(type).contiguous() : raw[0];
    const auto wide = with_rows(tx.to(type));
    bool keep = wide.requires_grad() || gate.requires_grad();
    for (const auto &parameter : raw) keep |= parameter.requires_grad();
    keep &= at::GradMode::is_enabled();
    TORCH_CHECK(!keep || !first.defined(), "the moving average has no gradients after an initial state");
    AverageConstants constants{real.defined() ? real.contiguous() : real,
                               first.defined() ? first.to(type).contiguous() : first, keep, omega.defined()};
    auto result = MovingAverage::apply(wide, raw[0], raw[1], raw[2], raw[3], gate, constants);
    if (final && raw[0].size(0) == tx.size(2)) *final = wrap(result[1].detach());
    return result[0].to(tx.scalar_type());
  });
}
