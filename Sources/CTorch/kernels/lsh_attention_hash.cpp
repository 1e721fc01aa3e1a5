// The hash of LSH attention: in round r token i gets the bucket h_r(i) = argmax [x_i R_r, -x_i R_r], with several factors one
// digit for each piece of R_r. The products with all directions, [N, rounds, buckets / 2], stay in the cache a tile at a time.
#include "lsh_attention_hash.hpp"

#define KERNELS "lsh_attention_hash.kernels.hpp"
#include "for_each_isa.hpp"

#include "../include/ctorch_lsh_attention.h"

using namespace ctorch;
using at::Tensor;

/// Plain loops, a token at a time.
namespace ctorch::reference::lsh {

template <typename T> void hash(const LSHHashWork<T> &work, int64_t group, int64_t start) {
  for (int64_t i = start; i < std::min(work.length, start + lsh_hash_tokens); ++i)
    for (int64_t round = 0; round < work.rounds; ++round) {
      int64_t first = round * work.directions, unit = 1, bucket = 0;
      for (int64_t digit = 0; digit < work.digits; ++digit) {
        const int64_t half = work.factors[digit] / 2;
        std::vector<T> y(static_cast<size_t>(2 * half));
        for (int64_t s = 0; s < half; ++s) {
          for (int64_t f = 0; f < work.features; ++f)
            y[s] += work.x.head(group)[i * work.x.row + f] * work.rotation(group)[f * work.row + first + s];
          y[half + s] = -y[s];
        }
        bucket += unit * (std::max_element(y.begin(), y.end()) - y.begin());
        unit *= work.factors[digit];
        first += half;
      }
      work.bucket(group, round)[i] = static_cast<int32_t>(bucket);
    }
}

} // namespace ctorch::reference::lsh

extern "C" ctorch_tensor ctorch_lsh_buckets(ctorch_tensor x, ctorch_tensor rotations, int64_t rounds, const int64_t *factors,
                                            size_t count, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &tx = get(x), &given = get(rotations);
    int64_t directions = 0, buckets = 1;
    for (size_t i = 0; i < count; ++i) {
      TORCH_CHECK(factors[i] > 0 && factors[i] % 2 == 0 && buckets * factors[i] <= (int64_t(1) << 24),
                  "LSH buckets come in even factors, whose product is 2^24 at most");
      directions += factors[i] / 2;
      buckets *= factors[i];
    }
    TORCH_CHECK(tx.dim() == 4 && tx.size(3) > 0 && given.dim() == 4 && tx.is_cpu() && directions > 0 && rounds > 0 &&
                    rounds <= given.size(2) && given.sizes() == at::IntArrayRef({tx.size(1), tx.size(3), given.size(2), directions}),
                "LSH buckets of x [batch, heads, n, d] need rotations [heads, d, rounds, ", directions, "] on the CPU, not ",
                tx.sizes(), ", ", given.sizes());
    auto found = at::empty({tx.size(0), tx.size(1), rounds, tx.size(2)}, tx.options().dtype(at::kInt));
    const auto type = at::promote_types(tx.scalar_type(), at::kFloat);
    const auto wide = with_rows(tx.detach().to(type)), drawn = given.detach().to(type).contiguous();
    AT_DISPATCH_FLOATING_TYPES(type, "LSH buckets", [&] {
      LSHHashWork<scalar_t> work{};
      work.heads = tx.size(1), work.length = tx.size(2), work.features = tx.size(3), work.rounds = rounds;
      work.directions = directions, work.row = given.size(2) * directions;
      work.factors = factors, work.digits = static_cast<int64_t>(count);
      work.x = ctorch::rows<scalar_t>(wide);
      work.rotations = drawn.const_data_ptr<scalar_t>();
      work.buckets = found.mutable_data_ptr<int32_t>();
      const int64_t tiles = (work.length + lsh_hash_tokens - 1) / lsh_hash_tokens;
      for_each_task(tx.size(0) * tx.size(1) * tiles, [&](int64_t task) {
        DISPATCH(lsh::hash<scalar_t>, work, task / tiles, task % tiles * lsh_hash_tokens);
      });
    });
    return found;
  });
}
