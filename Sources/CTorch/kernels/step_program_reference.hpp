// The operations of step programs as plain loops; see step_program.cpp.
#pragma once

#include "step_attention_reference.hpp"
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
  case CTORCH_STEP_ELU_PLUS_ONE: return x > 0 ? x + 1 : std::exp(x);
  default: return x;
  }
}

void step_norm(const StepNorm &norm, int64_t count, const float *x, float *y) {
  const float n = static_cast<float>(count);
  float mean = 0, squares = 0, unit = 1;
  if (norm.kind == CTORCH_STEP_SIMPLE_RMS_NORM)
    for (int64_t c = 0; c < count; ++c) unit = std::max(unit, std::abs(x[c]));
  if (norm.is_centered())
    for (int64_t c = 0; c < count; ++c) mean += x[c] / n;
  for (int64_t c = 0; c < count; ++c) squares += (x[c] - mean) / unit * ((x[c] - mean) / unit);
  const float root = norm.root(squares, n, unit);
  for (int64_t c = 0; c < count; ++c)
    y[c] = (x[c] - mean) / root * (norm.weight ? norm.weight[c] : 1) + (norm.bias ? norm.bias[c] : 0);
}

void linear(const StepOperation &o, float *memory, const float *x, int64_t piece) {
  const int64_t head = piece / o.pieces_of_head(), first = piece % o.pieces_of_head() * o.rows_at_once();
  memory += head * o.rows, x += head * o.columns;
  for (int64_t i = 0; i < o.vectors; ++i)
    for (int64_t r = first; r < std::min(o.rows, first + o.rows_at_once()); ++r) {
      float sum = o.bias ? o.bias[r] : 0;
      for (int64_t c = 0; c < o.columns; ++c) sum += o.weight[r * o.columns + c] * x[i * o.columns + c];
      memory[o.y + i * o.rows + r] = activated(o.choice, sum) + (o.residual < 0 ? 0 : memory[o.residual + r]);
    }
}

void step(const StepOperation &o, float *memory, StepCache *caches, const float *x, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return linear(o, memory, x, piece);
  case StepKind::norm: return step_norm(o.norm, o.columns, x, memory + o.y);
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; ++c) memory[o.y + c] = activated(o.choice, x[c]) * memory[o.z + c];
    return;
  case StepKind::causal_linear: return causal_linear(o, memory, piece);
  case StepKind::attend: return attend(o, memory, caches, piece);
  case StepKind::adaptive_momentum: return adaptive_momentum(o, memory, piece);
  case StepKind::weighted_means: return weighted_means(o, memory, piece);
  case StepKind::pool: return pool(o, memory, caches, piece);
  default: return;
  }
}

} // namespace
} // namespace ctorch::reference
