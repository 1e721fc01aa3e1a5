// Softmax attention over ranges of keys: windows, blocks, global tokens, n-grams, and what else a few ranges for each query say.
//
//   s_ij = scale q_i·k_j,   p_ij = exp(s_ij - peak_i) / Σ_j exp(s_ij - peak_i),   out_i = Σ_j p_ij v_j
//
// over the keys j of the query's ranges that the mask leaves. Forward keeps out, the peaks and the sums; the backward pass
// computes the scores again:
//   dv_j = Σ_i p_ij dout_i,   ds_ij = p_ij (dout_i·v_j - dout_i·out_i),   dq_i = scale Σ_j ds_ij k_j,   dk_j = scale Σ_i ds_ij q_i
//
// Distances may count, as in Transformer-XL. With d how far key j is from the last of the range that query i sees it in,
//   s_ij = scale q_i·(k_j + R_d) + a_j + c_d,
//   dq_i = scale Σ_j ds_ij (k_j + R_d),   da_j = Σ_i ds_ij,   dR_d = scale Σ_ij ds_ij q_i and dc_d = Σ_ij ds_ij over the pairs at d,
// where every range has a table R and c of its own.
//
// A block of 64 queries walks the tiles of 64 keys that its ranges touch (interval_attention_plan.cpp), and goes into single pairs only
// in tiles that some of its queries do not see whole. Backward does so once for all five products, summing the gradients of keys in
// slots that are written out with the last block that meets them. A head is one task, or, where there are few heads, several
// segments of blocks; tiles that several of them meet are summed up at the end, and so is what each task has for the tables. How
// many depends on the work alone, so that any number of threads gives the same bits.
#include "interval_distances.hpp"

#define KERNELS "interval_attention.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops, a query at a time.
namespace ctorch::reference {

/// Calls body(j, s_ij, place) for the keys that query i sees; `place` is where the tables have the pair's distance.
template <typename T, typename Body>
void for_each_key(const IntervalWork<T> &work, const Intervals &intervals, int64_t head, int64_t i, Body body) {
  const auto &distances = work.distances;
  const bool *real = work.real(head);
  const T *q = work.q.head(head) + i * work.q.row;
  for (int64_t range = 0; range < intervals.ranges; ++range)
    for (int64_t j = intervals.start(range, i); j < intervals.end(range, i); ++j) {
      if (real && !real[j]) continue;
      const T *k = work.k.head(head) + j * work.k.row;
      T score = 0;
      for (int64_t c = 0; c < work.features; ++c) score += q[c] * k[c];
      if (!distances.rows) {
        body(j, score * work.scale, int64_t(0));
        continue;
      }
      const int64_t place = distances.origin(intervals, range, i) + j;
      const T *r = distances.row_of(head % work.heads, place);
      for (int64_t c = 0; c < work.features; ++c) score += q[c] * r[c];
      const T added = distances.bias[head % work.heads * distances.turned_row + place] + distances.key_bias[head * work.keys + j];
      body(j, score * work.scale + added, place);
    }
}

template <typename T>
void interval_forward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const auto &intervals = plan.intervals;
  const int64_t from = plan.segment_begin[segment] * interval_tile, to = plan.segment_begin[segment + 1] * interval_tile;
  for (int64_t i = from; i < std::min(to, work.queries); ++i) {
    T peak = -INFINITY, sum = 0;
    for_each_key(work, intervals, head, i, [&](int64_t, T score, int64_t) { peak = std::max(peak, score); });
    T *out = work.out.head(head) + i * work.out.row;
    std::fill_n(out, work.values, T(0));
    for_each_key(work, intervals, head, i, [&](int64_t j, T score, int64_t) {
      const T weight = std::exp(score - peak);
      sum += weight;
      for (int64_t c = 0; c < work.values; ++c) out[c] += weight * (work.v.head(head) + j * work.v.row)[c];
    });
    const bool blind = sum == 0;
    work.peak[head * work.queries + i] = blind ? T(INFINITY) : peak;
    work.inverse_sum[head * work.queries + i] = blind ? T(0) : 1 / sum;
    for (int64_t c = 0; c < work.values; ++c) out[c] *= blind ? T(0) : 1 / sum;
  }
}

/// What the slope of one score gives to what distances and keys added to it.
template <typename T>
void add_to_distances(const IntervalWork<T> &work, int64_t task, int64_t head, int64_t i, int64_t j, int64_t place, T slope) {
  const auto &distances = work.distances;
  const T *q = work.q.head(head) + i * work.q.row, *r = distances.row_of(head % work.heads, place);
  T *dq = work.dq.head(head) + i * work.dq.row, *dr = distances.d_rows + (task * distances.places + place) * distances.row;
  distances.d_key_bias[head * work.keys + j] += slope;
  distances.d_bias[task * distances.places + place] += slope;
  for (int64_t c = 0; c < work.features; ++c) dq[c] += slope * work.scale * r[c], dr[c] += slope * work.scale * q[c];
}

/// All of a head at once.
template <typename T> void interval_backward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  if (segment > 0) return;
  const auto &intervals = plan.intervals;
  if (work.distances.rows) std::fill_n(work.distances.d_key_bias + head * work.keys, work.keys, T(0));
  for (int64_t j = 0; j < work.keys; ++j) {
    std::fill_n(work.dk.head(head) + j * work.dk.row, work.features, T(0));
    std::fill_n(work.dv.head(head) + j * work.dv.row, work.values, T(0));
  }
  for (int64_t i = 0; i < work.queries; ++i) {
    const T *cotangent = work.cotangent.head(head) + i * work.cotangent.row, *out = work.out.head(head) + i * work.out.row;
    const T *q = work.q.head(head) + i * work.q.row;
    const T peak = work.peak[head * work.queries + i], inverse = work.inverse_sum[head * work.queries + i];
    T *dq = work.dq.head(head) + i * work.dq.row, delta = 0;
    std::fill_n(dq, work.features, T(0));
    for (int64_t c = 0; c < work.values; ++c) delta += cotangent[c] * out[c];
    for_each_key(work, intervals, head, i, [&](int64_t j, T score, int64_t place) {
      const T weight = std::exp(score - peak) * inverse;
      const T *k = work.k.head(head) + j * work.k.row, *v = work.v.head(head) + j * work.v.row;
      T *dk = work.dk.head(head) + j * work.dk.row, *dv = work.dv.head(head) + j * work.dv.row, slope = 0;
      for (int64_t c = 0; c < work.values; ++c) slope += cotangent[c] * v[c], dv[c] += weight * cotangent[c];
      slope = weight * (slope - delta);
      if (work.distances.rows) add_to_distances(work, head * plan.segments(), head, i, j, place, slope);
      slope *= work.scale;
      for (int64_t c = 0; c < work.features; ++c) dq[c] += slope * k[c], dk[c] += slope * q[c];
    });
  }
}

template <typename T> void interval_finish(const IntervalWork<T> &, const IntervalPlan &, int64_t) {}

} // namespace ctorch::reference

namespace {

/// Inputs without a gradient: as a struct, autograd passes them over, and `mask` may be undefined.
struct Constants {
  Tensor intervals, mask;
  double scale;
  std::vector<int64_t> counts; // of distances, for each range
};

/// Tasks that keep the cores of a machine busy, with some to choose from; backward, whose tasks share sums, takes fewer.
constexpr int64_t forward_tasks = 64, backward_tasks = 16;

/// The walk of each head that has ranges of its own, or of all.
std::vector<IntervalPlan> plans_of(const Tensor &intervals, int64_t rows, int64_t keys, int64_t tasks) {
  const int64_t heads = intervals.size(0), ranges = intervals.size(1), queries = intervals.size(2);
  const int32_t *data = intervals.const_data_ptr<int32_t>();
  std::vector<std::optional<IntervalPlan>> found(static_cast<size_t>(heads));
  for_each_task(heads, [&](int64_t head) {
    found[head].emplace(Intervals{data + head * ranges * queries * 2, ranges, queries, keys}, (tasks + rows - 1) / std::max<int64_t>(rows, 1));
  });
  std::vector<IntervalPlan> plans;
  for (auto &plan : found) plans.push_back(std::move(*plan));
  return plans;
}

/// Calls body(plan, head, segment) for all of them, as tasks.
template <typename Body> void for_each_segment(const std::vector<IntervalPlan> &plans, int64_t rows, Body body) {
  if (rows == 0) return;
  const int64_t segments = plans[0].segments(), heads = static_cast<int64_t>(plans.size());
  for_each_task(rows * segments, [&](int64_t task) { body(plans[task / segments % heads], task / segments, task % segments); });
}

template <typename T>
IntervalWork<T> work_of(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &mask, double scale, Tensor &statistics) {
  IntervalWork<T> work{};
  work.heads = q.size(1);
  work.queries = q.size(2);
  work.keys = k.size(2);
  work.features = q.size(3);
  work.values = v.size(3);
  work.scale = static_cast<T>(scale);
  work.q = ctorch::rows<T>(q), work.k = ctorch::rows<T>(k), work.v = ctorch::rows<T>(v);
  work.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  work.peak = statistics.mutable_data_ptr<T>();
  work.inverse_sum = work.peak + statistics.stride(0);
  return work;
}

using OptionalTensor = std::optional<Tensor>;

struct IntervalAttention : torch::autograd::Function<IntervalAttention> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &q, const Tensor &k, const Tensor &v,
                        const OptionalTensor &given_table, const OptionalTensor &given_bias, const OptionalTensor &given_key_bias,
                        Constants constants) {
    const auto none = Tensor();
    const auto table = given_table.value_or(none), bias = given_bias.value_or(none), key_bias = given_key_bias.value_or(none);
    const int64_t rows = q.size(0) * q.size(1), queries = q.size(2);
    auto out = at::empty({q.size(0), queries, q.size(1), v.size(3)}, v.options()).transpose(1, 2);
    auto statistics = at::empty({2, rows, queries}, q.options());
    const DistanceTables tables(table, bias, key_bias, constants.counts);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "interval attention", [&] {
      auto work = work_of<scalar_t>(q, k, v, constants.mask, constants.scale, statistics);
      work.out = mutable_rows<scalar_t>(out);
      work.distances = tables.distances<scalar_t>();
      for_each_segment(plans_of(constants.intervals, rows, work.keys, forward_tasks), rows,
                       [&](const IntervalPlan &plan, int64_t head, int64_t segment) {
                         DISPATCH(interval_forward<scalar_t>, work, plan, head, segment);
                       });
    });
    const auto wants = [](const Tensor &x) { return x.defined() && x.requires_grad(); };
    if (wants(q) || wants(k) || wants(v) || wants(table) || wants(bias) || wants(key_bias)) {
      context->save_for_backward({q, k, v, constants.intervals, constants.mask, out, statistics, table, bias, key_bias});
      context->saved_data["scale"] = constants.scale;
      context->saved_data["counts"] = constants.counts;
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "attention over intervals cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2], &intervals = saved[3], &mask = saved[4], &out = saved[5], &statistics = saved[6];
    auto cotangent = with_rows(grads[0]);
    auto dq = heads_side_by_side(q), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    DistanceTables tables(saved[7], saved[8], saved[9], context->saved_data["counts"].toIntVector());
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "interval attention", [&] {
      auto work = work_of<scalar_t>(q, k, v, mask, context->saved_data["scale"].toDouble(), statistics);
      work.cotangent = ctorch::rows<scalar_t>(cotangent);
      work.out = mutable_rows<scalar_t>(out);
      work.dq = mutable_rows<scalar_t>(dq), work.dk = mutable_rows<scalar_t>(dk), work.dv = mutable_rows<scalar_t>(dv);
      const int64_t rows = q.size(0) * q.size(1);
      const auto plans = plans_of(intervals, rows, work.keys, backward_tasks);
      for (const auto &plan : plans) work.partials = std::max(work.partials, plan.partials);
      auto partial = at::empty({rows, work.partials, work.partial_size()}, q.options());
      work.partial = partial.mutable_data_ptr<scalar_t>();
      if (rows > 0) tables.prepare_gradients(plans[0].segments());
      work.distances = tables.distances<scalar_t>();
      for_each_segment(plans, rows, [&](const IntervalPlan &plan, int64_t head, int64_t segment) {
        DISPATCH(interval_backward<scalar_t>, work, plan, head, segment);
      });
      for_each_task(rows, [&](int64_t head) {
        DISPATCH(interval_finish<scalar_t>, work, plans[head % plans.size()], head);
      });
    });
    return {dq, dk, dv, tables.table_gradient(), tables.bias_gradient(), tables.d_key_bias, Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_interval_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor intervals,
                                                   ctorch_tensor key_mask, double scale, const ctorch_interval_distances *distances,
                                                   ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tq = get(q), &tk = get(k), &tv = get(v), &given = get(intervals);
    TORCH_CHECK(tq.dim() == 4 && tk.dim() == 4 && tv.dim() == 4, "attention over intervals takes q, k, v of rank 4, not ", tq.sizes(),
                ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.sizes().slice(0, 2) == tk.sizes().slice(0, 2) && tq.size(3) == tk.size(3) &&
                    tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3),
                "attention over intervals needs q, k, v of one batch and number of heads, q and k of one width, and k and v of one "
                "length, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(given.scalar_type() == at::kInt && (given.dim() == 3 || (given.dim() == 4 && given.size(0) == tq.size(1))) &&
                    given.size(-1) == 2 && given.size(-2) == tq.size(2) && given.is_cpu(),
                "attention over intervals needs int32 intervals [K, queries, 2] or [heads, K, queries, 2] on the CPU, not ",
                given.sizes(), " of ", given.scalar_type());
    auto mask = key_mask ? get(key_mask).contiguous() : Tensor();
    TORCH_CHECK(!mask.defined() || (mask.scalar_type() == at::kBool && mask.sizes() == at::IntArrayRef({tk.size(0), tk.size(2)})),
                "attention over intervals needs a mask of booleans [batch, keys], not ", mask.sizes());
    // Sums of exponentials leave half precision's range.
    auto type = at::promote_types(at::promote_types(tq.scalar_type(), tv.scalar_type()), at::kFloat);
    auto ranges = (given.dim() == 3 ? given.unsqueeze(0) : given).contiguous();
    Constants constants{ranges, mask, scale, {}};
    OptionalTensor table, bias, key_bias;
    if (distances) {
      constants.counts = dims(distances->counts, distances->count).vec();
      check_distances(get(distances->table), get(distances->bias), get(distances->key_bias), constants.counts, tq, tk, ranges);
      table = get(distances->table).to(type).contiguous();
      bias = get(distances->bias).to(type).contiguous();
      key_bias = get(distances->key_bias).to(type).contiguous();
    }
    auto out = IntervalAttention::apply(with_rows(tq.to(type)), with_rows(tk.to(type)), with_rows(tv.to(type)), table, bias,
                                        key_bias, constants);
    return out.to(tv.scalar_type());
  });
}
