// One token through a model: operations on small vectors, worked off by a team without a barrier of the operating system.
#pragma once

#include "causal_linear.hpp"

#include <atomic>
#include <memory>
#include <vector>

namespace ctorch {

enum class StepKind { linear, norm, combine, gate, causal_linear };

/// One operation. Places are offsets into the program's memory, so that a copy of the program is a copy of that; -1: none.
struct StepOperation {
  StepKind kind;
  int64_t x = -1, y = -1, residual = -1;
  int64_t rows = 0, columns = 0; // of the matrix; `columns` is the length of every other vector
  const float *weight = nullptr, *bias = nullptr;
  int32_t choice = 0; // the activation, or which norm
  float a = 0, b = 0; // factors; ε of a norm
  // Attention: `rows` heads of `columns` channels, in q = x.
  int64_t k = -1, v = -1, s = -1, p = -1, z = -1;
  FeatureMap map = FeatureMap::identity;
  float momentum = 0, step_size = 1, epsilon = 0;

  /// Rows of a matrix that are one piece of work: some 64 KiB of weights.
  int64_t rows_at_once() const { return std::max<int64_t>(4, 16384 / std::max<int64_t>(columns, 1) / 4 * 4); }
  int64_t pieces() const {
    switch (kind) {
    case StepKind::linear: return (rows + rows_at_once() - 1) / rows_at_once();
    case StepKind::causal_linear: return rows;
    default: return 1;
    }
  }
};

/// How far the team is with one operation; on cache lines of its own.
struct alignas(64) StepProgress {
  std::atomic<int64_t> next{0}, done{0};
};

} // namespace ctorch
