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
//   dq_i = scale Σ_j ds_ij (k_j + R_d),   da_j = Σ_i ds_ij,   dR_d = scale Σ ds_ij q_i and dc_d = Σ ds_ij over the pairs at d,
// where every range has a table R and c of its own.
//
// What is no range where keys lie may be one in another order, as every s-th key is once they are sorted by j mod s. So a call
// is one pass or several, each with an order of its queries and one of its keys. Forward goes on from the out, peaks and sums of
// the passes before, as it does from tile to tile; backward, which has the last ones, adds up. Distances are for a single pass.
//
// A block of 64 queries walks the tiles of 64 keys that its ranges touch (interval_attention_plan.cpp), and goes into single
// pairs only in tiles that some of its queries do not see whole. Backward does so once for all five products, summing the
// gradients of keys in slots that are written out with the last block that meets them. A head is one task, or, where there are
// few heads, several segments of blocks; tiles that several of them meet are summed up at the end, and so is what each task has
// for the tables. How many depends on the work alone, so that any number of threads gives the same bits.
#include "empty_result.hpp"
#include "interval_distances.hpp"

#define KERNELS "interval_attention.kernels.hpp"
#include "for_each_isa.hpp"

#include "interval_attention_reference.hpp"

using namespace ctorch;
using at::Tensor;

namespace {

/// One pass: int32 [heads or 1, ranges, queries, 2], and int32 orders or undefined where rows are taken as they lie.
struct Pass {
  Tensor intervals, queries, keys;
};

/// Inputs without a gradient: as a struct, autograd passes them over, and `mask` may be undefined.
struct Constants {
  std::vector<Pass> passes;
  Tensor mask;
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
    const Intervals of{data + head * ranges * queries * 2, ranges, queries, keys};
    found[head].emplace(of, (tasks + rows - 1) / std::max<int64_t>(rows, 1));
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
IntervalWork<T> work_of(const Tensor &q, const Tensor &k, const Tensor &v, double scale, Tensor &statistics) {
  IntervalWork<T> work{};
  work.heads = q.size(1);
  work.queries = q.size(2);
  work.features = q.size(3);
  work.values = v.size(3);
  work.scale = static_cast<T>(scale);
  work.q = ctorch::rows<T>(q), work.k = ctorch::rows<T>(k), work.v = ctorch::rows<T>(v);
  work.peak = statistics.mutable_data_ptr<T>();
  work.inverse_sum = work.peak + statistics.stride(0);
  return work;
}

/// Calls body(work, plans) for one pass after the other.
template <typename T, typename Body>
void for_each_pass(const std::vector<Pass> &passes, const Tensor &mask, int64_t keys, int64_t tasks, int64_t rows,
                   IntervalWork<T> work, Body body) {
  for (const auto &pass : passes) {
    const auto real = mask.defined() && pass.keys.defined() ? mask.index_select(1, pass.keys) : mask;
    work.query_order = {pass.queries.defined() ? pass.queries.const_data_ptr<int32_t>() : nullptr};
    work.key_order = {pass.keys.defined() ? pass.keys.const_data_ptr<int32_t>() : nullptr};
    work.keys = pass.keys.defined() ? pass.keys.size(0) : keys;
    work.mask = real.defined() ? real.template const_data_ptr<bool>() : nullptr;
    body(work, plans_of(pass.intervals, rows, work.keys, tasks));
    work.continues = true;
  }
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
      auto all = work_of<scalar_t>(q, k, v, constants.scale, statistics);
      all.out = mutable_rows<scalar_t>(out);
      all.distances = tables.distances<scalar_t>();
      const auto run = [&](const IntervalWork<scalar_t> &work, const std::vector<IntervalPlan> &plans) {
        for_each_segment(plans, rows, [&](const IntervalPlan &plan, int64_t head, int64_t segment) {
          DISPATCH(interval_forward<scalar_t>, work, plan, head, segment);
        });
      };
      for_each_pass(constants.passes, constants.mask, k.size(2), forward_tasks, rows, all, run);
    });
    const auto wants = [](const Tensor &x) { return x.defined() && x.requires_grad(); };
    if (wants(q) || wants(k) || wants(v) || wants(table) || wants(bias) || wants(key_bias)) {
      torch::autograd::variable_list kept{q, k, v, constants.mask, out, statistics, table, bias, key_bias};
      for (const auto &pass : constants.passes) kept.insert(kept.end(), {pass.intervals, pass.queries, pass.keys});
      context->save_for_backward(std::move(kept));
      context->saved_data["scale"] = constants.scale;
      context->saved_data["counts"] = constants.counts;
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "attention over intervals cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2], &mask = saved[3], &out = saved[4], &statistics = saved[5];
    std::vector<Pass> passes;
    for (size_t i = 9; i < saved.size(); i += 3) passes.push_back({saved[i], saved[i + 1], saved[i + 2]});
    auto cotangent = with_rows(grads[0]);
    auto dq = heads_side_by_side(q), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    DistanceTables tables(saved[6], saved[7], saved[8], context->saved_data["counts"].toIntVector());
    const int64_t rows = q.size(0) * q.size(1);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "interval attention", [&] {
      auto all = work_of<scalar_t>(q, k, v, context->saved_data["scale"].toDouble(), statistics);
      all.cotangent = ctorch::rows<scalar_t>(cotangent);
      all.out = mutable_rows<scalar_t>(out);
      all.dq = mutable_rows<scalar_t>(dq), all.dk = mutable_rows<scalar_t>(dk), all.dv = mutable_rows<scalar_t>(dv);
      const auto run = [&](IntervalWork<scalar_t> work, const std::vector<IntervalPlan> &plans) {
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
      };
      for_each_pass(passes, mask, k.size(2), backward_tasks, rows, all, run);
    });
    return {dq, dk, dv, tables.table_gradient(), tables.bias_gradient(), tables.d_key_bias, Tensor()};
  }
};

/// An order of some of `count` rows, each at most once; undefined for all as they lie. A first pass has all rows.
Tensor checked_order(const Tensor &order, int64_t count, bool all) {
  if (!order.defined()) return order;
  TORCH_CHECK(order.scalar_type() == at::kInt && order.dim() == 1 && order.is_cpu(),
              "attention over intervals needs orders as int32 vectors on the CPU, not ", order.sizes(), " of ",
              order.scalar_type());
  auto rows = order.contiguous();
  std::vector<bool> seen(static_cast<size_t>(count));
  for (int64_t place = 0; place < rows.size(0); ++place) {
    const int64_t row = rows.const_data_ptr<int32_t>()[place];
    TORCH_CHECK(row >= 0 && row < count && !seen[row], "attention over intervals needs orders of different rows below ", count,
                "; there is a ", row, " at place ", place);
    seen[row] = true;
  }
  TORCH_CHECK(!all || rows.size(0) == count, "the first pass of attention over intervals needs all ", count, " rows, not ",
              rows.size(0));
  return rows;
}

std::vector<Pass> checked_passes(const ctorch_tensor *given, size_t count, const Tensor &q, const Tensor &k) {
  TORCH_CHECK(count > 0, "attention over intervals needs at least one pass");
  std::vector<Pass> passes;
  for (size_t i = 0; i < count; ++i) {
    auto intervals = get(given[3 * i]);
    auto queries = checked_order(optional(given[3 * i + 1]), q.size(2), i == 0);
    auto keys = checked_order(optional(given[3 * i + 2]), k.size(2), i == 0);
    const int64_t places = queries.defined() ? queries.size(0) : q.size(2);
    const bool has_rank = intervals.dim() == 3 || (intervals.dim() == 4 && intervals.size(0) == q.size(1));
    TORCH_CHECK(intervals.scalar_type() == at::kInt && has_rank && intervals.size(-1) == 2 && intervals.size(-2) == places &&
                    intervals.is_cpu(),
                "attention over intervals needs int32 intervals [K, queries, 2] or [heads, K, queries, 2] on the CPU, not ",
                intervals.sizes(), " of ", intervals.scalar_type());
    passes.push_back({(intervals.dim() == 3 ? intervals.unsqueeze(0) : intervals).contiguous(), queries, keys});
  }
  return passes;
}

} // namespace

extern "C" ctorch_tensor ctorch_interval_attention(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, const ctorch_tensor *passes,
                                                   size_t pass_count, ctorch_tensor key_mask, double scale,
                                                   const ctorch_interval_distances *distances, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tq = get(q), &tk = get(k), &tv = get(v);
    TORCH_CHECK(tq.dim() == 4 && tk.dim() == 4 && tv.dim() == 4, "attention over intervals takes q, k, v of rank 4, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.sizes().slice(0, 2) == tk.sizes().slice(0, 2) && tq.size(3) == tk.size(3) &&
                    tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3),
                "attention over intervals needs q, k, v of one batch and number of heads, q and k of one width, and k and v of one "
                "length, not ",
                tq.sizes(), ", ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(tq.size(3) > 0 && tv.size(3) > 0, "attention over intervals needs at least one feature and one value a head, not ",
                tq.sizes(), ", ", tv.sizes());
    auto mask = key_mask ? get(key_mask).contiguous() : Tensor();
    TORCH_CHECK(!mask.defined() || (mask.scalar_type() == at::kBool && mask.sizes() == at::IntArrayRef({tk.size(0), tk.size(2)})),
                "attention over intervals needs a mask of booleans [batch, keys], not ", mask.sizes());
    // Sums of exponentials leave half precision's range.
    auto type = at::promote_types(at::promote_types(tq.scalar_type(), tv.scalar_type()), at::kFloat);
    Constants constants{checked_passes(passes, pass_count, tq, tk), mask, scale, {}};
    OptionalTensor table, bias, key_bias;
    if (distances) {
      const auto &only = constants.passes[0];
      TORCH_CHECK(pass_count == 1 && !only.queries.defined() && !only.keys.defined(),
                  "attention over intervals has distances in a single pass over queries and keys as they lie, not in ", pass_count,
                  " passes or other orders");
      constants.counts = dims(distances->counts, distances->count).vec();
      check_distances(get(distances->table), get(distances->bias), get(distances->key_bias), constants.counts, tq, tk,
                      only.intervals);
      table = get(distances->table).to(type).contiguous();
      bias = get(distances->bias).to(type).contiguous();
      key_bias = get(distances->key_bias).to(type).contiguous();
    }
    if (tq.numel() == 0 || tv.numel() == 0) { // a query without keys gives zeros
      const auto none = Tensor();
      return empty_result({tq.size(0), tq.size(1), tq.size(2), tv.size(3)},
                          {tv, tq, tk, table.value_or(none), bias.value_or(none), key_bias.value_or(none)});
    }
    auto out = IntervalAttention::apply(with_rows(tq.to(type)), with_rows(tk.to(type)), with_rows(tv.to(type)), table, bias,
                                        key_bias, constants);
    return out.to(tv.scalar_type());
  });
}
