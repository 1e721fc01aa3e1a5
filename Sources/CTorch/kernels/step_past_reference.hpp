// The operations of step programs over the past, and those that go on from a state, as plain loops; see step_program.cpp.
#pragma once

#include "step_program_reference.hpp"

namespace ctorch::reference {
namespace {

/// A token's place in a full past, the oldest first.
int64_t row_of(const StepPast &past, int64_t place) { return (past.row() + 1 + place) % past.room; }

void average(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t first = piece * o.columns, last = std::min(o.channels, first + o.columns), row = past.row();
  const bool one_key = past.key_width < past.value_width;
  auto key = [&](int64_t r, int64_t c) -> float & {
    return past.keys[static_cast<size_t>(r * past.key_width + (one_key ? piece : c))];
  };
  auto value = [&](int64_t r, int64_t c) -> float & { return past.values[static_cast<size_t>(r * past.value_width + c)]; };
  const float *bias = o.weight ? o.weight + piece * past.room : o.residual < 0 ? nullptr : memory + o.residual;
  for (int64_t c = first; c < last; ++c) {
    float &exponent = memory[o.s + c], &numerator = memory[o.p + c], &denominator = memory[o.z + c];
    const float largest = std::max(exponent, key(row, c)), kept = std::exp(exponent - largest);
    const float leaving = std::exp(key(row, c) - largest);
    numerator = numerator * kept + leaving * value(row, c);
    denominator = denominator * kept + leaving;
    exponent = largest;
  }
  for (int64_t c = first; c < last; ++c) {
    key(row, c) = memory[o.k + (one_key ? piece : c)];
    value(row, c) = memory[o.v + c];
  }
  for (int64_t c = first; c < last; ++c) {
    auto score = [&](int64_t i) { return key(row_of(past, i), c) + (bias ? bias[i] : 0); };
    float largest = memory[o.s + c];
    for (int64_t i = 0; i < past.room; ++i) largest = std::max(largest, score(i));
    const float older = std::exp(memory[o.s + c] - largest);
    float numerator = memory[o.p + c] * older, denominator = memory[o.z + c] * older;
    for (int64_t i = 0; i < past.room; ++i) {
      const float weight = std::exp(score(i) - largest);
      numerator += weight * value(row_of(past, i), c);
      denominator += weight;
    }
    memory[o.y + c] = activated(o.choice, memory[o.x + c]) * numerator / denominator;
  }
}

void taps(const StepOperation &o, float *memory, StepPast &past, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; ++c) {
    past.values[static_cast<size_t>(past.row() * o.columns + c)] = memory[o.x + c];
    float sum = 0;
    for (int64_t i = 0; i < past.room; ++i)
      sum += o.weight[i * o.columns + c] * past.values[static_cast<size_t>(row_of(past, i) * o.columns + c)];
    memory[o.y + c] = activated(o.choice, sum);
  }
}

void score(const StepOperation &o, const float *memory, StepPast &past, int64_t piece) {
  const int64_t rows = past.rows(), d = past.key_width, last = rows * (piece + 1) / o.score_pieces;
  if (last == rows) std::copy_n(memory + o.k, d, past.keys.data() + (rows - 1) * d);
  for (int64_t j = rows * piece / o.score_pieces; j < last; ++j) {
    float sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += memory[o.x + c] * past.keys[static_cast<size_t>(j * d + c)];
    const float divisor = o.choice == CTORCH_STEP_SOFTMAX ? 1 : static_cast<float>(rows);
    const float found = sum * o.a / divisor + past.biases[static_cast<size_t>(rows - 1 - j)];
    float &weight = past.scores[static_cast<size_t>(j)];
    weight = found;
    if (o.choice == CTORCH_STEP_RELU2) weight = std::max(found, 0.0f) * std::max(found, 0.0f);
    if (o.choice == CTORCH_STEP_LAPLACE) weight = 0.5f * std::erfc((0.707107f - found) / (0.282095f * std::sqrt(2.0f)));
  }
}

void sum(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t head = piece / o.blocks(), first = piece % o.blocks() * o.channels_at_once, rows = past.rows();
  std::vector<float> weights(static_cast<size_t>(rows));
  const float *given = o.weight ? o.weight + head * o.group + (rows - 1) * o.stride : past.scores.data();
  const float largest = *std::max_element(given, given + rows);
  float total = 0;
  for (int64_t j = 0; j < rows; ++j) {
    weights[static_cast<size_t>(j)] = o.choice == CTORCH_STEP_SOFTMAX ? std::exp(given[j] - largest) : given[j];
    total += weights[static_cast<size_t>(j)];
  }
  for (int64_t c = head * o.columns + first; c < head * o.columns + std::min(o.columns, first + o.channels_at_once); ++c) {
    past.values[static_cast<size_t>(past.row() * past.value_width + c)] = memory[o.v + c];
    float y = 0;
    for (int64_t j = 0; j < rows; ++j)
      y += weights[static_cast<size_t>(j)] * past.values[static_cast<size_t>(j * past.value_width + c)];
    if (o.choice == CTORCH_STEP_SOFTMAX) y /= total;
    memory[o.y + c] = y + (o.bias ? o.bias[head * past.most + rows - 1] : 0);
  }
}

void step_past(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t first = piece * o.channels_at_once;
  switch (o.kind) {
  case StepKind::average: return average(o, memory, past, piece);
  case StepKind::taps: return taps(o, memory, past, first, std::min(o.columns, first + o.channels_at_once));
  case StepKind::score: return score(o, memory, past, piece);
  default: return sum(o, memory, past, piece);
  }
}

void moving_average(const StepOperation &o, float *memory, int64_t first, int64_t last) {
  const int64_t all = o.rows * o.columns;
  for (int64_t c = first; c < last; ++c) {
    float sum = o.weight[3 * all + c] * memory[o.x + c];
    for (int64_t at = c; at < all; at += o.columns) {
      float &s = memory[o.s + at];
      s = o.weight[at] * memory[o.x + c] + o.weight[all + at] * s;
      sum += o.weight[2 * all + at] * s;
    }
    memory[o.y + c] = activated(CTORCH_STEP_SILU, sum);
  }
}

void cell(const StepOperation &o, float *memory, int64_t first, int64_t last) {
  auto sigmoid = [](float x) { return 1 / (1 + std::exp(-x)); };
  for (int64_t c = first; c < last; ++c)
    for (int64_t age = o.rows - 1; age >= 0; --age) {
      auto input = [&](int64_t gate) { return memory[o.x + gate * o.columns + c]; };
      auto hidden = [&](int64_t gate) {
        return age == 0 ? o.bias[gate * o.columns + c] : memory[o.k + (age - 1) * o.channels + gate * o.columns + c];
      };
      const int64_t from = (age - 1) * o.columns + c, to = age * o.columns + c;
      float h = age == 0 ? 0 : memory[o.s + from], memorized = age == 0 || o.p < 0 ? 0 : memory[o.p + from];
      if (o.choice == CTORCH_STEP_GRU) {
        const float z = sigmoid(input(1) + hidden(1)), r = sigmoid(input(0) + hidden(0));
        h = (1 - z) * std::tanh(input(2) + r * hidden(2)) + z * h;
      } else if (o.choice == CTORCH_STEP_LSTM) {
        memorized = sigmoid(input(1) + hidden(1)) * memorized + sigmoid(input(0) + hidden(0)) * std::tanh(input(2) + hidden(2));
        h = sigmoid(input(3) + hidden(3)) * std::tanh(memorized);
      } else {
        h = std::tanh(input(0) + hidden(0));
      }
      const bool is_complete = age == o.rows - 1;
      memory[is_complete ? o.y + c : o.s + to] = h;
      if (!is_complete && o.p >= 0) memory[o.p + to] = memorized;
    }
}

void step_recurrence(const StepOperation &o, float *memory, int64_t piece) {
  const int64_t first = piece * o.channels_at_once, last = std::min(o.columns, first + o.channels_at_once);
  o.kind == StepKind::cell ? cell(o, memory, first, last) : moving_average(o, memory, first, last);
}

} // namespace
} // namespace ctorch::reference
