// LSH attention: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451, section 2.
//
// In each round the tokens are sorted by bucket and position and cut into chunks; P_ri are the tokens of i's chunk and of those
// around it. With k̂_j = x_j g_j, g_j = 1 / √(|x_j|² + D ε), and n_ij the number of times that i sees j in all rounds,
//   s_ij = τ x_i·k̂_j [- ln n_ij],   -∞ where j is hidden,   the self logit where j = i,
//   z_ri = ln Σ_{j∈P_ri} exp s_ij,   o_ri = Σ_{j∈P_ri} exp(s_ij - z_ri) v_j,   out_i = Σ_r softmax_r(z_ri) o_ri.
//
// All rounds of a token are thus one softmax over everything it sees: with t_i its largest score and l_i = Σ_rj exp(s_ij - t_i),
//   p_ij = exp(s_ij - t_i) / l_i,   out_i = Σ p_ij v_j,   ds_ij = p_ij (dout_i·v_j - dout_i·out_i),   ds_ii = 0.
// t and l are kept for the backward pass, apart, since ln l would be lost beside a t of -10⁵; scores are computed again.
//
// A task goes through the chunks of a group's rounds with t, l and the sum so far lying with the tokens, so that nothing is ever
// sorted but the tokens' numbers. Within a chunk their order does not matter: they stand by position, and what a causal query may
// see of a tile of keys are its first ones. A tile's cotangents are added to those of its tokens once, when it is done with.
#include "lsh_attention.hpp"
#include "empty_result.hpp"

#define KERNELS "lsh_attention.kernels.hpp"
#include "for_each_isa.hpp"

#include "lsh_attention_reference.hpp"

#include "../include/ctorch_lsh_attention.h"

#include <numeric>

using namespace ctorch;
using at::Tensor;

namespace {

/// Tasks that keep every core of a small machine busy.
constexpr int64_t enough_tasks = 8;

/// The tokens of a group chunk by chunk, for each round. One pass gives each token its rank in the order of the buckets, and so
/// its chunk; appending tokens to their chunks as they come leaves them by position. Padded tokens get a bucket after all others.
template <typename T> void arrange(const LSHWork<T> &work, int32_t *buckets, int64_t group) {
  const auto all = work.rounds_of(group);
  const auto &settings = work.settings;
  const bool *real = work.mask ? work.mask + group / work.heads * work.length : nullptr;
  std::vector<int32_t> next(static_cast<size_t>(settings.bucket_count + 2)), filled(static_cast<size_t>(all.chunks));
  for (int64_t round = 0; round < all.rounds; ++round) {
    int32_t *bucket = buckets + work.row(group, round), *order = work.order + work.row(group, round);
    std::fill(next.begin(), next.end(), 0);
    std::fill(filled.begin(), filled.end(), 0);
    for (int64_t i = 0; i < work.length; ++i) {
      if (all.single()) bucket[i] = 0;
      else if (real && !real[i]) bucket[i] = static_cast<int32_t>(settings.bucket_count);
      else
        TORCH_CHECK(bucket[i] >= 0 && bucket[i] < settings.bucket_count, "LSH attention has ", settings.bucket_count,
                    " buckets; got number ", bucket[i]);
      ++next[static_cast<size_t>(bucket[i]) + 1];
    }
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t i = 0; i < work.length; ++i) {
      if (settings.real_length && real && !real[i]) continue;
      const int64_t chunk = next[static_cast<size_t>(bucket[i])]++ / settings.chunk;
      order[chunk * settings.chunk + filled[static_cast<size_t>(chunk)]++] = static_cast<int32_t>(i);
      if (work.place) work.place[work.row(group, round) + i] = static_cast<int32_t>(round * all.chunks + chunk);
    }
  }
}

/// What does not depend on the inputs, and what autograd passes over: tensors that may be undefined, and take no gradient.
struct LSHConstants {
  LSHSettings settings;
  Tensor buckets, mask, counts;
};

template <typename T>
LSHWork<T> work_of(const LSHSettings &settings, const Tensor &x, const Tensor &v, const Tensor &buckets, const Tensor &mask,
                   const Tensor &counts) {
  LSHWork<T> work{};
  work.settings = settings;
  work.heads = x.size(1), work.length = x.size(2), work.features = x.size(3), work.values = v.size(3);
  work.rounds = buckets.size(1);
  const int64_t groups = x.size(0) * x.size(1), chunks = work.rounds * ((work.length + settings.chunk - 1) / settings.chunk);
  work.segments = groups >= enough_tasks ? 1 : std::min((enough_tasks + groups - 1) / groups, chunks);
  work.x = rows<T>(x), work.v = rows<T>(v);
  work.counts = counts.const_data_ptr<int64_t>();
  work.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  work.buckets = buckets.const_data_ptr<int32_t>();
  return work;
}

struct LSHAttention : torch::autograd::Function<LSHAttention> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &x, const Tensor &v, LSHConstants constants) {
    const auto &[settings, given, mask, counts] = constants;
    const int64_t groups = x.size(0) * x.size(1), length = x.size(2), most_rounds = given.size(1);
    auto buckets = given, order = at::empty_like(buckets);
    auto place = at::empty(settings.unique_pairs ? buckets.sizes() : at::IntArrayRef{0}, buckets.options());
    auto discounts = settings.unique_pairs ? logarithms(settings, most_rounds, counts) : at::empty({0});
    auto out = heads_side_by_side(v), inverse = at::empty({groups, length}, x.options());
    auto largest = at::empty({groups, length}, x.options()), sum = at::empty({groups, length}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "LSH attention", [&] {
      auto work = work_of<scalar_t>(settings, x, v, buckets, mask, counts);
      work.order = order.mutable_data_ptr<int32_t>();
      work.place = settings.unique_pairs ? place.mutable_data_ptr<int32_t>() : nullptr;
      work.discounts = discounts.const_data_ptr<float>();
      work.out = mutable_rows<scalar_t>(out);
      work.inverse = inverse.mutable_data_ptr<scalar_t>();
      work.largest = work.part_largest = largest.mutable_data_ptr<scalar_t>();
      work.sum = work.part_sum = sum.mutable_data_ptr<scalar_t>();
      auto *sorted_by = buckets.mutable_data_ptr<int32_t>();
      auto prepare = [&](int64_t group) {
        arrange(work, sorted_by, group);
        DISPATCH(lsh::normalize<scalar_t>, work, group);
      };
      if (work.segments == 1) {
        for_each_task(groups, [&](int64_t group) {
          prepare(group);
          DISPATCH(lsh::forward<scalar_t>, work, group, 0);
          DISPATCH(lsh::merge<scalar_t>, work, group);
        });
        return;
      }
      auto parts = at::empty({groups, work.segments, length, v.size(3) + 2}, v.options());
      auto *room = parts.mutable_data_ptr<scalar_t>();
      work.part_out = room, room += groups * work.segments * length * v.size(3);
      work.part_largest = room, work.part_sum = room + groups * work.segments * length;
      for_each_task(groups, prepare);
      for_each_task(groups * work.segments, [&](int64_t task) {
        DISPATCH(lsh::forward<scalar_t>, work, task / work.segments, task % work.segments);
      });
      for_each_task(groups, [&](int64_t group) { DISPATCH(lsh::merge<scalar_t>, work, group); });
    });
    if (x.requires_grad() || v.requires_grad()) {
      context->save_for_backward({x, v, mask, counts, buckets, order, place, discounts, inverse, largest, sum, out});
      context->saved_data["flags"] = std::vector<int64_t>{settings.causal, settings.within_bucket, settings.unique_pairs,
                                                          settings.real_length, settings.chunk, settings.before, settings.after,
                                                          settings.bucket_count};
      context->saved_data["numbers"] = std::vector<double>{settings.scale, settings.epsilon, settings.self_logit};
    }
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "LSH attention cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &x = saved[0], &v = saved[1], &mask = saved[2], &counts = saved[3], &buckets = saved[4], &order = saved[5];
    auto &place = saved[6], &discounts = saved[7], &inverse = saved[8], &largest = saved[9], &sum = saved[10], &out = saved[11];
    const auto flags = context->saved_data["flags"].toIntVector();
    const auto numbers = context->saved_data["numbers"].toDoubleVector();
    const LSHSettings settings{flags[0] != 0, flags[1] != 0, flags[2] != 0, flags[3] != 0, flags[4],  flags[5],
                               flags[6],      flags[7],      numbers[0],    numbers[1],    numbers[2]};
    const int64_t groups = x.size(0) * x.size(1), length = x.size(2);
    auto cotangent = with_rows(grads[0]);
    auto dx = heads_side_by_side(x), dv = heads_side_by_side(v), drift = at::empty({groups, length}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "LSH attention", [&] {
      auto work = work_of<scalar_t>(settings, x, v, buckets, mask, counts);
      work.order = order.mutable_data_ptr<int32_t>();
      work.place = settings.unique_pairs ? place.mutable_data_ptr<int32_t>() : nullptr;
      work.discounts = discounts.const_data_ptr<float>();
      work.cotangent = rows<scalar_t>(cotangent);
      work.out = mutable_rows<scalar_t>(out), work.dx = mutable_rows<scalar_t>(dx), work.dv = mutable_rows<scalar_t>(dv);
      work.inverse = inverse.mutable_data_ptr<scalar_t>(), work.drift = drift.mutable_data_ptr<scalar_t>();
      work.largest = largest.mutable_data_ptr<scalar_t>(), work.sum = sum.mutable_data_ptr<scalar_t>();
      Tensor parts;
      if (work.segments > 1) {
        parts = at::empty({groups, work.segments, length, x.size(3) + v.size(3)}, x.options());
        work.part_dx = parts.mutable_data_ptr<scalar_t>();
        work.part_dv = work.part_dx + groups * work.segments * length * x.size(3);
      }
      for_each_task(groups, [&](int64_t group) { DISPATCH(lsh::find_drift<scalar_t>, work, group); });
      for_each_task(groups * work.segments, [&](int64_t task) {
        DISPATCH(lsh::backward<scalar_t>, work, task / work.segments, task % work.segments);
      });
      for_each_task(groups, [&](int64_t group) { DISPATCH(lsh::collect<scalar_t>, work, group); });
    });
    return {dx, dv, Tensor()};
  }

  /// ln n for as often as a token may see another. Always in float32 and by LibTorch, as the reference form has it: nothing else
  /// is rounded so, and it is seen in the ninth digit.
  static Tensor logarithms(const LSHSettings &settings, int64_t rounds, const Tensor &counts) {
    const auto *count = counts.const_data_ptr<int64_t>();
    int64_t most = 1;
    for (int64_t b = 0; b < counts.numel(); ++b) {
      const int64_t all = rounds * std::max<int64_t>(1, (count[b] + settings.chunk - 1) / settings.chunk);
      most = std::max(most, rounds * rounds * ((settings.before + settings.after + all) / all));
    }
    return at::arange(most + 1, at::kFloat).clamp_min(1).log();
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_lsh_attention(ctorch_tensor qk, ctorch_tensor v, ctorch_tensor buckets, ctorch_tensor mask,
                                              ctorch_lsh_options options, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tx = get(qk), &tv = get(v), &given = get(buckets);
    TORCH_CHECK(tx.dim() == 4 && tv.dim() == 4 && tx.sizes().slice(0, 3) == tv.sizes().slice(0, 3) && tx.size(3) > 0,
                "LSH attention takes qk [batch, heads, n, d] with d above 0 and v [batch, heads, n, e], not ", tx.sizes(), ", ",
                tv.sizes());
    const int64_t batch = tx.size(0), heads = tx.size(1), length = tx.size(2);
    TORCH_CHECK(tx.is_cpu(), "the kernel of LSH attention runs on the CPU");
    TORCH_CHECK(given.dim() == 4 && given.size(2) > 0 && given.sizes() == at::IntArrayRef({batch, heads, given.size(2), length}) &&
                    !given.is_floating_point(),
                "LSH attention needs whole-numbered buckets [batch, heads, rounds, n], not ", given.sizes());
    TORCH_CHECK(options.chunk > 0 && options.chunks_before >= 0 && options.chunks_after >= 0 && options.bucket_count > 0 &&
                    options.scale > 0 && options.self_logit > -5e8,
                "LSH attention needs a positive chunk, number of buckets and scale, and a self logit above -5e8");
    TORCH_CHECK(given.size(2) * (options.bucket_count + 1) < (int64_t(1) << 31) && length < (int64_t(1) << 31),
                "LSH attention numbers buckets and tokens in 32 bits");
    auto real = mask ? get(mask).contiguous() : Tensor();
    TORCH_CHECK(!real.defined() || (real.scalar_type() == at::kBool && real.sizes() == at::IntArrayRef({batch, length})),
                "LSH attention needs a mask of booleans [batch, n], not ", real.sizes());
    if (tv.numel() == 0) return empty_result(tv.sizes(), {tv, tx});
    const LSHSettings settings{options.causal,         options.within_bucket, options.unique_pairs,  options.real_length,
                               options.chunk,          options.chunks_before, options.chunks_after,  options.bucket_count,
                               options.scale,          options.key_norm_epsilon, options.self_logit};
    auto counts = real.defined() && options.real_length ? real.sum(1) : at::full({batch}, length, at::kLong);
    // The kernel gives padded tokens a bucket of their own.
    auto own = at::empty({batch * heads, given.size(2), length}, at::kInt);
    own.copy_(given.reshape({batch * heads, given.size(2), length}));
    auto type = at::promote_types(at::promote_types(tx.scalar_type(), tv.scalar_type()), at::kFloat);
    auto out = LSHAttention::apply(with_rows(tx.to(type)), with_rows(tv.to(type)), LSHConstants{settings, own, real, counts});
    return out.to(tv.scalar_type());
  });
}
