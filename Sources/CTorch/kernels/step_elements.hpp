// Operations of step programs on so few numbers that plain loops serve every instruction set; see ctorch_step_attention.h.
#pragma once

#include "step_program.hpp"
#include "CTorch.h"

namespace ctorch {

/// The features of one head's u.
inline void step_expand(const StepOperation &o, float *memory, int64_t position, int64_t head) {
  const int64_t n = o.columns;
  const bool is_smoothed = o.choice == CTORCH_STEP_SMOOTHED_FOURIER;
  const float *x = memory + o.x + head * o.width, *u = memory + o.v + head * n;
  float *y = memory + o.y + head * (2 * n + is_smoothed);
  if (o.choice == CTORCH_STEP_POSITIVE) {
    float squares = 0;
    for (int64_t c = 0; c < o.width; ++c) squares += x[c] * x[c];
    const float offset = 0.5f * o.b * squares + o.a;
    for (int64_t c = 0; c < n; ++c) y[c] = std::exp(u[c] - offset), y[n + c] = std::exp(-u[c] - offset);
  } else if (o.choice == CTORCH_STEP_TURNED) {
    const double angle = static_cast<double>(position) * o.factor;
    const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
    for (int64_t c = 0; c < n; ++c) y[c] = u[c] * cosine, y[n + c] = u[c] * sine;
  } else {
    for (int64_t c = 0; c < n; ++c) y[c] = o.a * std::cos(u[c]), y[n + c] = o.a * std::sin(u[c]);
    if (is_smoothed) y[2 * n] = o.b;
  }
}

/// The mixture of keys and values over a period; the sums shrink when a larger logit comes.
inline void step_mix(const StepOperation &o, float *memory, int64_t count) {
  const bool begins = (count - 1) % o.period == 0, ends = count % o.period == 0;
  for (int64_t head = 0; head < o.rows; ++head) {
    const float logit = memory[o.x + head * o.width + o.choice];
    float &largest = memory[o.z + 2 * head], &sum = memory[o.z + 2 * head + 1];
    const float most = begins ? logit : std::max(largest, logit);
    const float shrunk = begins ? 0 : std::exp(largest - most), weight = std::exp(logit - most);
    largest = most, sum = sum * shrunk + weight;
    const float *k = memory + o.k + head * o.columns, *v = memory + o.v + head * o.columns;
    float *keys = memory + o.s + head * o.columns, *values = memory + o.p + head * o.columns;
    const float share = ends ? 1 / sum : 1;
    for (int64_t c = 0; c < o.columns; ++c) {
      keys[c] = (keys[c] * shrunk + k[c] * weight) * share;
      values[c] = (values[c] * shrunk + v[c] * weight) * share;
    }
  }
}

inline void step_distance_waves(const StepOperation &o, float *memory, int64_t count) {
  const auto distance = static_cast<double>((count / o.period - 1) * o.width + o.choice);
  for (int64_t c = 0; c < o.columns; ++c) {
    const double angle = distance * o.frequencies[c / 2];
    memory[o.y + c] = static_cast<float>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
  }
}

} // namespace ctorch
