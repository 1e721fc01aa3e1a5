// One token through a model: operations on small vectors, worked off by a team without a barrier of the operating system.
#pragma once

#include "CTorch.h"
#include "adaptive_momentum.hpp"
#include "causal_linear.hpp"
#include "step_cache.hpp"
#include "step_past.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

namespace ctorch {

enum class StepKind {
  linear, norm, combine, gate, causal_linear, attend, rotate, lookup, waves,
  // Of mixers that look at the tokens before.
  adaptive_momentum, weighted_means, expand, remember, replace, pool, mix, distance_waves,
  // Over what is kept of the past, see step_past.hpp.
  average, taps, score, sum, moving_average, cell
};

/// x ↦ (x - mean) / root · weight + bias
struct StepNorm {
  int32_t kind = -1; // none
  const float *weight = nullptr, *bias = nullptr;
  float epsilon = 0;

  bool is_centered() const { return kind == CTORCH_STEP_LAYER_NORM || kind == CTORCH_STEP_DEVIATION_NORM; }
  /// What n numbers are divided by, from the sum of their squares; those of the simple one in a `unit` of their size.
  float root(float squares, float n, float unit) const {
    if (kind == CTORCH_STEP_DEVIATION_NORM) return std::sqrt(squares / std::max(n - 1, 1.0f)) + epsilon;
    if (kind == CTORCH_STEP_SIMPLE_RMS_NORM) return unit * std::sqrt(squares / n) + epsilon;
    return std::sqrt(squares / n + epsilon);
  }
};

/// Keys that go into attention's weights; see ctorch_step_view.
struct StepView {
  int64_t cache = -1, look = -1, distances = -1, q = -1, distance_q = -1;
};

/// One operation. Places are offsets into the program's memory, so that a copy of the program is a copy of that; -1: none.
struct StepOperation {
  StepKind kind;
  int64_t x = -1, y = -1, residual = -1;
  int64_t rows = 0, columns = 0; // of the matrix; `columns` is the length of every other vector
  int64_t heads = 1;             // parts of x that a product takes one by one
  const float *weight = nullptr, *bias = nullptr;
  StepNorm norm;      // what a norm does, or a product to x before it
  int32_t choice = 0; // the activation, or which number is looked up
  float a = 0, b = 0; // factors
  double factor = 0;  // of positions
  const double *frequencies = nullptr;
  // Attention: `rows` heads of `columns` channels, in q = x; `width` is what q and k have of a head, if that is another number.
  int64_t k = -1, v = -1, s = -1, p = -1, z = -1, u = -1, begun = -1, width = 0;
  FeatureMap map = FeatureMap::identity;
  float momentum = 0, step_size = 1, epsilon = 0;
  std::array<StepView, CTORCH_STEP_MOST_VIEWS> views; // what is done to one cache has it in the first
  // What counts from the last `period`-th token of the cache `clock`; all that is done only after every `due`-th one of another.
  int64_t clock = -1, period = 0, due_clock = -1, due = 0;
  // Over the past, which `past` is the number of; see step_past.hpp.
  size_t past = 0;
  int64_t channels = 0, group = 0, stride = 0;
  // A product: how many x it takes, one behind the other; whether the weight begins with row `position` of `table_rows`.
  int64_t vectors = 1, table_rows = 0;
  bool moves = false;
  bool is_folded = false, is_read = false; // a norm: some product computes it on the way; someone else reads it
  int64_t needs = 0; // how many operations from the first on have to be done before this one; see `StepSchedule`

  static constexpr int64_t waves_at_once = 32;
  /// Channels of a piece, and the pieces that scores of keys are cut into.
  static constexpr int64_t channels_at_once = 64, score_pieces = 8;
  /// Rows of a matrix that are one piece of work: some 64 KiB of weights.
  int64_t rows_at_once() const { return std::max<int64_t>(16, 16384 / std::max<int64_t>(columns, 1) / 16 * 16); }
  int64_t pieces_of_head() const { return (rows + rows_at_once() - 1) / rows_at_once(); }
  int64_t pieces() const {
    switch (kind) {
    case StepKind::linear: return heads * pieces_of_head();
    case StepKind::causal_linear:
    case StepKind::adaptive_momentum:
    case StepKind::weighted_means:
    case StepKind::expand:
    case StepKind::attend:
    case StepKind::average: return rows;
    case StepKind::taps:
    case StepKind::moving_average:
    case StepKind::pool:
    case StepKind::cell: return blocks();
    case StepKind::score: return score_pieces;
    case StepKind::sum: return rows * blocks();
    case StepKind::waves: return (columns + waves_at_once - 1) / waves_at_once;
    default: return is_folded && !is_read ? 0 : 1;
    }
  }
  /// Pieces of `channels_at_once`.
  int64_t blocks() const { return (columns + channels_at_once - 1) / channels_at_once; }
  bool reads_z() const { return kind == StepKind::combine || kind == StepKind::gate; }
  std::vector<int64_t> reads() const {
    std::vector<int64_t> places{x, residual, k, v, reads_z() ? z : -1};
    for (const auto &view : views)
      places.insert(places.end(), {view.q, view.distance_q, of_cache(view.cache), of_cache(view.distances)});
    return places;
  }
  std::vector<int64_t> writes() const {
    return {y, s, p, u, begun, reads_z() ? -1 : z, k >= 0 ? of_cache(views[0].cache) : -1};
  }

private:
  /// A place that no vector has.
  static int64_t of_cache(int64_t cache) { return cache < 0 ? -1 : -2 - cache; }
};

/// Which worker does what. Every operation is cut into as many shares of pieces as there are workers. A worker begins with its
/// own share, whose weights its cache may still hold, and then takes pieces from the others': nobody waits for a worker that
/// does not come. Nothing has to be set back between runs, since counters go on from run to run.
class StepSchedule {
public:
  StepSchedule() = default;
  StepSchedule(const std::vector<StepOperation> &operations, int64_t workers);

  int64_t workers() const { return workers_; }
  void begin() { ++run_; }

  /// The next piece of an operation for this worker, or -1. `turn` begins at 0 and belongs to the caller.
  int64_t take(size_t operation, int64_t worker, int64_t &turn);
  /// Says that as many pieces of the operation are done.
  void finish(size_t operation, int64_t count) { done_[operation].value.fetch_add(count, std::memory_order_release); }
  bool is_done(size_t operation) const {
    return done_[operation].value.load(std::memory_order_acquire) >= run_ * pieces_[operation];
  }

private:
  static constexpr int piece_bits = 24;
  /// On a cache line of its own.
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  int64_t workers_ = 0, run_ = 0;
  std::vector<int64_t> pieces_;
  std::vector<Counter> next_, done_; // `next_` of each operation and share: the run, and in the lower bits the next piece
};

/// Operations, and what they work on.
struct StepList {
  std::vector<StepOperation> operations;
  std::vector<StepCache> caches;
  std::vector<StepPast> pasts;
  std::vector<at::Tensor> weights; // which the operations point into
  at::Tensor memory = at::zeros({0}, at::kFloat);
  int64_t due_clock = -1, due = 0; // of what is appended next
  StepSchedule schedule;

  int64_t slot(int64_t count) {
    const int64_t place = memory.numel();
    memory = at::cat({memory, at::zeros({(count + 31) / 16 * 16}, at::kFloat)});
    return place;
  }

  template <typename T = float> const T *keep(ctorch_tensor handle, at::IntArrayRef shape) {
    if (!handle) return nullptr;
    const auto &t = get(handle);
    TORCH_CHECK(t.is_cpu() && t.scalar_type() == c10::CppTypeToScalarType<T>::value && t.is_contiguous() && t.sizes() == shape,
                "a step program takes contiguous ", c10::CppTypeToScalarType<T>::value, " weights on the CPU of shape ", shape,
                ", not ", t.toString(), " ", t.sizes());
    weights.push_back(t);
    return t.const_data_ptr<T>();
  }

  /// The number of what is kept for an operation.
  size_t hold(StepPast past) {
    pasts.push_back(std::move(past));
    return pasts.size() - 1;
  }

  /// Adds an operation. A product takes over the norm of its x, if that is what x is.
  void append(StepOperation operation) {
    operation.due_clock = due_clock, operation.due = due;
    const auto read = operation.reads();
    for (auto &earlier : operations) {
      if (earlier.kind != StepKind::norm || std::count(read.begin(), read.end(), earlier.y) == 0) continue;
      if (operation.kind == StepKind::linear && operation.heads * operation.vectors == 1 && operation.x == earlier.y) {
        operation.norm = earlier.norm, operation.x = earlier.x;
        earlier.is_folded = true;
      } else {
        earlier.is_read = true;
      }
    }
    operations.push_back(operation);
    schedule = {};
  }
};

/// What a program lists.
StepList &list_of(ctorch_step_program program);

} // namespace ctorch
