// The Attention Free Transformer (Zhai et al. 2021, arXiv 2105.14103, eq. 2), every channel by itself:
//
//   out_i = σ(q_i) mean_i,   mean_i = Σ_j e^(k_j + w_ij) v_j / Σ_j e^(k_j + w_ij),   j ≤ i if causal
//
// with w = 0 (simple), or a bias where j lies in a window around i and 0 elsewhere (local, conv).
//
// Sums are pairs Σ e^(k-m) v and Σ e^(k-m) with m the largest exponent among them, so that they neither overflow nor vanish,
// and no sum is the difference of two. Simple, causal: m, the sums and the outputs in one pass; when a key raises m, the sums
// shrink by e^(m - m'). With G_i the cotangent of mean_i divided by its denominator,
//   dv_j = e^(k_j - m_j) R_j,   dk_j = e^(k_j - m_j) (v_j R_j - T_j),   R_j = G_j + e^(m_j - m_j+1) R_j+1,
// and T alike of G mean: a pass from the end, for which chunks go forward again from kept sums. All exponents are at most 0.
//
// With windows, a chunk of rows has one exponent m for each channel, and a row i of weights one ω_i: e^(k + w - m - ω) is a
// product of a factor of the key and one of the pair, the latter the same for all channels. Strips of rows are then products
// of a band of weights e^(w - ω) with the keys' e^(k-m) v and e^(k-m), to which the sums over all keys before (and after) the
// strip's windows are added; so are the gradients. A row's true largest exponent must not lie too far below m + ω: where keys
// or biases are so far apart, the chunk's pairs are summed one by one, at each row's own exponent. Chunks of even number
// write the gradients of the keys in their windows, then those of odd number add theirs.
#include "aft_reference.hpp"
#include "empty_result.hpp"

#define KERNELS "aft_window_backward.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;

/// Plain loops have a pass of their own, so these are not called for them.
namespace ctorch::reference {
using baseline::aft_merge_segments, baseline::aft_segment_slopes, baseline::aft_segment_sums, baseline::aft_simple_backward,
    baseline::aft_simple_forward, baseline::aft_merge_slopes, baseline::aft_table_rows, baseline::aft_total_backward,
    baseline::aft_total_slopes, baseline::aft_window_asked, baseline::aft_window_backward, baseline::aft_window_forward,
    baseline::aft_window_merge, baseline::aft_window_sums;
} // namespace ctorch::reference

namespace {

/// Tasks that keep every core of a small machine busy.
constexpr int64_t enough_tasks = 8;
/// Channels that a task works on together: four vectors of the widest.
constexpr int64_t most_channels = 64;
/// Rows of a chunk: so many that a window's margin is small beside them, so few that they stay in the caches.
constexpr int64_t simple_chunk = 32, window_chunk = 16 * aft_strip;

/// Beside the inputs with gradients: where `gated` is false, or `kind` zero, another tensor stands for q, or the biases.
struct Setting {
  Tensor mask;
  int64_t kind;
  bool causal, gated;
};

template <typename T>
void set_channels(AftChannels<T> &work, const Setting &setting, const Tensor &q, const Tensor &k, const Tensor &v) {
  work.causal = setting.causal;
  work.gated = setting.gated;
  work.shared_key = k.size(3) != v.size(3);
  work.streams = v.numel() * static_cast<int64_t>(sizeof(T)) >= int64_t{4} << 20;
  work.heads = v.size(1), work.length = v.size(2), work.channels = v.size(3);
  const int64_t all = (work.channels + 15) / 16 * 16;
  work.block = work.shared_key ? all : std::min(all, most_channels);
  work.blocks = (work.channels + work.block - 1) / work.block;
  work.units = v.size(0) * work.heads * work.blocks;
  if (setting.gated) work.q = rows<T>(q);
  work.k = rows<T>(k), work.v = rows<T>(v);
  work.mask = setting.mask.defined() ? setting.mask.const_data_ptr<bool>() : nullptr;
}

template <typename T> AftSimpleWork<T> simple_work(const Setting &setting, const Tensor &q, const Tensor &k, const Tensor &v) {
  AftSimpleWork<T> work{};
  set_channels(work, setting, q, k, v);
  work.chunk = simple_chunk;
  work.chunks = (work.length + work.chunk - 1) / work.chunk;
  int64_t segments = work.units >= enough_tasks ? 1 : std::min((enough_tasks + work.units - 1) / work.units, work.chunks);
  // Without a direction they cost nothing: short ones keep the rows of all heads together, which may lie side by side.
  if (!work.causal) segments = std::max(segments, (work.chunks + 15) / 16);
  work.segment_length = (work.chunks + segments - 1) / segments * work.chunk;
  work.segments = (work.length + work.segment_length - 1) / work.segment_length;
  return work;
}

template <typename T>
AftWindowWork<T> window_work(const Setting &setting, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &bias) {
  AftWindowWork<T> work{};
  set_channels(work, setting, q, k, v);
  if (setting.kind == ctorch_aft_zero) return work;
  const int64_t taps = bias.size(1);
  work.by_position = setting.kind == ctorch_aft_positions;
  work.left = setting.causal ? taps - 1 : taps / 2;
  work.right = setting.causal ? 0 : taps / 2;
  work.chunk = std::max(window_chunk, (taps + aft_strip - 1) / aft_strip * aft_strip);
  work.chunks = (work.length + work.chunk - 1) / work.chunk;
  const int64_t together = work.by_position ? std::min(work.units, (enough_tasks - 1) / ((work.chunks + 1) / 2) + 1) : work.units;
  work.groups = together;
  work.limit = std::is_same_v<T, double> ? 300 : 40;
  work.bias = bias.const_data_ptr<T>();
  return work;
}

/// Tensors that a pass over windows needs besides its inputs, and their places in `work`.
template <typename T> std::vector<Tensor> window_tables(AftWindowWork<T> &work, const at::TensorOptions &options) {
  auto table = at::empty({work.bias_rows(), work.table_row()}, options), beside = at::empty({work.bias_rows()}, options);
  auto spread = at::empty_like(beside), sums = at::empty({work.units, 2, work.chunks + 1, 3 * work.block}, options);
  auto shift = at::empty({work.units, work.chunks, work.block}, options);
  auto direct = at::empty({work.units, work.chunks}, options.dtype(at::kBool));
  return {table, beside, spread, sums, shift, direct};
}
template <typename T> void place_tables(AftWindowWork<T> &work, std::vector<Tensor> &tables) {
  work.table = tables[0].mutable_data_ptr<T>(), work.beside = tables[1].mutable_data_ptr<T>();
  work.spread = tables[2].mutable_data_ptr<T>(), work.sums = tables[3].mutable_data_ptr<T>();
  work.shift = tables[4].mutable_data_ptr<T>(), work.direct = tables[5].mutable_data_ptr<bool>();
}

bool is_reference() { return active_isa() == Isa::reference; }

// MARK: Forward

/// Calls body(unit, segment) for all units and `count` segments from `first` on, those of one segment after another.
template <typename T, typename Body> void for_each_segment(const AftSimpleWork<T> &work, int64_t first, int64_t count, Body body) {
  for_each_task(work.units * count, [&](int64_t task) { body(task % work.units, first + task / work.units); });
}

template <typename T> Tensor simple_forward(AftSimpleWork<T> &work, bool keep, const Tensor &v) {
  auto sums = at::empty({work.units, work.chunks + 1, 3 * work.block}, v.options());
  work.sums = sums.template mutable_data_ptr<T>();
  work.keep = keep;
  for_each_segment(work, 0, work.causal ? work.segments - 1 : work.segments,
                   [&](int64_t unit, int64_t segment) { DISPATCH(aft_segment_sums<T>, work, unit, segment); });
  for_each_task(work.units, [&](int64_t unit) { DISPATCH(aft_merge_segments<T>, work, unit); });
  for_each_segment(work, 0, work.segments,
                   [&](int64_t unit, int64_t segment) { DISPATCH(aft_simple_forward<T>, work, unit, segment); });
  return sums;
}

template <typename T> void window_forward(AftWindowWork<T> &work) {
  for_each_task((work.bias_rows() + 63) / 64, [&](int64_t task) { DISPATCH(aft_table_rows<T>, work, task * 64, task * 64 + 64); });
  for_each_task(work.units * work.chunks,
                [&](int64_t task) { DISPATCH(aft_window_sums<T>, work, task / work.chunks, task % work.chunks); });
  for_each_task(work.units, [&](int64_t unit) { DISPATCH(aft_window_merge<T>, work, unit, work.sums, true); });
  for_each_task(work.units * work.chunks,
                [&](int64_t task) { DISPATCH(aft_window_forward<T>, work, task / work.chunks, task % work.chunks); });
}

// MARK: Backward

template <typename T> void simple_backward(AftSimpleWork<T> &work, const Tensor &v) {
  auto carried = at::empty({work.units, work.segments + 1, 3 * work.block}, v.options());
  work.carried = carried.template mutable_data_ptr<T>();
  const int64_t first = work.causal ? 1 : 0; // nothing comes before the first that would ask for it
  for_each_segment(work, first, work.segments - first, [&](int64_t unit, int64_t segment) {
    if (work.causal) DISPATCH(aft_segment_slopes<T>, work, unit, segment);
    else DISPATCH(aft_total_slopes<T>, work, unit, segment);
  });
  for_each_task(work.units, [&](int64_t unit) { DISPATCH(aft_merge_slopes<T>, work, unit); });
  for_each_segment(work, 0, work.segments, [&](int64_t unit, int64_t segment) {
    if (work.causal) DISPATCH(aft_simple_backward<T>, work, unit, segment);
    else DISPATCH(aft_total_backward<T>, work, unit, segment);
  });
}

template <typename T> Tensor window_backward(AftWindowWork<T> &work, const Tensor &bias) {
  auto asked = at::empty({work.units, 2, work.chunks + 1, 3 * work.block}, bias.options());
  work.asked = asked.template mutable_data_ptr<T>();
  const int64_t row = work.by_position ? work.length * work.taps() : work.taps();
  const int64_t count = work.by_position ? work.groups : work.units * work.chunks;
  auto parts = at::empty({count, row}, bias.options());
  work.dbias = parts.template mutable_data_ptr<T>();
  if (work.chunks > 1)
    for_each_task(work.units * work.chunks,
                  [&](int64_t task) { DISPATCH(aft_window_asked<T>, work, task / work.chunks, task % work.chunks); });
  for_each_task(work.units, [&](int64_t unit) { DISPATCH(aft_window_merge<T>, work, unit, work.asked, false); });
  for (int64_t odd = 0; odd < 2; ++odd) {
    const int64_t chunks = (work.chunks + 1 - odd) / 2;
    for_each_task(work.groups * chunks,
                  [&](int64_t task) { DISPATCH(aft_window_backward<T>, work, task / chunks, 2 * (task % chunks) + odd); });
  }
  // In the order of groups, or of sequences, units of a head and chunks.
  auto dbias = at::zeros_like(bias);
  T *sum = dbias.template mutable_data_ptr<T>();
  constexpr int64_t at_once = 1 << 15;
  for_each_task((row + at_once - 1) / at_once, [&](int64_t task) {
    const int64_t first = task * at_once, last = std::min(row, first + at_once);
    for (int64_t part = 0; part < count; ++part) {
      const T *from = work.dbias + part * row;
      T *to = sum + (work.by_position ? 0 : part / work.chunks / work.blocks % work.heads * row);
      for (int64_t i = first; i < last; ++i) to[i] += from[i];
    }
  });
  return dbias;
}

/// Calls body(zero) with a zero of the tensors' type.
template <typename Body> void with_type(const Tensor &v, Body body) {
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "the Attention Free Transformer", [&] { body(scalar_t()); });
}

struct Aft : torch::autograd::Function<Aft> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &q, const Tensor &k, const Tensor &v,
                        const Tensor &bias, Setting setting) {
    const bool keep = q.requires_grad() || k.requires_grad() || v.requires_grad() || bias.requires_grad();
    auto out = heads_side_by_side(v);
    torch::autograd::variable_list kept{q, k, v, bias, setting.mask};
    with_type(v, [&](auto zero) {
      using T = decltype(zero);
      if (setting.kind == ctorch_aft_zero && !is_reference()) {
        auto work = simple_work<T>(setting, q, k, v);
        work.out = mutable_rows<T>(out);
        kept.push_back(simple_forward(work, keep, v));
        return;
      }
      auto work = window_work<T>(setting, q, k, v, bias);
      work.out = mutable_rows<T>(out);
      if (is_reference()) {
        for (int64_t unit = 0; unit < work.units; ++unit) reference::aft_forward(work, unit);
        return;
      }
      auto tables = window_tables(work, v.options());
      if (keep) {
        tables.push_back(heads_side_by_side(v)), tables.push_back(heads_side_by_side(v));
        work.mean = mutable_rows<T>(tables[6]), work.inverse = mutable_rows<T>(tables[7]);
      }
      place_tables(work, tables);
      window_forward(work);
      kept.insert(kept.end(), tables.begin(), tables.end());
    });
    if (keep) {
      context->save_for_backward(kept);
      context->saved_data["kind"] = setting.kind;
      context->saved_data["causal"] = setting.causal;
      context->saved_data["gated"] = setting.gated;
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the Attention Free Transformer cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &bias = saved[3];
    Setting setting{saved[4], context->saved_data["kind"].toInt(), context->saved_data["causal"].toBool(),
                    context->saved_data["gated"].toBool()};
    auto cotangent = with_rows(grads[0]);
    auto dq = setting.gated ? heads_side_by_side(q) : Tensor(), dk = heads_side_by_side(k), dv = heads_side_by_side(v);
    Tensor dbias;
    auto place = [&](auto &work, auto zero) {
      using T = decltype(zero);
      work.cotangent = rows<T>(cotangent);
      if (setting.gated) work.dq = mutable_rows<T>(dq);
      work.dk = mutable_rows<T>(dk), work.dv = mutable_rows<T>(dv);
    };
    with_type(v, [&](auto zero) {
      using T = decltype(zero);
      if (saved.size() == 6) {
        auto work = simple_work<T>(setting, q, k, v);
        place(work, zero);
        work.sums = saved[5].template mutable_data_ptr<T>();
        return simple_backward(work, v);
      }
      auto work = window_work<T>(setting, q, k, v, bias);
      place(work, zero);
      if (saved.size() == 5) { // of plain loops
        dk.zero_(), dv.zero_();
        if (setting.kind != ctorch_aft_zero) dbias = at::zeros_like(bias);
        T *sum = dbias.defined() ? dbias.template mutable_data_ptr<T>() : nullptr;
        for (int64_t unit = 0; unit < work.units; ++unit) reference::aft_backward(work, unit, sum);
        return;
      }
      std::vector<Tensor> tables(saved.begin() + 5, saved.end());
      place_tables(work, tables);
      work.mean = mutable_rows<T>(tables[6]), work.inverse = mutable_rows<T>(tables[7]);
      dbias = window_backward(work, bias);
    });
    return {dq, dk, dv, dbias, Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_aft(ctorch_tensor q, ctorch_tensor k, ctorch_tensor v, ctorch_tensor mask, ctorch_tensor bias,
                                    int32_t kind, bool causal, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tk = get(k), &tv = get(v);
    TORCH_CHECK(tk.is_cpu(), "this kernel of the Attention Free Transformer is for the CPU");
    TORCH_CHECK(tk.dim() == 4 && tv.dim() == 4 && tk.sizes().slice(0, 3) == tv.sizes().slice(0, 3) &&
                    (tk.size(3) == tv.size(3) || tk.size(3) == 1),
                "the Attention Free Transformer needs k and v of one batch, heads and length, not ", tk.sizes(), ", ", tv.sizes());
    TORCH_CHECK(!q || get(q).sizes() == tv.sizes(), "the Attention Free Transformer needs q of v's shape ", tv.sizes());
    // Sums over the sequence leave half precision's range.
    auto type = at::promote_types(at::promote_types(tk.scalar_type(), tv.scalar_type()), at::kFloat);
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == at::IntArrayRef({tv.size(0), tv.size(2)})),
                "the Attention Free Transformer needs a mask of booleans [batch, length], not ", real.sizes());
    const int64_t bias_rows = kind == ctorch_aft_positions ? tv.size(2) : tv.size(1);
    TORCH_CHECK(kind == ctorch_aft_zero || (bias && get(bias).dim() == 2 && get(bias).size(0) == bias_rows &&
                                            get(bias).size(1) > 0 && (causal || get(bias).size(1) % 2 == 1)),
                "the Attention Free Transformer needs biases [", bias_rows, ", taps], an odd number of them unless it is causal");
    if (tv.numel() == 0) return empty_result(tv.sizes(), {tv, tk, optional(q), optional(bias)});
    auto none = at::empty({0}, tv.options().dtype(type));
    auto given = [&](ctorch_tensor t) { return with_rows(get(t).to(type)); };
    auto biases = kind == ctorch_aft_zero ? none : get(bias).to(type).contiguous();
    Setting setting{real, kind, causal, q != nullptr};
    return Aft::apply(q ? given(q) : none, given(k), given(v), biases, setting).to(tv.scalar_type());
  });
}
