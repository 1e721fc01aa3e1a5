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

/// `rows` products of rows of the matrix with x, four rows at a time.
INLINE void row_products(int64_t rows, int64_t columns, const float *matrix, const float *x, float *y) {
  const int64_t whole = columns / width<float> * width<float>;
  const Floats rest = whole < columns ? load_first<float>(x + whole, columns - whole) : Floats{};
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float *m = matrix + r * columns;
    Floats s0{}, s1{}, s2{}, s3{};
    for (int64_t c = 0; c < whole; c += width<float>) {
      const auto v = load<float>(x + c);
      s0 += v * load<float>(m + c);
      s1 += v * load<float>(m + columns + c);
      s2 += v * load<float>(m + 2 * columns + c);
      s3 += v * load<float>(m + 3 * columns + c);
    }
    if (whole < columns) {
      s0 += rest * load_first<float>(m + whole, columns - whole);
      s1 += rest * load_first<float>(m + columns + whole, columns - whole);
      s2 += rest * load_first<float>(m + 2 * columns + whole, columns - whole);
      s3 += rest * load_first<float>(m + 3 * columns + whole, columns - whole);
    }
    y[r] = sum_of<float>(s0), y[r + 1] = sum_of<float>(s1), y[r + 2] = sum_of<float>(s2), y[r + 3] = sum_of<float>(s3);
  }
  for (; r < rows; ++r) {
    Floats sum = whole < columns ? rest * load_first<float>(matrix + r * columns + whole, columns - whole) : Floats{};
    for (int64_t c = 0; c < whole; c += width<float>) sum += load<float>(x + c) * load<float>(matrix + r * columns + c);
    y[r] = sum_of<float>(sum);
  }
}

inline void step_linear(const StepOperation &o, float *memory, int64_t piece) {
  const int64_t first = piece * o.rows_at_once(), rows = std::min(o.rows_at_once(), o.rows - first);
  alignas(64) float sums[16384 / 4 + 16];
  row_products(rows, o.columns, o.weight + first * o.columns, memory + o.x, sums);
  float *y = memory + o.y + first;
  const float *residual = o.residual < 0 ? nullptr : memory + o.residual + first;
  for (int64_t r = 0; r < rows; r += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, rows - r);
    Floats sum = load<float>(sums + r);
    if (o.bias) sum += load_first<float>(o.bias + first + r, n);
    sum = activated(o.choice, sum);
    if (residual) sum += load_first<float>(residual + r, n);
    store_first<float>(y + r, sum, n);
  }
}

inline void step_norm(const StepOperation &o, float *memory) {
  const float *x = memory + o.x, n = static_cast<float>(o.columns);
  float mean = 0, squares = 0;
  if (o.choice == CTORCH_STEP_LAYER_NORM) {
    Floats sum{};
    for (int64_t c = 0; c < o.columns; c += width<float>) sum += load_first<float>(x + c, std::min<int64_t>(width<float>, o.columns - c));
    mean = sum_of<float>(sum) / n;
  }
  Floats sum{};
  for (int64_t c = 0; c < o.columns; c += width<float>) {
    const int64_t m = std::min<int64_t>(width<float>, o.columns - c);
    auto part = load_first<float>(x + c, m);
    for (int i = 0; i < m; ++i) part[i] -= mean;
    sum += part * part;
  }
  squares = sum_of<float>(sum) / n;
  const float scale = o.choice == CTORCH_STEP_SIMPLE_RMS_NORM ? 1 / (std::sqrt(squares) + o.a) : 1 / std::sqrt(squares + o.a);
  for (int64_t c = 0; c < o.columns; c += width<float>) {
    const int64_t m = std::min<int64_t>(width<float>, o.columns - c);
    auto part = (load_first<float>(x + c, m) - mean) * scale;
    if (o.weight) part *= load_first<float>(o.weight + c, m);
    if (o.bias) part += load_first<float>(o.bias + c, m);
    store_first<float>(memory + o.y + c, part, m);
  }
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

inline void step(const StepOperation &o, float *memory, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return step_linear(o, memory, piece);
  case StepKind::norm: return step_norm(o, memory);
  case StepKind::combine:
    for (int64_t c = 0; c < o.columns; ++c) memory[o.y + c] = o.a * memory[o.x + c] + o.b * memory[o.z + c];
    return;
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; c += width<float>)
      store<float>(memory + o.y + c, activated(o.choice, load<float>(memory + o.x + c)) * load<float>(memory + o.z + c));
    return;
  case StepKind::causal_linear: return step_causal_linear(o, memory, piece);
  }
}
