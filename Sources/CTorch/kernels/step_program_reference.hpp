// The operations of step programs as plain loops; see step_program.cpp.
#pragma once

#include "step_program.hpp"

namespace ctorch::reference {
namespace {

float activated(int32_t activation, float x) {
  switch (activation) {
  case CTORCH_STEP_RELU: return std::max(x, 0.0f);
  case CTORCH_STEP_GELU: return 0.5f * x * (1 + std::erf(x / std::sqrt(2.0f)));
  case CTORCH_STEP_GELU_TANH: return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
  case CTORCH_STEP_SILU: return x / (1 + std::exp(-x));
  case CTORCH_STEP_TANH: return std::tanh(x);
  case CTORCH_STEP_SIGMOID: return 1 / (1 + std::exp(-x));
  case CTORCH_STEP_ELU: return x > 0 ? x : std::expm1(x);
  case CTORCH_STEP_SOFTPLUS: return x > 20 ? x : std::log1p(std::exp(x));
  default: return x;
  }
}

float mapped(FeatureMap map, float x) {
  switch (map) {
  case FeatureMap::elu: return x > 0 ? x : std::expm1(x);
  case FeatureMap::elu_plus_one: return x > 0 ? x + 1 : std::exp(x);
  case FeatureMap::relu: return std::max(x, 0.0f);
  case FeatureMap::sigmoid: return 1 / (1 + std::exp(-x));
  case FeatureMap::silu: return x / (1 + std::exp(-x));
  case FeatureMap::exponential: return std::exp(x);
  default: return x;
  }
}

void step_norm(const StepNorm &norm, int64_t count, const float *x, float *y) {
  const float n = static_cast<float>(count);
  float mean = 0, squares = 0;
  if (norm.is_centered())
    for (int64_t c = 0; c < count; ++c) mean += x[c] / n;
  for (int64_t c = 0; c < count; ++c) squares += (x[c] - mean) * (x[c] - mean);
  const float root = norm.root(squares, n);
  for (int64_t c = 0; c < count; ++c)
    y[c] = (x[c] - mean) / root * (norm.weight ? norm.weight[c] : 1) + (norm.bias ? norm.bias[c] : 0);
}

void linear(const StepOperation &o, float *memory, const float *x, int64_t piece) {
  const int64_t first = piece * o.rows_at_once();
  for (int64_t i = 0; i < o.vectors; ++i)
    for (int64_t r = first; r < std::min(o.rows, first + o.rows_at_once()); ++r) {
      float sum = o.bias ? o.bias[r] : 0;
      for (int64_t c = 0; c < o.columns; ++c) sum += o.weight[r * o.columns + c] * x[i * o.columns + c];
      memory[o.y + i * o.rows + r] = activated(o.choice, sum) + (o.residual < 0 ? 0 : memory[o.residual + r]);
    }
}

void causal_linear(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * d;
  float sum = o.epsilon;
  for (int64_t f = 0; f < d; ++f) {
    const float phi_k = mapped(o.map, memory[o.k + from + f]);
    memory[o.z + from + f] += phi_k;
    sum += mapped(o.map, memory[o.x + from + f]) * memory[o.z + from + f];
    for (int64_t m = 0; m < d; ++m) {
      float update = phi_k * memory[o.v + from + m];
      if (o.p >= 0) {
        float &p = memory[o.p + (from + f) * d + m];
        p = o.momentum * p - o.step_size * update;
        update = -p;
      }
      memory[o.s + (from + f) * d + m] += update;
    }
  }
  for (int64_t m = 0; m < d; ++m) {
    float y = 0;
    for (int64_t f = 0; f < d; ++f) y += mapped(o.map, memory[o.x + from + f]) * memory[o.s + (from + f) * d + m];
    memory[o.y + from + m] = y / sum;
  }
}

void attend(const StepOperation &o, float *memory, StepCache &cache, int64_t head) {
  const int64_t d = o.columns, at = head * d;
  std::copy_n(memory + o.k + at, d, cache.keys.data() + cache.row() * cache.width + at);
  std::copy_n(memory + o.v + at, d, cache.values.data() + cache.row() * cache.width + at);
  std::vector<float> weights(static_cast<size_t>(cache.rows()));
  float largest = -INFINITY, sum = 0, *y = memory + o.y + at;
  for (size_t j = 0; j < weights.size(); ++j) {
    const float *key = cache.keys.data() + static_cast<int64_t>(j) * cache.width + at;
    for (int64_t c = 0; c < d; ++c) weights[j] += o.a * memory[o.x + at + c] * key[c];
    largest = std::max(largest, weights[j]);
  }
  std::fill_n(y, d, 0.0f);
  for (size_t j = 0; j < weights.size(); ++j) {
    const float weight = std::exp(weights[j] - largest), *value = cache.values.data() + static_cast<int64_t>(j) * cache.width + at;
    sum += weight;
    for (int64_t c = 0; c < d; ++c) y[c] += weight * value[c];
  }
  for (int64_t c = 0; c < d; ++c) y[c] /= sum;
}

void step(const StepOperation &o, float *memory, StepCache *caches, const float *x, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return linear(o, memory, x, piece);
  case StepKind::norm: return step_norm(o.norm, o.columns, x, memory + o.y);
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; ++c) memory[o.y + c] = activated(o.choice, x[c]) * memory[o.z + c];
    return;
  case StepKind::causal_linear: return causal_linear(o, memory, piece);
  case StepKind::attend: return attend(o, memory, caches[o.cache], piece);
  default: return;
  }
}

} // namespace
} // namespace ctorch::reference
