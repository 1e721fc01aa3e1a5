// The causal linear family: linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9), momentum attention with a
// fixed momentum (Nguyen et al. 2022, arXiv 2208.00579), and TransNormer's norm attention (Qin et al. 2022, arXiv 2210.10340),
// with the feature map, the division and the backward pass in one.
//
// With w(d) = γ (1 - β^(d+1)) / (1 - β), the weight of a key d positions back,
//   num_i = Σ_{j≤i} w(i-j) (φq_i·φk_j) v_j,   out_i = num_i / norm_i,
//   norm_i = Σ_{j≤i} φq_i·φk_j + ε   or   |num_i| / √values + ε   or   1.
// A chunk of n tokens meets the past through three states only, s, p and z:
//   num = (A ∘ W) V + Q s - diag(b) Q p,   A = Q Kᵀ,  W[r,c] = w(r-c) for c ≤ r,  b[r] = β (1 - β^(r+1)) / (1 - β).
// The backward pass is the same recurrence run from the end over (Q, g) in place of (K, V). Forward keeps the states before
// each chunk: (N / chunk) F M numbers, as many as v has for a chunk as long as F.
//
// A sequence is one task for each head; where there are few heads it is cut into segments, whose sums are taken at once
// and then added up. How many depends on the work alone, so that any number of threads gives the same bits.
#include "causal_linear.hpp"
#include "empty_result.hpp"

#define KERNELS "causal_linear.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

namespace {

constexpr int64_t chunk_size = 64;
/// Tasks that keep every core of a small machine busy.
constexpr int64_t enough_tasks = 8;

} // namespace

/// Plain loops, a token at a time.
namespace ctorch::reference {

template <typename T> struct Token {
  std::vector<T> s, p, z;

  explicit Token(const CausalLinearWork<T> &work) : s(work.matrix()), p(work.matrix()), z(work.features) {}

  void read(const CausalLinearWork<T> &work, StateAt<T> from) {
    std::copy_n(from.s, s.size(), s.begin());
    if (work.momentum) std::copy_n(from.p, p.size(), p.begin());
    std::copy_n(from.z, z.size(), z.begin());
  }
  void write(const CausalLinearWork<T> &work, StateAt<T> to) const {
    std::copy(s.begin(), s.end(), to.s);
    if (work.momentum) std::copy(p.begin(), p.end(), to.p);
    std::copy(z.begin(), z.end(), to.z);
  }
  /// p = β p - γ a bᵀ, s = s - p, z = z + scale a
  void take(const CausalLinearWork<T> &work, const std::vector<T> &a, const std::vector<T> &b, T scale) {
    for (int64_t f = 0; f < work.features; ++f) {
      for (int64_t m = 0; m < work.values; ++m) {
        auto i = static_cast<size_t>(f * work.values + m);
        p[i] = static_cast<T>(work.weights.beta) * p[i] - static_cast<T>(work.weights.gamma) * a[f] * b[m];
        s[i] -= p[i];
      }
      z[f] += scale * a[f];
    }
  }
};

template <typename T>
std::vector<T> mapped(const CausalLinearWork<T> &work, const Rows<const T> &rows, int64_t head, int64_t token) {
  const bool *real = &rows == &work.k ? work.real(head, token) : nullptr;
  std::vector<T> phi(work.features);
  for (int64_t f = 0; f < work.features; ++f)
    phi[f] = real && !*real ? T(0) : feature(work.map, rows.head(head)[token * rows.row + f]);
  return phi;
}
template <typename T>
std::vector<T> values(const CausalLinearWork<T> &work, const Rows<const T> &rows, int64_t head, int64_t token) {
  const T *row = rows.head(head) + token * rows.row;
  return std::vector<T>(row, row + work.values);
}

template <typename T> void linear_segment_sums(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  Token<T> state(work);
  for (int64_t i = work.begin(segment); i < work.begin(segment + 1); ++i)
    state.take(work, mapped(work, work.k, head, i), values(work, work.v, head, i), T(1));
  state.write(work, work.segment(head, segment + 1));
}

template <typename T> void linear_forward(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  Token<T> state(work);
  state.read(work, work.segment(head, segment));
  for (int64_t i = work.begin(segment); i < work.begin(segment + 1); ++i) {
    if (work.keep && i % work.weights.size == 0) state.write(work, work.chunk(head, i / work.weights.size));
    state.take(work, mapped(work, work.k, head, i), values(work, work.v, head, i), T(1));
    auto q = mapped(work, work.q, head, i);
    T *out = work.out.head(head) + i * work.out.row, squares = 0, sum = 0;
    for (int64_t m = 0; m < work.values; ++m) {
      out[m] = 0;
      for (int64_t f = 0; f < work.features; ++f) out[m] += q[f] * state.s[f * work.values + m];
      squares += out[m] * out[m];
    }
    for (int64_t f = 0; f < work.features; ++f) sum += q[f] * state.z[f];
    if (work.normalization == LinearNormalization::none) continue;
    T &norm = work.norm[head * work.length + i];
    norm = work.epsilon + (work.normalization == LinearNormalization::sum ? sum : std::sqrt(squares / static_cast<T>(work.values)));
    for (int64_t m = 0; m < work.values; ++m) out[m] /= norm;
  }
  auto last = work.end_of(head, segment);
  if (last.s) state.write(work, last);
}

/// The cotangents g of the numerator and e of the denominator.
template <typename T> T cotangents(const CausalLinearWork<T> &work, int64_t head, int64_t i, std::vector<T> &g) {
  g = values(work, work.cotangent, head, i);
  if (work.normalization == LinearNormalization::none) return 0;
  const T *out = work.out.head(head) + i * work.out.row, norm = work.norm[head * work.length + i];
  T product = 0;
  for (int64_t m = 0; m < work.values; ++m) product += g[m] * out[m];
  const bool is_sum = work.normalization == LinearNormalization::sum;
  const T root = norm - work.epsilon;
  for (int64_t m = 0; m < work.values; ++m) {
    if (!is_sum && root > 0) g[m] -= out[m] * product * norm / (static_cast<T>(work.values) * root);
    g[m] /= norm;
  }
  return is_sum ? -product / norm : T(0);
}

template <typename T> void linear_segment_cotangents(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  Token<T> later(work);
  std::vector<T> g;
  for (int64_t i = work.begin(segment + 1) - 1; i >= work.begin(segment); --i) {
    const T e = cotangents(work, head, i, g);
    later.take(work, mapped(work, work.q, head, i), g, e);
  }
  later.write(work, work.segment(head, segment));
}

template <typename T> void linear_backward(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  Token<T> later(work);
  later.read(work, work.segment(head, segment + 1));
  std::vector<T> g;
  for (int64_t start = work.last_chunk(segment); start >= work.begin(segment); start -= work.weights.size) {
    const int64_t end = std::min(work.begin(segment + 1), start + work.weights.size);
    std::vector<Token<T>> states;
    Token<T> state(work);
    state.read(work, work.chunk(head, start / work.weights.size));
    for (int64_t i = start; i < end; ++i) {
      state.take(work, mapped(work, work.k, head, i), values(work, work.v, head, i), T(1));
      states.push_back(state);
    }
    for (int64_t i = end - 1; i >= start; --i) {
      const auto &before = states[i - start];
      auto q = mapped(work, work.q, head, i), k = mapped(work, work.k, head, i), v = values(work, work.v, head, i);
      const T e = cotangents(work, head, i, g);
      later.take(work, q, g, e);
      const bool real = !work.mask || *work.real(head, i);
      const T *x = work.q.head(head) + i * work.q.row, *y = work.k.head(head) + i * work.k.row;
      for (int64_t f = 0; f < work.features; ++f) {
        T dq = e * before.z[f], dk = later.z[f];
        for (int64_t m = 0; m < work.values; ++m) {
          dq += g[m] * before.s[f * work.values + m];
          dk += v[m] * later.s[f * work.values + m];
        }
        work.dq.head(head)[i * work.dq.row + f] = dq * feature_slope(work.map, x[f]);
        work.dk.head(head)[i * work.dk.row + f] = real ? dk * feature_slope(work.map, y[f]) : T(0);
      }
      for (int64_t m = 0; m < work.values; ++m) {
        T dv = 0;
        for (int64_t f = 0; f < work.features; ++f) dv += k[f] * later.s[f * work.values + m];
        work.dv.head(head)[i * work.dv.row + m] = dv;
      }
    }
  }
}

} // namespace ctorch::reference

namespace {

/// The arrays of ChunkWeights in one tensor.
template <typename T> struct WeightTable {
  std::vector<T> numbers;
  ChunkWeights<T> weights;

  WeightTable(double beta, double gamma, int64_t size) : numbers(static_cast<size_t>(7 * size + 16)), weights() {
    T *next = numbers.data();
    auto array = [&](int64_t count, auto value) {
      T *start = next;
      for (int64_t i = 0; i < count; ++i) *next++ = static_cast<T>(value(i));
      return start;
    };
    weights.beta = beta;
    weights.gamma = gamma;
    weights.size = size;
    weights.lagged = array(size + 16, [&](int64_t i) { return i < size ? gamma * geometric_sum(beta, size - i) : 0.0; });
    weights.by_lag = array(size, [&](int64_t d) { return gamma * geometric_sum(beta, d + 1); });
    weights.powers = array(size, [&](int64_t d) { return std::pow(beta, static_cast<double>(d)); });
    weights.from_start = array(size, [&](int64_t r) { return beta * geometric_sum(beta, r + 1); });
    weights.to_end = array(size, [&](int64_t c) { return beta * geometric_sum(beta, size - c); });
    weights.key_s = array(size, [&](int64_t c) { return gamma * geometric_sum(beta, size - c); });
    weights.key_p = array(size, [&](int64_t c) { return std::pow(beta, static_cast<double>(size - 1 - c)); });
  }
};

/// `to` += what is left of the state `from` after `tokens` tokens that bring nothing.
template <typename T> void add_carried(const CausalLinearWork<T> &work, StateAt<T> from, StateAt<T> to, int64_t tokens) {
  const T from_p = static_cast<T>(-work.weights.beta * work.weights.geometric(tokens));
  const T kept = static_cast<T>(std::pow(work.weights.beta, static_cast<double>(tokens)));
  for (int64_t i = 0; i < work.matrix(); ++i) {
    to.s[i] += from.s[i];
    if (!work.momentum) continue;
    to.s[i] += from_p * from.p[i];
    to.p[i] += kept * from.p[i];
  }
  for (int64_t i = 0; i < work.features; ++i) to.z[i] += from.z[i];
}

template <typename T>
CausalLinearWork<T> work_of(const LinearSettings &settings, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &mask,
                            const ChunkWeights<T> &weights) {
  CausalLinearWork<T> work{};
  work.map = settings.map;
  work.normalization = settings.normalization;
  work.momentum = settings.momentum();
  work.epsilon = static_cast<T>(settings.epsilon);
  work.heads = q.size(1);
  work.length = q.size(2);
  work.features = q.size(3);
  work.values = v.size(3);
  const int64_t rows = q.size(0) * q.size(1), chunks = (work.length + chunk_size - 1) / chunk_size;
  work.segments = rows >= enough_tasks ? 1 : std::min((enough_tasks + rows - 1) / rows, chunks);
  work.segment_length = (chunks + work.segments - 1) / work.segments * chunk_size;
  work.segments = (work.length + work.segment_length - 1) / work.segment_length;
  work.weights = weights;
  work.q = ctorch::rows<T>(q), work.k = ctorch::rows<T>(k), work.v = ctorch::rows<T>(v);
  work.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  return work;
}

/// Inputs without a gradient: as a struct, autograd passes them over, and `mask` may be undefined.
struct Constants {
  Tensor mask, initial;
};

struct CausalLinear : torch::autograd::Function<CausalLinear> {
  /// Returns out, and the last states of all heads in one tensor [batch heads, state].
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &q, const Tensor &k,
                                                const Tensor &v, Constants constants, LinearSettings settings) {
    const auto &[mask, initial] = constants;
    const bool keep = q.requires_grad() || k.requires_grad() || v.requires_grad();
    const int64_t rows = q.size(0) * q.size(1), length = q.size(2);
    auto out = at::empty({q.size(0), length, q.size(1), v.size(3)}, v.options()).transpose(1, 2);
    auto norm = at::empty({settings.normalization == LinearNormalization::none ? 0 : rows, length}, q.options());
    auto final_state = at::empty_like(initial);
    Tensor chunk_state;
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "causal linear attention", [&] {
      WeightTable<scalar_t> table(settings.beta, settings.gamma, chunk_size);
      auto work = work_of<scalar_t>(settings, q, k, v, mask, table.weights);
      work.keep = keep;
      work.out = mutable_rows<scalar_t>(out);
      work.norm = norm.mutable_data_ptr<scalar_t>();
      chunk_state = at::empty({keep ? rows : 0, work.chunks(), work.state_size()}, q.options());
      auto segment_state = at::empty({rows, work.segments + 1, work.state_size()}, q.options());
      segment_state.select(1, 0).copy_(initial);
      work.chunk_state = chunk_state.mutable_data_ptr<scalar_t>();
      work.segment_state = segment_state.mutable_data_ptr<scalar_t>();
      work.final_state = final_state.mutable_data_ptr<scalar_t>();
      if (work.segments > 1) {
        for_each_task(rows * (work.segments - 1), [&](int64_t task) {
          DISPATCH(linear_segment_sums<scalar_t>, work, task / (work.segments - 1), task % (work.segments - 1));
        });
        for (int64_t head = 0; head < rows; ++head)
          for (int64_t i = 1; i < work.segments; ++i)
            add_carried(work, work.segment(head, i - 1), work.segment(head, i), work.segment_length);
      }
      for_each_task(rows * work.segments, [&](int64_t task) {
        DISPATCH(linear_forward<scalar_t>, work, task / work.segments, task % work.segments);
      });
    });
    if (keep) {
      context->save_for_backward({q, k, v, mask, out, norm, chunk_state});
      context->saved_data["map"] = static_cast<int64_t>(settings.map);
      context->saved_data["normalization"] = static_cast<int64_t>(settings.normalization);
      context->saved_data["beta"] = settings.beta;
      context->saved_data["gamma"] = settings.gamma;
      context->saved_data["epsilon"] = settings.epsilon;
    }
    context->mark_non_differentiable({final_state});
    return {out, final_state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "causal linear attention cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2], &mask = saved[3], &out = saved[4], &norm = saved[5], &chunk_state = saved[6];
    auto &data = context->saved_data;
    LinearSettings settings{static_cast<FeatureMap>(data["map"].toInt()),
                            static_cast<LinearNormalization>(data["normalization"].toInt()), data["beta"].toDouble(),
                            data["gamma"].toDouble(), data["epsilon"].toDouble()};
    auto cotangent = with_rows(grads[0]);
    auto dq = heads_side_by_side(q), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "causal linear attention", [&] {
      WeightTable<scalar_t> table(settings.beta, settings.gamma, chunk_size);
      auto work = work_of<scalar_t>(settings, q, k, v, mask, table.weights);
      const int64_t rows = q.size(0) * q.size(1);
      work.cotangent = ctorch::rows<scalar_t>(cotangent);
      work.out = mutable_rows<scalar_t>(out);
      work.dq = mutable_rows<scalar_t>(dq), work.dk = mutable_rows<scalar_t>(dk), work.dv = mutable_rows<scalar_t>(dv);
      work.norm = norm.mutable_data_ptr<scalar_t>();
      auto segment_state = at::zeros({rows, work.segments + 1, work.state_size()}, q.options());
      work.chunk_state = chunk_state.mutable_data_ptr<scalar_t>();
      work.segment_state = segment_state.mutable_data_ptr<scalar_t>();
      if (work.segments > 1) {
        for_each_task(rows * (work.segments - 1), [&](int64_t task) {
          DISPATCH(linear_segment_cotangents<scalar_t>, work, task / (work.segments - 1), 1 + task % (work.segments - 1));
        });
        for (int64_t head = 0; head < rows; ++head)
          for (int64_t i = work.segments - 1; i > 0; --i)
            add_carried(work, work.segment(head, i + 1), work.segment(head, i), work.begin(i + 1) - work.begin(i));
      }
      for_each_task(rows * work.segments, [&](int64_t task) {
        DISPATCH(linear_backward<scalar_t>, work, task / work.segments, task % work.segments);
      });
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

std::pair<Tensor, Tensor> attend(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &mask, const Tensor &initial,
                                 const LinearSettings &settings) {
  if (v.numel() == 0) return {empty_result(v.sizes(), {v, q, k}), initial.detach().clone()};
  if (!q.is_cpu()) return composed_causal_linear(q, k, v, mask, initial, settings);
  auto result = CausalLinear::apply(with_rows(q), with_rows(k), with_rows(v), Constants{mask, initial}, settings);
  return {result[0], result[1].detach()};
}

} // namespace

extern "C" ctorch_tensor ctorch_causal_linear(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask,
                                              ctorch_linear_options options, ctorch_linear_state initial,
                                              ctorch_linear_state *final, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tq = get(q), &tk = get(k), &tv = get(v);
    TORCH_CHECK(tq.dim() == 4 && tk.dim() == 4 && tv.dim() == 4, "causal linear attention takes q, k, v of rank 4, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.sizes() == tk.sizes() && tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3),
                "causal linear attention needs φ(q) and φ(k) of one shape and v of the same batch, heads and length, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.size(3) > 0 && tv.size(3) > 0, "causal linear attention needs at least one feature and one value a head, not ",
                tq.sizes(), ", ", tv.sizes());
    TORCH_CHECK(options.momentum >= 0 && options.momentum < 1, "causal linear attention needs 0 <= momentum < 1");
    LinearSettings settings{static_cast<FeatureMap>(options.feature_map),
                            static_cast<LinearNormalization>(options.normalization), options.momentum, options.step_size,
                            options.epsilon};
    const int64_t batch = tq.size(0), heads = tq.size(1), features = tq.size(3), values = tv.size(3);
    // Sums over the sequence leave half precision's range.
    auto type = at::promote_types(at::promote_types(tq.scalar_type(), tv.scalar_type()), at::kFloat);
    auto part = [&](ctorch_tensor given, int64_t size) {
      return given ? get(given).to(type).reshape({batch * heads, size})
                   : at::zeros({batch * heads, size}, tq.options().dtype(type));
    };
    std::vector<Tensor> parts{part(initial.s, features * values)};
    if (settings.momentum()) parts.push_back(part(initial.p, features * values));
    parts.push_back(part(initial.z, features));
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == at::IntArrayRef({batch, tq.size(2)})),
                "causal linear attention needs a mask of booleans [batch, length], not ", real.sizes());
    auto [out, state] = attend(tq.to(type), tk.to(type), tv.to(type), real, at::cat(parts, 1), settings);
    if (final) {
      auto matrix = [&](int64_t index) {
        return wrap(state.narrow(1, index * features * values, features * values).reshape({batch, heads, features, values}));
      };
      final->s = matrix(0);
      final->p = settings.momentum() ? matrix(1) : nullptr;
      final->z = wrap(state.narrow(1, state.size(1) - features, features).reshape({batch, heads, features}));
    }
    return out.to(tv.scalar_type());
  });
}
