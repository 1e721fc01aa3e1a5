// The operations of step programs for one instruction set; see step_program.cpp. Memory that vectors lie in is padded, so
// that whole vectors may be read and written up to the next multiple of 16 numbers.

#include "feature_maps.kernels.hpp"

typedef Vector<float> Floats;

/// log(1 + e^x), a number at a time: it is rare.
INLINE Floats softened(Floats x) {
  for (int i = 0; i < width<float>; ++i) x[i] = x[i] > 20 ? x[i] : std::log1p(std::exp(x[i]));
  return x;
}

INLINE Floats activated(int32_t activation, Floats x) {
  switch (activation) {
  case CTORCH_STEP_RELU: return larger<float>(x, Floats{});
  case CTORCH_STEP_GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
  case CTORCH_STEP_GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
  case CTORCH_STEP_SILU: return x * logistic<float>(x);
  case CTORCH_STEP_TANH: return hyperbolic_tangent(x);
  case CTORCH_STEP_SIGMOID: return logistic<float>(x);
  case CTORCH_STEP_ELU: return x > 0 ? x : exponential(smaller<float>(x, Floats{})) - 1.0f;
  case CTORCH_STEP_SOFTPLUS: return softened(x);
  case CTORCH_STEP_ELU_PLUS_ONE: return feature<float>(FeatureMap::elu_plus_one, x);
  default: return x;
  }
}

/// Σ row · x
INLINE float row_product(int64_t columns, const float *row, const float *x) {
  constexpr int64_t together = 4 * width<float>;
  Floats sums[4] = {};
  int64_t c = 0;
  for (; c + together <= columns; c += together)
    for (int i = 0; i < 4; ++i) sums[i] += load<float>(row + c + i * width<float>) * load<float>(x + c + i * width<float>);
  for (; c + width<float> <= columns; c += width<float>) sums[0] += load<float>(row + c) * load<float>(x + c);
  if (c < columns) sums[1] += load_first<float>(row + c, columns - c) * load_first<float>(x + c, columns - c);
  return sum_of<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// Products of four rows that follow one another: the cache gives four streams faster than one.
INLINE void four_products(int64_t columns, const float *rows, const float *x, float *to) {
  Floats sums[4] = {};
  int64_t c = 0;
  for (; c + width<float> <= columns; c += width<float>) {
    const auto v = load<float>(x + c);
    for (int i = 0; i < 4; ++i) sums[i] += load<float>(rows + i * columns + c) * v;
  }
  if (c < columns) {
    const auto v = load_first<float>(x + c, columns - c);
    for (int i = 0; i < 4; ++i) sums[i] += load_first<float>(rows + i * columns + c, columns - c) * v;
  }
  for (int i = 0; i < 4; ++i) to[i] = sum_of<float>(sums[i]);
}

/// With several x, some rows go through all of them while they are in the cache.
inline void step_linear(const StepOperation &o, float *memory, const float *x, int64_t piece) {
  const int64_t head = piece / o.pieces_of_head(), first = piece % o.pieces_of_head() * o.rows_at_once();
  const int64_t last = std::min(o.rows, first + o.rows_at_once());
  memory += head * o.rows, x += head * o.columns; // y and the addend are as many rows further
  for (int64_t row = first; row < last; row += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - row);
    const float *weight = o.weight + row * o.columns;
    for (int64_t i = 0; i < o.vectors; ++i) {
      const float *own = x + i * o.columns;
      alignas(64) float sums[width<float>] = {};
      int64_t r = 0;
      for (; r + 4 <= n; r += 4) four_products(o.columns, weight + r * o.columns, own, sums + r);
      for (; r < n; ++r) sums[r] = row_product(o.columns, weight + r * o.columns, own);
      Floats sum = load<float>(sums);
      if (o.bias) sum += load_first<float>(o.bias + row, n);
      sum = activated(o.choice, sum);
      if (o.residual >= 0) sum += load_first<float>(memory + o.residual + row, n);
      store_first<float>(memory + o.y + i * o.rows + row, sum, n);
    }
  }
}

inline void step_norm(const StepNorm &norm, int64_t count, const float *x, float *y) {
  const float n = static_cast<float>(count);
  auto for_each_vector = [&](auto body) {
    for (int64_t c = 0; c < count; c += width<float>) body(c, std::min<int64_t>(width<float>, count - c));
  };
  const bool is_simple = norm.kind == CTORCH_STEP_SIMPLE_RMS_NORM;
  float mean = 0, unit = 1;
  Floats sum{}, squares{};
  if (is_simple) { // it takes what grows like a cube, whose squares would leave the range
    Floats largest = splat<float>(1);
    for_each_vector([&](int64_t c, int64_t m) {
      const auto part = load_first<float>(x + c, m);
      largest = larger<float>(larger<float>(part, -part), largest);
    });
    unit = largest_of<float>(largest);
  }
  if (norm.is_centered()) {
    for_each_vector([&](int64_t c, int64_t m) { sum += load_first<float>(x + c, m); });
    mean = sum_of<float>(sum) / n;
  }
  for_each_vector([&](int64_t c, int64_t m) {
    alignas(64) float above[width<float>] = {};
    store_first<float>(above, (load_first<float>(x + c, m) - mean) * (1 / unit), m); // zeros beyond the end stay zeros
    squares += load<float>(above) * load<float>(above);
  });
  const float scale = 1 / norm.root(sum_of<float>(squares), n, unit);
  for_each_vector([&](int64_t c, int64_t m) {
    auto part = (load_first<float>(x + c, m) - mean) * scale;
    if (norm.weight) part *= load_first<float>(norm.weight + c, m);
    if (norm.bias) part += load_first<float>(norm.bias + c, m);
    store_first<float>(y + c, part, m);
  });
}

#include "step_attention.kernels.hpp"

inline void step(const StepOperation &o, float *memory, StepCache *caches, const float *x, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return step_linear(o, memory, x, piece);
  case StepKind::norm: return step_norm(o.norm, o.columns, x, memory + o.y);
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; c += width<float>)
      store<float>(memory + o.y + c, activated(o.choice, load<float>(x + c)) * load<float>(memory + o.z + c));
    return;
  case StepKind::causal_linear: return step_causal_linear(o, memory, piece);
  case StepKind::attend: return step_attend(o, memory, caches, piece);
  case StepKind::adaptive_momentum: return step_adaptive_momentum(o, memory, piece);
  case StepKind::weighted_means: return step_weighted_means(o, memory, piece);
  case StepKind::pool: return step_pool(o, memory, caches, piece);
  default: return;
  }
}

#include "step_past.kernels.hpp"
#include "step_recurrence.kernels.hpp"
