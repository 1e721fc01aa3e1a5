// The tables of distances of softmax attention over ranges of keys, as its kernels read them.
#pragma once

#include "interval_attention.hpp"

namespace ctorch {

/// Throws unless the tables fit q, k and the intervals [1 or heads, K, queries, 2], and reach every distance in these.
void check_distances(const at::Tensor &table, const at::Tensor &bias, const at::Tensor &key_bias,
                     const std::vector<int64_t> &counts, const at::Tensor &q, const at::Tensor &k, const at::Tensor &intervals);

/// R [heads, distances, features], c [heads, distances] and a [batch, heads, keys] for the time of a pass; or nothing.
class DistanceTables {
public:
  /// Undefined tensors are nothing.
  DistanceTables(const at::Tensor &table, const at::Tensor &bias, const at::Tensor &key_bias, const std::vector<int64_t> &counts);

  template <typename T> IntervalDistances<T> distances() const {
    IntervalDistances<T> found{};
    if (!rows_.defined()) return found;
    found.places = rows_.size(1), found.row = rows_.size(2), found.turned_row = turned_.size(2);
    found.stops = stops_.data();
    found.rows = rows_.const_data_ptr<T>(), found.turned = turned_.const_data_ptr<T>(), found.bias = bias_.const_data_ptr<T>();
    found.key_bias = key_bias_.const_data_ptr<T>();
    if (!d_rows_.defined()) return found;
    found.d_rows = d_rows_.mutable_data_ptr<T>(), found.d_bias = d_bias_.mutable_data_ptr<T>();
    found.d_key_bias = d_key_bias.mutable_data_ptr<T>();
    return found;
  }

  /// Makes room for what every task gives, each head cut into so many.
  void prepare_gradients(int64_t segments);
  at::Tensor table_gradient() const;
  at::Tensor bias_gradient() const;
  at::Tensor d_key_bias;

private:
  int64_t features_ = 0;
  std::vector<int64_t> stops_;
  at::Tensor rows_, turned_, bias_, key_bias_; // see IntervalDistances
  at::Tensor d_rows_, d_bias_;                 // [batch, heads, segments, places, …]
};

} // namespace ctorch
