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
  const int64_t first = piece * o.rows_at_once(), last = std::min(o.rows, first + o.rows_at_once());
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
  float mean = 0;
  Floats sum{}, squares{};
  if (norm.is_centered()) {
    for_each_vector([&](int64_t c, int64_t m) { sum += load_first<float>(x + c, m); });
    mean = sum_of<float>(sum) / n;
  }
  for_each_vector([&](int64_t c, int64_t m) {
    alignas(64) float above[width<float>] = {};
    store_first<float>(above, load_first<float>(x + c, m) - mean, m); // zeros beyond the end stay zeros
    squares += load<float>(above) * load<float>(above);
  });
  const float scale = 1 / norm.root(sum_of<float>(squares), n);
  for_each_vector([&](int64_t c, int64_t m) {
    auto part = (load_first<float>(x + c, m) - mean) * scale;
    if (norm.weight) part *= load_first<float>(norm.weight + c, m);
    if (norm.bias) part += load_first<float>(norm.bias + c, m);
    store_first<float>(y + c, part, m);
  });
}

/// p = β p - γ φk vᵀ, s = s - p, z = z + φk, y = φq s / (φq · z + ε) of one head.
inline void step_causal_linear(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * d;
  constexpr int64_t most = 1024;
  alignas(64) float phi_q[most], phi_k[most], sums[most] = {};
  const float *v = memory + o.v + from;
  float *z = memory + o.z + from, *s = memory + o.s + head * d * d, *p = o.p < 0 ? nullptr : memory + o.p + head * d * d;
  float norm = 0;
  for (int64_t c = 0; c < d; c += width<float>) {
    const int64_t m = std::min<int64_t>(width<float>, d - c);
    store<float>(phi_q + c, feature<float>(o.map, load_first<float>(memory + o.x + from + c, m)));
    store<float>(phi_k + c, feature<float>(o.map, load_first<float>(memory + o.k + from + c, m)));
  }
  for (int64_t f = 0; f < d; ++f) {
    z[f] += phi_k[f];
    norm += phi_q[f] * z[f];
    float *row = s + f * d, *momentum = p ? p + f * d : nullptr;
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t m = std::min<int64_t>(width<float>, d - c);
      const bool whole = m == width<float>;
      auto update = (whole ? load<float>(v + c) : load_first<float>(v + c, m)) * phi_k[f];
      if (momentum) {
        update = (whole ? load<float>(momentum + c) : load_first<float>(momentum + c, m)) * o.momentum - update * o.step_size;
        whole ? store<float>(momentum + c, update) : store_first<float>(momentum + c, update, m);
        update = -update;
      }
      const auto sum = (whole ? load<float>(row + c) : load_first<float>(row + c, m)) + update;
      whole ? store<float>(row + c, sum) : store_first<float>(row + c, sum, m);
      store<float>(sums + c, load<float>(sums + c) + sum * phi_q[f]);
    }
  }
  for (int64_t c = 0; c < d; ++c) memory[o.y + from + c] = sums[c] / (norm + o.epsilon);
}

/// Σ_j softmax(scale q · k_j) v_j of one head, over blocks of keys with sums that shrink when a larger score comes.
inline void step_attend(const StepOperation &o, float *memory, StepCache &cache, int64_t head) {
  constexpr int64_t block = 128;
  const int64_t d = o.columns, at = head * d, own = cache.row() * cache.width + at, rows = cache.rows();
  std::memcpy(cache.keys.data() + own, memory + o.k + at, sizeof(float) * static_cast<size_t>(d));
  std::memcpy(cache.values.data() + own, memory + o.v + at, sizeof(float) * static_cast<size_t>(d));
  alignas(64) float weights[block];
  const float *q = memory + o.x + at;
  float *y = memory + o.y + at, largest = -INFINITY, sum = 0;
  std::memset(static_cast<void *>(y), 0, sizeof(float) * static_cast<size_t>(d));
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    const float *key = cache.keys.data() + first * cache.width + at, *value = cache.values.data() + first * cache.width + at;
    float most = largest;
    for (int64_t j = 0; j < count; ++j) most = std::max(most, weights[j] = o.a * row_product(d, key + j * cache.width, q));
    const float shrunk = std::exp(largest - most);
    largest = most, sum *= shrunk;
    for (int64_t j = 0; j < count; j += width<float>) {
      const auto some = exponential(load<float>(weights + j) - most);
      store_first<float>(weights + j, some, std::min<int64_t>(width<float>, count - j));
    }
    for (int64_t j = 0; j < count; ++j) sum += weights[j];
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t n = std::min<int64_t>(width<float>, d - c);
      Floats part = load_first<float>(y + c, n) * shrunk;
      for (int64_t j = 0; j < count; ++j) part += load_first<float>(value + j * cache.width + c, n) * weights[j];
      store_first<float>(y + c, part, n);
    }
  }
  for (int64_t c = 0; c < d; ++c) y[c] /= sum;
}

inline void step(const StepOperation &o, float *memory, StepCache *caches, const float *x, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return step_linear(o, memory, x, piece);
  case StepKind::norm: return step_norm(o.norm, o.columns, x, memory + o.y);
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; c += width<float>)
      store<float>(memory + o.y + c, activated(o.choice, load<float>(x + c)) * load<float>(memory + o.z + c));
    return;
  case StepKind::causal_linear: return step_causal_linear(o, memory, piece);
  case StepKind::attend: return step_attend(o, memory, caches[o.cache], piece);
  default: return;
  }
}

#include "step_past.kernels.hpp"
#include "step_recurrence.kernels.hpp"
