// What operations of step programs keep of the tokens before; see step_past.kernels.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace ctorch {

/// A row of keys and a row of values for each token. It belongs to one operation, or to a score and the sum after it.
struct StepPast {
  int64_t key_width = 0, value_width = 0; // numbers in a row
  int64_t room = 0;                       // rows, 0 for any number
  bool restarts = false;                  // when there is no room, forgets all of them rather than the oldest
  int64_t most = 0;                       // how many tokens there may be, 0 for any number
  int64_t count = 0;                      // of tokens, the present one included; where it restarts, since then
  std::vector<float> keys, values, scores;
  /// What is added to scores, by distance: given, or made of `wave_count` waves as far as it is needed.
  std::vector<float> biases;
  const double *frequencies = nullptr;
  const float *cosines = nullptr, *sines = nullptr;
  int64_t wave_count = 0;

  /// Room for the present token.
  void make_room() {
    if (restarts && count == room) count = 0;
    ++count;
    auto grow = [&](std::vector<float> &numbers, int64_t width) {
      const auto needed = static_cast<size_t>(rows() * width);
      if (numbers.size() < needed) numbers.resize(needed);
    };
    grow(keys, key_width);
    grow(values, value_width);
    grow(scores, 1);
    if (wave_count == 0) return;
    for (auto distance = static_cast<int64_t>(biases.size()); distance < rows(); ++distance)
      biases.push_back(waves(static_cast<double>(distance)));
  }
  float waves(double distance) const {
    double sum = 0;
    for (int64_t i = 0; i < wave_count; ++i)
      sum += std::cos(distance * frequencies[i]) * cosines[i] + std::sin(distance * frequencies[i]) * sines[i];
    return static_cast<float>(sum);
  }
  int64_t rows() const { return room > 0 ? std::min(count, room) : count; }
  /// The present token's row: that of the token that is the first to be forgotten.
  int64_t row() const { return room > 0 ? (count - 1) % room : count - 1; }
};

} // namespace ctorch
