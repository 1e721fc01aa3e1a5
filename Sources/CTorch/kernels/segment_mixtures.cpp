// Normalized keys and values with the mixtures of each segment behind, as causal long-short attention looks at them (Zhu et al.
// 2021, arXiv 2107.02192). For each head, with weights P_t = softmax_t(logits_t) over the tokens t of a segment:
//
//   k'_t = LN(k_t),   k̄' = LN'(k̄),   k̄ = Σ_t P_t k_t,   and the same of v
//
// where the norms go over all heads together. The backward pass makes the weights, the mixtures and what the norms divided by
// again:   dk_t = LN_back(dk'_t) + P_t dk̄,   dP_t = dk̄·k_t + dv̄·v_t,   dlogits_t = P_t (dP_t - Σ_s P_s dP_s).
#include "segment_mixtures.hpp"
#include "empty_result.hpp"

#define KERNELS "segment_mixtures.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops.
namespace ctorch::reference {

template <typename T> std::vector<T> hats(int64_t columns, const T *x, T epsilon, T *inverse) {
  T mean = 0, variance = 0;
  for (int64_t c = 0; c < columns; ++c) mean += x[c] / static_cast<T>(columns);
  for (int64_t c = 0; c < columns; ++c) variance += (x[c] - mean) * (x[c] - mean) / static_cast<T>(columns);
  *inverse = 1 / std::sqrt(variance + epsilon);
  std::vector<T> result;
  for (int64_t c = 0; c < columns; ++c) result.push_back((x[c] - mean) * *inverse);
  return result;
}

template <typename T> void normalize(int64_t columns, const T *x, MixtureNorm<const T> norm, T epsilon, T *to) {
  T inverse;
  const auto hat = hats(columns, x, epsilon, &inverse);
  for (int64_t c = 0; c < columns; ++c) to[c] = hat[c] * norm.gain[c] + norm.bias[c];
}

template <typename T>
void normalize_backward(int64_t columns, const T *x, const T *g, const T *gain, T epsilon, MixtureNorm<T> sums, T *to) {
  T inverse, mean = 0, along = 0;
  const auto hat = hats(columns, x, epsilon, &inverse);
  for (int64_t c = 0; c < columns; ++c) {
    mean += g[c] * gain[c] / static_cast<T>(columns);
    along += g[c] * gain[c] * hat[c] / static_cast<T>(columns);
    sums.gain[c] += g[c] * hat[c];
    sums.bias[c] += g[c];
  }
  for (int64_t c = 0; c < columns; ++c) to[c] = inverse * (g[c] * gain[c] - mean - hat[c] * along);
}

/// P of one head and mixture over the tokens of a segment.
template <typename T>
std::vector<T> weights(const MixtureWork<T> &work, int64_t batch, int64_t segment, int64_t head, int64_t mixture) {
  std::vector<T> p;
  T peak = -INFINITY, sum = 0;
  for (int64_t t = segment * work.segment; t < (segment + 1) * work.segment; ++t) {
    const T logit = work.logits.head(batch)[t * work.logits.row + head * work.rank + mixture];
    p.push_back(work.mask && !work.real(batch, 0)[t] ? T(-INFINITY) : logit);
    peak = std::max(peak, p.back());
  }
  for (T &w : p) sum += w = peak > -INFINITY ? std::exp(w - peak) : T(0);
  for (T &w : p) w = sum > 0 ? w / sum : T(0);
  return p;
}

template <typename T>
std::vector<T> mix(const MixtureWork<T> &work, const Rows<const T> &rows, int64_t batch, int64_t segment, int64_t mixture) {
  std::vector<T> mixed(work.columns(), T(0));
  for (int64_t head = 0; head < work.heads; ++head) {
    const auto p = weights(work, batch, segment, head, mixture);
    for (int64_t t = 0; t < work.segment; ++t)
      for (int64_t c = head * work.width; c < (head + 1) * work.width; ++c)
        mixed[c] += p[t] * (rows.head(batch) + (segment * work.segment + t) * rows.row)[c];
  }
  return mixed;
}

template <typename T> void mixture_forward(const MixtureWork<T> &work, int64_t batch, int64_t from, int64_t to) {
  for (const auto &side : work.sides) {
    auto out = [&](int64_t row) { return side.to.head(batch) + row * side.to.row; };
    for (int64_t i = from * work.segment; i < std::min(work.length, to * work.segment); ++i)
      normalize(work.columns(), side.from.head(batch) + i * side.from.row, work.token, work.epsilon, out(i));
    for (int64_t s = from; s < std::min(to, work.segments); ++s)
      for (int64_t a = 0; a < work.rank; ++a)
        normalize(work.columns(), mix(work, side.from, batch, s, a).data(), work.mixture, work.epsilon,
                  out(work.length + s * work.rank + a));
  }
}

template <typename T>
void mixture_backward(const MixtureWork<T> &work, int64_t batch, int64_t from, int64_t to, MixtureNormGradients<T> sums) {
  const int64_t end = std::min(work.length, to * work.segment), columns = work.columns();
  for (int64_t i = from * work.segment; i < end; ++i)
    std::fill_n(work.logits_gradient.head(batch) + i * work.logits_gradient.row, work.weights(), T(0));
  for (const auto &side : work.sides) {
    auto x = [&](int64_t row) { return side.from.head(batch) + row * side.from.row; };
    auto g = [&](int64_t row) { return side.cotangent.head(batch) + row * side.cotangent.row; };
    auto dx = [&](int64_t row) { return side.gradient.head(batch) + row * side.gradient.row; };
    for (int64_t i = from * work.segment; i < end; ++i)
      normalize_backward(columns, x(i), g(i), work.token.gain, work.epsilon, sums.token, dx(i));
    for (int64_t s = from; s < std::min(to, work.segments); ++s)
      for (int64_t a = 0; a < work.rank; ++a) {
        std::vector<T> d(columns);
        normalize_backward(columns, mix(work, side.from, batch, s, a).data(), g(work.length + s * work.rank + a), work.mixture.gain,
                           work.epsilon, sums.mixture, d.data());
        for (int64_t head = 0; head < work.heads; ++head) {
          const auto p = weights(work, batch, s, head, a);
          std::vector<T> dp(p.size(), T(0));
          T mean = 0;
          for (int64_t t = 0; t < work.segment; ++t) {
            for (int64_t c = head * work.width; c < (head + 1) * work.width; ++c) {
              dx(s * work.segment + t)[c] += p[t] * d[c];
              dp[t] += d[c] * x(s * work.segment + t)[c];
            }
            mean += p[t] * dp[t];
          }
          for (int64_t t = 0; t < work.segment; ++t)
            (work.logits_gradient.head(batch) + (s * work.segment + t) * work.logits_gradient.row)[head * work.rank + a] +=
                p[t] * (dp[t] - mean);
        }
      }
  }
}

} // namespace ctorch::reference

namespace {

/// Tokens that make a task worth its while.
constexpr int64_t task_tokens = 256;

/// What is not differentiated: as a struct, autograd passes it over, and `mask` may be undefined.
struct MixtureConstants {
  Tensor mask;
  int64_t segment, rank, heads;
  double epsilon;
};

/// Gains and biases of both norms.
struct Norms {
  Tensor token_gain, token_bias, mixture_gain, mixture_bias;
};

/// [batch, length, columns] as of one head.
Tensor as_heads(const Tensor &t) { return t.unsqueeze(1); }

template <typename T>
MixtureWork<T> work_of(const MixtureConstants &constants, const Tensor &k, const Tensor &v, const Tensor &logits,
                       const Norms &norms) {
  MixtureWork<T> work{};
  work.length = k.size(1);
  work.segment = constants.segment;
  work.segments = (work.length - 1) / work.segment;
  work.rank = constants.rank;
  work.heads = constants.heads;
  work.width = k.size(2) / work.heads;
  work.epsilon = static_cast<T>(constants.epsilon);
  work.sides[0].from = ctorch::rows<T>(as_heads(k)), work.sides[1].from = ctorch::rows<T>(as_heads(v));
  work.logits = ctorch::rows<T>(as_heads(logits));
  work.token = {norms.token_gain.const_data_ptr<T>(), norms.token_bias.const_data_ptr<T>()};
  work.mixture = {norms.mixture_gain.const_data_ptr<T>(), norms.mixture_bias.const_data_ptr<T>()};
  work.mask = constants.mask.defined() ? constants.mask.const_data_ptr<bool>() : nullptr;
  return work;
}

template <typename T> Rows<T> result_rows(const Tensor &t) {
  auto wide = as_heads(t);
  return mutable_rows<T>(wide);
}

/// Pieces of a sequence, a task each.
struct Pieces {
  int64_t size, count, segments;

  Pieces(int64_t length, int64_t segment)
      : size(std::max<int64_t>(1, task_tokens / segment)), segments((length + segment - 1) / segment) {
    count = (segments + size - 1) / size;
  }
  int64_t from(int64_t task) const { return task % count * size; }
  int64_t to(int64_t task) const { return std::min(segments, from(task) + size); }
};

struct SegmentMixtures : torch::autograd::Function<SegmentMixtures> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &k, const Tensor &v,
                                                const Tensor &logits, const Tensor &token_gain, const Tensor &token_bias,
                                                const Tensor &mixture_gain, const Tensor &mixture_bias,
                                                MixtureConstants constants) {
    const int64_t batch = k.size(0), length = k.size(1), total = length + (length - 1) / constants.segment * constants.rank;
    auto keys = at::empty({batch, total, k.size(2)}, k.options()), values = at::empty({batch, total, k.size(2)}, k.options());
    AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "segment mixtures", [&] {
      auto work = work_of<scalar_t>(constants, k, v, logits, {token_gain, token_bias, mixture_gain, mixture_bias});
      work.sides[0].to = result_rows<scalar_t>(keys), work.sides[1].to = result_rows<scalar_t>(values);
      const Pieces pieces(length, constants.segment);
      for_each_task(batch * pieces.count, [&](int64_t task) {
        DISPATCH(mixture_forward<scalar_t>, work, task / pieces.count, pieces.from(task), pieces.to(task));
      });
    });
    context->save_for_backward({k, v, logits, token_gain, token_bias, mixture_gain, mixture_bias, constants.mask});
    auto &data = context->saved_data;
    data["segment"] = constants.segment, data["rank"] = constants.rank, data["heads"] = constants.heads;
    data["epsilon"] = constants.epsilon;
    return {keys, values};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "segment mixtures cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &k = saved[0], &v = saved[1], &logits = saved[2];
    auto &data = context->saved_data;
    MixtureConstants constants{saved[7], data["segment"].toInt(), data["rank"].toInt(), data["heads"].toInt(),
                               data["epsilon"].toDouble()};
    auto keys_cotangent = with_rows(grads[0]), values_cotangent = with_rows(grads[1]);
    auto like = [](const Tensor &t) { return at::empty(t.sizes(), t.options()); };
    auto dk = like(k), dv = like(v), dlogits = like(logits);
    const int64_t batch = k.size(0), columns = k.size(2);
    const Pieces pieces(k.size(1), constants.segment);
    auto partial = at::zeros({batch * pieces.count, 4, columns}, k.options());
    AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "segment mixtures", [&] {
      auto work = work_of<scalar_t>(constants, k, v, logits, {saved[3], saved[4], saved[5], saved[6]});
      work.sides[0].cotangent = ctorch::rows<scalar_t>(as_heads(keys_cotangent));
      work.sides[1].cotangent = ctorch::rows<scalar_t>(as_heads(values_cotangent));
      work.sides[0].gradient = result_rows<scalar_t>(dk), work.sides[1].gradient = result_rows<scalar_t>(dv);
      work.logits_gradient = result_rows<scalar_t>(dlogits);
      scalar_t *sums = partial.mutable_data_ptr<scalar_t>();
      for_each_task(batch * pieces.count, [&](int64_t task) {
        DISPATCH(mixture_backward<scalar_t>, work, task / pieces.count, pieces.from(task), pieces.to(task),
                 MixtureNormGradients<scalar_t>(sums + task * 4 * columns, columns));
      });
    });
    // Task by task, so that the order does not depend on the number of threads.
    auto sums = partial[0].clone();
    for (int64_t task = 1; task < partial.size(0); ++task) sums.add_(partial[task]);
    return {dk, dv, dlogits, sums[0], sums[1], sums[2], sums[3], Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_segment_mixtures(ctorch_tensor k, ctorch_tensor v, ctorch_tensor logits, ctorch_tensor mask,
                                                 ctorch_mixture_norms norms, int64_t segment, int64_t rank, int64_t heads,
                                                 ctorch_tensor *values, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tk = get(k), &tv = get(v), &tl = get(logits);
    TORCH_CHECK(segment > 0 && rank > 0 && heads > 0, "segment mixtures need a segment, a rank and heads above 0");
    TORCH_CHECK(tk.dim() == 3 && tk.size(2) > 0 && tk.size(2) % heads == 0 && tv.sizes() == tk.sizes() &&
                    tl.sizes() == at::IntArrayRef({tk.size(0), tk.size(1), heads * rank}),
                "segment mixtures take k and v [batch, length, heads · width] and logits [batch, length, heads · rank], not ",
                tk.sizes(), ", ", tv.sizes(), ", ", tl.sizes());
    TORCH_CHECK(tk.is_cpu() && tv.is_cpu() && tl.is_cpu(), "segment mixtures are a kernel of the CPU");
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == tk.sizes().slice(0, 2)),
                "segment mixtures need a mask of booleans [batch, length], not ", real.sizes());
    // Sums of squares leave half precision's range.
    auto type = at::promote_types(tk.scalar_type(), at::kFloat);
    auto norm = [&](ctorch_tensor t) {
      TORCH_CHECK(get(t).numel() == tk.size(2), "segment mixtures need norms over ", tk.size(2), " channels, not ", get(t).sizes());
      return get(t).to(type).contiguous();
    };
    if (tk.numel() == 0) { // one segment has no mixtures, and none has none either
      const int64_t total = std::max<int64_t>(tk.size(1), 1), mixtures = (total - 1) / segment * rank;
      auto empty = [&](const Tensor &t) {
        return empty_result({t.size(0), t.size(1) + mixtures, t.size(2)}, {t, tl, get(norms.token_gain), get(norms.token_bias),
                                                                          get(norms.mixture_gain), get(norms.mixture_bias)});
      };
      *values = wrap(empty(tv));
      return empty(tk);
    }
    auto wide = [&](const Tensor &t) { return with_rows(t.to(type)); };
    auto result = SegmentMixtures::apply(wide(tk), wide(tv), wide(tl), norm(norms.token_gain), norm(norms.token_bias),
                                         norm(norms.mixture_gain), norm(norms.mixture_bias),
                                         MixtureConstants{real, segment, rank, heads, norms.epsilon});
    *values = wrap(result[1].to(tv.scalar_type()));
    return result[0].to(tk.scalar_type());
  });
}
