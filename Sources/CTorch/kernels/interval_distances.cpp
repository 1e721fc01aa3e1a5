// The tables of distances of softmax attention over ranges of keys; see interval_attention.cpp for the equations.
#include "interval_distances.hpp"

using at::Tensor;

namespace ctorch {

void check_distances(const Tensor &table, const Tensor &bias, const Tensor &key_bias, const std::vector<int64_t> &counts,
                     const Tensor &q, const Tensor &k, const Tensor &intervals) {
  int64_t total = 0;
  for (int64_t count : counts) total += count;
  TORCH_CHECK(table.sizes() == at::IntArrayRef({q.size(1), total, q.size(3)}) && bias.sizes() == table.sizes().slice(0, 2) &&
                  key_bias.sizes() == k.sizes().slice(0, 3),
              "attention over intervals needs a table [heads, distances, width] and a bias [heads, distances] of ", total,
              " distances, and a bias of keys [batch, heads, keys], not ", table.sizes(), ", ", bias.sizes(), ", ",
              key_bias.sizes());
  TORCH_CHECK(static_cast<int64_t>(counts.size()) == intervals.size(1),
              "attention over intervals needs the number of distances of ", intervals.size(1), " ranges, not of ", counts.size());
  const int64_t heads = intervals.size(0), ranges = intervals.size(1), queries = intervals.size(2);
  for (int64_t head = 0; head < heads; ++head) {
    const Intervals of{intervals.const_data_ptr<int32_t>() + head * ranges * queries * 2, ranges, queries, k.size(2)};
    for (int64_t range = 0; range < ranges; ++range)
      for (int64_t query = 0; query < queries; ++query) {
        const int64_t reach = of.whole_end(range, query) - of.start(range, query);
        TORCH_CHECK(of.start(range, query) >= of.end(range, query) || reach <= counts[range], "range ", range, " of query ", query,
                    " has ", reach, " distances, its table ", counts[range]);
      }
  }
}

DistanceTables::DistanceTables(const Tensor &table, const Tensor &bias, const Tensor &key_bias,
                               const std::vector<int64_t> &counts) {
  if (!table.defined()) return;
  features_ = table.size(2);
  const int64_t places = table.size(1);
  int64_t stop = places;
  for (int64_t count : counts) stops_.push_back(stop), stop -= count;
  const auto falling = table.flip(1);
  rows_ = at::constant_pad_nd(falling, {0, (16 - features_ % 16) % 16}).contiguous();
  // An odd number of cache lines: rows of a power of two would all fall on the same few lines of the cache.
  const int64_t padding = ((places / 16 + 2) | 1) * 16 - places;
  turned_ = at::constant_pad_nd(falling.transpose(1, 2), {0, padding}).contiguous();
  bias_ = at::constant_pad_nd(bias.flip(1), {0, padding}).contiguous();
  key_bias_ = key_bias;
}

void DistanceTables::prepare_gradients(int64_t segments) {
  if (!rows_.defined()) return;
  const int64_t batch = key_bias_.size(0), heads = key_bias_.size(1), places = rows_.size(1);
  d_rows_ = at::zeros({batch, heads, segments, places, rows_.size(2)}, rows_.options());
  d_bias_ = at::zeros({batch, heads, segments, places}, rows_.options());
  d_key_bias = at::zeros_like(key_bias_);
}

/// The sum over the tasks of each head, one after the other: in the same order on any number of threads.
static Tensor sum_of_tasks(const Tensor &parts) {
  auto sum = at::zeros_like(parts.select(2, 0).select(0, 0));
  for (int64_t sequence = 0; sequence < parts.size(0); ++sequence)
    for (int64_t segment = 0; segment < parts.size(2); ++segment) sum.add_(parts.select(2, segment).select(0, sequence));
  return sum;
}

Tensor DistanceTables::table_gradient() const {
  return d_rows_.defined() ? sum_of_tasks(d_rows_).narrow(2, 0, features_).flip(1) : Tensor();
}

Tensor DistanceTables::bias_gradient() const { return d_bias_.defined() ? sum_of_tasks(d_bias_).flip(1) : Tensor(); }

} // namespace ctorch
