// Keys and values with a summary of each span of them behind, as Combiner attention looks at them (Ren et al. 2021, arXiv
// 2107.05768):
//
//   q̄_s = pool_{j∈s} a_j,   k̄_s = pool_{j∈s} b_j,   v̄_s = Σ_{j∈s} w_j v_j,   w = softmax_{j∈s}(scale q̄_s·k_j)
//
// and the results are [k; k̄] and [v; v̄]. The backward pass makes w again, and with dl_j = scale w_j (dv̄·v_j - Σ_i w_i dv̄·v_i):
//   dv_j = dv'_j + w_j dv̄,   dk_j = dk'_j + dl_j q̄,   dq̄ = Σ_j dl_j k_j,
// and pooling hands dq̄ and dk̄ back to a and b: to the largest (in equal parts where several are), or to all.
#include "span_summaries.hpp"
#include "empty_result.hpp"

#define KERNELS "span_summaries.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops, a column at a time.
namespace ctorch::reference {

template <typename T> struct PlainSpan {
  const SpanWork<T> &work;
  int64_t head, start, end;
  std::vector<int64_t> members;
  std::vector<T> query, key, weights;

  PlainSpan(const SpanWork<T> &work, int64_t head, int64_t index)
      : work(work), head(head), start(work.begin(index)), end(work.begin(index + 1)) {
    for (int64_t j = start; j < end; ++j)
      if (!work.mask || work.real(head, 0)[j]) members.push_back(j);
    query = pooled(work.a);
    key = pooled(work.b);
    T sum = 0, peak = -INFINITY;
    for (int64_t j : members) {
      T score = 0;
      for (int64_t c = 0; c < work.features; ++c) score += work.scale * query[c] * at(work.k, j)[c];
      weights.push_back(score);
      peak = std::max(peak, score);
    }
    for (T &w : weights) sum += w = std::exp(w - peak);
    for (T &w : weights) w /= sum;
  }

  template <typename U> U *at(const Rows<U> &rows, int64_t j) const { return rows.head(head) + j * rows.row; }

  std::vector<T> pooled(const Rows<const T> &rows) const {
    std::vector<T> result(work.features, T(0));
    for (int64_t c = 0; c < work.features && !members.empty(); ++c) {
      T sum = 0, largest = -INFINITY;
      for (int64_t j : members) sum += at(rows, j)[c], largest = std::max(largest, at(rows, j)[c]);
      result[c] = work.pool == SpanPool::max ? largest : work.pool == SpanPool::sum ? sum : sum / static_cast<T>(members.size());
    }
    return result;
  }

  void unpool(const Rows<const T> &rows, const std::vector<T> &best, const T *gradient, const Rows<T> &to) const {
    for (int64_t c = 0; c < work.features; ++c) {
      T equal = 0;
      for (int64_t j : members) equal += at(rows, j)[c] == best[c];
      for (int64_t j : members) {
        if (work.pool == SpanPool::sum) at(to, j)[c] += gradient[c];
        if (work.pool == SpanPool::mean) at(to, j)[c] += gradient[c] / static_cast<T>(members.size());
        if (work.pool == SpanPool::max && at(rows, j)[c] == best[c]) at(to, j)[c] += gradient[c] / equal;
      }
    }
  }
};

template <typename T> void span_forward(const SpanWork<T> &work, int64_t head, int64_t from, int64_t to) {
  for (int64_t index = from; index < to; ++index) {
    const PlainSpan<T> span(work, head, index);
    for (int64_t j = span.start; j < span.end; ++j) {
      std::copy_n(span.at(work.k, j), work.features, span.at(work.out_keys, j));
      std::copy_n(span.at(work.v, j), work.values, span.at(work.out_values, j));
    }
    std::copy(span.key.begin(), span.key.end(), span.at(work.out_keys, work.length + index));
    T *value = span.at(work.out_values, work.length + index);
    std::fill_n(value, work.values, T(0));
    for (size_t m = 0; m < span.members.size(); ++m)
      for (int64_t c = 0; c < work.values; ++c) value[c] += span.weights[m] * span.at(work.v, span.members[m])[c];
  }
}

template <typename T> void span_backward(const SpanWork<T> &work, int64_t head, int64_t from, int64_t to) {
  for (int64_t index = from; index < to; ++index) {
    const PlainSpan<T> span(work, head, index);
    const auto &pooled_keys = work.pools_keys ? work.dk : work.db;
    for (int64_t j = span.start; j < span.end; ++j) {
      std::copy_n(span.at(work.keys_cotangent, j), work.features, span.at(work.dk, j));
      std::copy_n(span.at(work.values_cotangent, j), work.values, span.at(work.dv, j));
      std::fill_n(span.at(work.da, j), work.features, T(0));
      if (!work.pools_keys) std::fill_n(span.at(work.db, j), work.features, T(0));
    }
    const T *dvalue = span.at(work.values_cotangent, work.length + index);
    std::vector<T> slopes, dquery(work.features, T(0));
    T mean = 0;
    for (size_t m = 0; m < span.members.size(); ++m) {
      T slope = 0;
      for (int64_t c = 0; c < work.values; ++c) slope += dvalue[c] * span.at(work.v, span.members[m])[c];
      slopes.push_back(slope);
      mean += slope * span.weights[m];
    }
    for (size_t m = 0; m < span.members.size(); ++m) {
      const int64_t j = span.members[m];
      const T slope = work.scale * span.weights[m] * (slopes[m] - mean);
      for (int64_t c = 0; c < work.values; ++c) span.at(work.dv, j)[c] += span.weights[m] * dvalue[c];
      for (int64_t c = 0; c < work.features; ++c) {
        span.at(work.dk, j)[c] += slope * span.query[c];
        dquery[c] += slope * span.at(work.k, j)[c];
      }
    }
    span.unpool(work.a, span.query, dquery.data(), work.da);
    span.unpool(work.b, span.key, span.at(work.keys_cotangent, work.length + index), pooled_keys);
  }
}

} // namespace ctorch::reference

namespace {

/// Tokens that make a task worth its while.
constexpr int64_t task_tokens = 256;

/// What is not differentiated: as a struct, autograd passes it over, and `mask` may be undefined.
struct SpanConstants {
  Tensor mask;
  int64_t span;
  SpanPool pool;
  double scale;
  bool pools_keys;
};

template <typename T>
SpanWork<T> work_of(const SpanConstants &constants, const Tensor &a, const Tensor &b, const Tensor &k, const Tensor &v) {
  SpanWork<T> work{};
  work.pool = constants.pool;
  work.scale = static_cast<T>(constants.scale);
  work.heads = k.size(1);
  work.length = k.size(2);
  work.span = constants.span;
  work.spans = (work.length + work.span - 1) / work.span;
  work.features = k.size(3);
  work.values = v.size(3);
  work.pools_keys = constants.pools_keys;
  work.a = ctorch::rows<T>(a), work.b = ctorch::rows<T>(b), work.k = ctorch::rows<T>(k), work.v = ctorch::rows<T>(v);
  work.mask = constants.mask.defined() ? constants.mask.const_data_ptr<bool>() : nullptr;
  return work;
}

/// Calls body(head, from, to) for pieces of all heads' spans.
template <typename T>
void for_each_piece(const SpanWork<T> &work, int64_t heads, c10::function_ref<void(int64_t, int64_t, int64_t)> body) {
  const int64_t size = std::max<int64_t>(1, task_tokens / work.span), pieces = (work.spans + size - 1) / size;
  for_each_task(heads * pieces, [&](int64_t task) {
    const int64_t from = task % pieces * size;
    body(task / pieces, from, std::min(work.spans, from + size));
  });
}

struct SpanSummaries : torch::autograd::Function<SpanSummaries> {
  /// Returns keys and values; `b` is `k` where keys themselves are pooled.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &a, const Tensor &b,
                                                const Tensor &k, const Tensor &v, SpanConstants constants) {
    const int64_t rows = k.size(0) * k.size(1), total = k.size(2) + (k.size(2) + constants.span - 1) / constants.span;
    auto keys = at::empty({k.size(0), k.size(1), total, k.size(3)}, k.options());
    auto values = at::empty({v.size(0), v.size(1), total, v.size(3)}, v.options());
    AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "span summaries", [&] {
      auto work = work_of<scalar_t>(constants, a, b, k, v);
      work.out_keys = mutable_rows<scalar_t>(keys), work.out_values = mutable_rows<scalar_t>(values);
      for_each_piece<scalar_t>(work, rows, [&](int64_t head, int64_t from, int64_t to) {
        DISPATCH(span_forward<scalar_t>, work, head, from, to);
      });
    });
    context->save_for_backward({a, b, k, v, constants.mask});
    context->saved_data["span"] = constants.span;
    context->saved_data["pool"] = static_cast<int64_t>(constants.pool);
    context->saved_data["scale"] = constants.scale;
    context->saved_data["pools_keys"] = constants.pools_keys;
    return {keys, values};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "span summaries cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &a = saved[0], &b = saved[1], &k = saved[2], &v = saved[3];
    auto &data = context->saved_data;
    SpanConstants constants{saved[4], data["span"].toInt(), static_cast<SpanPool>(data["pool"].toInt()), data["scale"].toDouble(),
                            data["pools_keys"].toBool()};
    auto keys_cotangent = with_rows(grads[0]), values_cotangent = with_rows(grads[1]);
    auto da = heads_side_by_side(a), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    auto db = constants.pools_keys ? Tensor() : heads_side_by_side(b);
    AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "span summaries", [&] {
      auto work = work_of<scalar_t>(constants, a, b, k, v);
      work.keys_cotangent = ctorch::rows<scalar_t>(keys_cotangent);
      work.values_cotangent = ctorch::rows<scalar_t>(values_cotangent);
      work.da = mutable_rows<scalar_t>(da), work.dk = mutable_rows<scalar_t>(dk), work.dv = mutable_rows<scalar_t>(dv);
      if (db.defined()) work.db = mutable_rows<scalar_t>(db);
      for_each_piece<scalar_t>(work, k.size(0) * k.size(1), [&](int64_t head, int64_t from, int64_t to) {
        DISPATCH(span_backward<scalar_t>, work, head, from, to);
      });
    });
    return {da, db, dk, dv, Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_span_summaries(ctorch_tensor a, ctorch_tensor b, ctorch_tensor k, ctorch_tensor v,
                                               ctorch_tensor mask, int64_t span, int32_t pool, double scale, ctorch_tensor *values,
                                               ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tk = get(k), &tv = get(v), &ta = get(a), &tb = b ? get(b) : tk;
    TORCH_CHECK(tk.dim() == 4 && tv.dim() == 4 && ta.sizes() == tk.sizes() && tb.sizes() == tk.sizes() &&
                    tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3),
                "span summaries take a, b and k of one shape of rank 4 and v of the same batch, heads and length, not ", ta.sizes(),
                ", ", tb.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tk.size(3) > 0 && tv.size(3) > 0, "span summaries need at least one feature and one value a head, not ", tk.sizes(),
                ", ", tv.sizes());
    TORCH_CHECK(tk.is_cpu() && tv.is_cpu() && ta.is_cpu() && tb.is_cpu(), "span summaries are a kernel of the CPU");
    TORCH_CHECK(span > 0 && pool >= 0 && pool <= 2, "span summaries need a span above 0 and a pool from 0 to 2");
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == at::IntArrayRef({tk.size(0), tk.size(2)})),
                "span summaries need a mask of booleans [batch, length], not ", real.sizes());
    if (tk.numel() == 0) {
      const int64_t total = tk.size(2) + (tk.size(2) + span - 1) / span;
      auto empty = [&](const Tensor &t) { return empty_result({t.size(0), t.size(1), total, t.size(3)}, {t, ta, tb, tk, tv}); };
      *values = wrap(empty(tv));
      return empty(tk);
    }
    // Sums of exponentials leave half precision's range.
    auto type = at::promote_types(at::promote_types(tk.scalar_type(), tv.scalar_type()), at::kFloat);
    auto wide = [&](const Tensor &t) { return with_rows(t.to(type)); };
    auto keys = wide(tk);
    SpanConstants constants{real, span, static_cast<SpanPool>(pool), scale, b == nullptr};
    auto result = SpanSummaries::apply(wide(ta), b ? wide(tb) : keys, keys, wide(tv), constants);
    *values = wrap(result[1].to(tv.scalar_type()));
    return result[0].to(tk.scalar_type());
  });
}
