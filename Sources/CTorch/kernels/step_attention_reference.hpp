// The operations of step programs that look at the tokens before, as plain loops.
#pragma once

#include "step_program.hpp"
#include "CTorch.h"

namespace ctorch::reference {
namespace {

/// y = φq s / norm of one head.
void read_sums(const StepOperation &o, float *memory, int64_t head, float norm) {
  const float *q = memory + o.x + head * o.width, *s = memory + o.s + head * o.width * o.columns;
  for (int64_t m = 0; m < o.columns; ++m) {
    float y = 0;
    for (int64_t f = 0; f < o.width; ++f) y += feature(o.map, q[f]) * s[f * o.columns + m];
    memory[o.y + head * o.columns + m] = y / norm;
  }
}

void causal_linear(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * o.width;
  float norm = o.z < 0 ? 1 : o.epsilon;
  for (int64_t f = 0; f < o.width; ++f) {
    const float phi_k = feature(o.map, memory[o.k + from + f]);
    if (o.z >= 0) norm += feature(o.map, memory[o.x + from + f]) * (memory[o.z + from + f] += phi_k);
    for (int64_t m = 0; m < d; ++m) {
      float update = phi_k * memory[o.v + head * d + m];
      if (o.p >= 0) {
        float &p = memory[o.p + (from + f) * d + m];
        p = o.momentum * p - o.step_size * update;
        update = -p;
      }
      memory[o.s + (from + f) * d + m] += update;
    }
  }
  read_sums(o, memory, head, norm);
}

void adaptive_momentum(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * d;
  float norm = o.epsilon, change = 0, length = 0;
  for (int64_t f = 0; f < d; ++f) {
    const float phi_k = feature(o.map, memory[o.k + from + f]);
    norm += feature(o.map, memory[o.x + from + f]) * (memory[o.z + from + f] += phi_k);
    for (int64_t m = 0; m < d; ++m) {
      const float now = phi_k * memory[o.v + from + m], p = memory[o.p + (from + f) * d + m];
      float &u = memory[o.u + (from + f) * d + m];
      change += (now - u) * (now - u), length += p * p;
      u = now;
    }
  }
  const AdaptiveMomentum<float> momentum(change, length, o.step_size, o.a, memory[o.begun + head] != 0);
  memory[o.begun + head] = 1;
  for (int64_t i = from * d; i < (from + d) * d; ++i) {
    memory[o.p + i] = momentum.beta * memory[o.p + i] - momentum.step_size * memory[o.u + i];
    memory[o.s + i] -= memory[o.p + i];
  }
  read_sums(o, memory, head, norm);
}

void attend(const StepOperation &o, float *memory, StepCache *caches, int64_t head) {
  const int64_t d = o.columns, at = head * d;
  if (o.k >= 0) caches[o.views[0].cache].set(at, d, memory + o.k + at, memory + o.v + at);
  std::vector<float> weights;
  std::vector<const float *> values;
  for (const auto &view : o.views) {
    if (view.cache < 0) continue;
    const StepCache &cache = caches[view.cache];
    const SeenRows seen(cache, view.look, head);
    for (int64_t j = 0; j < seen.count; ++j) {
      const int64_t row = seen[j];
      float score = 0;
      for (int64_t c = 0; c < d; ++c) {
        score += memory[view.q + at + c] * cache.keys.data()[row * cache.width + at + c];
        if (view.distances < 0) continue;
        const StepCache &distances = caches[view.distances];
        score += memory[view.distance_q + at + c] * distances.keys.data()[cache.age(row) * distances.width + at + c];
      }
      weights.push_back(o.a * score);
      values.push_back(cache.values.data() + row * cache.width + at);
    }
  }
  const bool is_softmax = o.choice == CTORCH_STEP_SOFTMAX_WEIGHTS;
  float sum = 0, *y = memory + o.y + at;
  std::fill_n(y, d, 0.0f);
  if (weights.empty()) return;
  const float largest = *std::max_element(weights.begin(), weights.end());
  for (size_t j = 0; j < weights.size(); ++j) {
    const float weight = is_softmax ? std::exp(weights[j] - largest) : std::max(weights[j], 0.0f);
    sum += weight;
    for (int64_t c = 0; c < d; ++c) y[c] += weight * values[j][c];
  }
  for (int64_t c = 0; c < d && is_softmax; ++c) y[c] /= sum;
}

void pool(const StepOperation &o, float *memory, const StepCache *caches, int64_t piece) {
  const StepCache &cache = caches[o.views[0].cache];
  const SeenRows seen(cache, o.views[0].look, 0);
  for (int64_t c = piece * o.channels_at_once; c < std::min(o.columns, (piece + 1) * o.channels_at_once); ++c)
    for (const auto &[rows, to] : {std::pair(&cache.keys, o.y), std::pair(&cache.values, o.s)}) {
      if (to < 0) continue;
      float pooled = 0;
      for (int64_t j = 0; j < seen.count; ++j) {
        const float x = rows->data()[seen[j] * cache.width + c];
        pooled = j == 0 ? x : o.choice == CTORCH_STEP_LARGEST ? std::max(pooled, x) : pooled + x;
      }
      memory[to + c] = o.choice == CTORCH_STEP_MEAN && seen.count > 0 ? pooled / static_cast<float>(seen.count) : pooled;
    }
}

void weighted_means(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * o.width;
  const float *q = memory + o.x + from, *v = memory + o.v + head * d, highest = *std::max_element(q, q + o.width);
  float norm = 0, *y = memory + o.y + head * d;
  std::fill_n(y, d, 0.0f);
  for (int64_t f = 0; f < o.width; ++f) {
    float &largest = memory[o.z + from + f], &total = memory[o.u + from + f];
    const float k = memory[o.k + from + f], before = largest, weight = std::exp(q[f] - highest);
    largest = std::max(before, k);
    const float past = total * std::exp(before - largest), present = std::exp(k - largest);
    total = past + present;
    norm += weight;
    for (int64_t c = 0; c < d; ++c) {
      float &mean = memory[o.s + (from + f) * d + c];
      mean = (past * mean + present * v[c]) / total;
      y[c] += weight * mean;
    }
  }
  for (int64_t c = 0; c < d; ++c) y[c] /= norm;
}

} // namespace
} // namespace ctorch::reference
