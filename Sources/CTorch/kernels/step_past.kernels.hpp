// The operations of step programs that look back at rows of the past; see step_program.cpp. Each keeps its own.

/// The oldest row of a past that is full, then the others as they came; `body` is given the place in time and the row.
template <typename Body> INLINE void for_each_row(const StepPast &past, Body body) {
  const int64_t oldest = past.row() + 1;
  for (int64_t row = oldest; row < past.room; ++row) body(row - oldest, row);
  for (int64_t row = 0; row < oldest; ++row) body(past.room - oldest + row, row);
}

/// Sums of exponentials, Σ e^k v = numerator · e^exponent and Σ e^k = denominator · e^exponent.
struct ExponentialSums {
  Floats exponent, numerator, denominator;

  /// With the exponent raised to one that is not below it.
  INLINE ExponentialSums raised(Floats to) const {
    const auto scale = exponential(exponent - to);
    return {to, numerator * scale, denominator * scale};
  }
};

/// What leaves the window of an attention free transformer goes into the sums over all tokens before it.
inline void forget(const StepOperation &o, float *memory, const StepPast &past, int64_t piece, int64_t first, int64_t last) {
  const bool one_key = past.key_width < past.value_width;
  const float *key = past.keys.data() + past.row() * past.key_width, *value = past.values.data() + past.row() * past.value_width;
  for (int64_t c = first; c < last; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - c);
    const auto own = one_key ? splat<float>(key[piece]) : load_first<float>(key + c, n);
    const ExponentialSums sums{load_first<float>(memory + o.s + c, n), load_first<float>(memory + o.p + c, n),
                               load_first<float>(memory + o.z + c, n)};
    const auto raised = sums.raised(larger<float>(sums.exponent, own));
    const auto weight = exponential(own - raised.exponent);
    store_first<float>(memory + o.s + c, raised.exponent, n);
    store_first<float>(memory + o.p + c, raised.numerator + weight * load_first<float>(value + c, n), n);
    store_first<float>(memory + o.z + c, raised.denominator + weight, n);
  }
}

/// y = activation(q) Σ e^(k + w) v / Σ e^(k + w) over the window with its biases w and, without, over all before it.
inline void step_average(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const bool one_key = past.key_width < past.value_width;
  const int64_t first = piece * o.columns, last = std::min(o.channels, first + o.columns);
  forget(o, memory, past, piece, first, last);
  float *key = past.keys.data() + past.row() * past.key_width, *value = past.values.data() + past.row() * past.value_width;
  const size_t bytes = sizeof(float) * static_cast<size_t>(last - first);
  std::memcpy(value + first, memory + o.v + first, bytes);
  if (one_key) key[piece] = memory[o.k + piece];
  else std::memcpy(key + first, memory + o.k + first, bytes);

  const float *bias = o.weight ? o.weight + piece * past.room : o.residual < 0 ? nullptr : memory + o.residual;
  for (int64_t c = first; c < last; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - c);
    auto key_of = [&](int64_t row) __attribute__((always_inline)) {
      const float *keys = past.keys.data() + row * past.key_width;
      return one_key ? splat<float>(keys[piece]) : load_first<float>(keys + c, n);
    };
    ExponentialSums sums{load_first<float>(memory + o.s + c, n), load_first<float>(memory + o.p + c, n),
                         load_first<float>(memory + o.z + c, n)};
    auto largest = sums.exponent;
    for_each_row(past, [&](int64_t i, int64_t row) __attribute__((always_inline)) {
      largest = larger<float>(largest, bias ? key_of(row) + bias[i] : key_of(row));
    });
    sums = sums.raised(largest);
    for_each_row(past, [&](int64_t i, int64_t row) __attribute__((always_inline)) {
      const auto distance = key_of(row) - largest; // the large numbers first
      const auto weight = exponential(bias ? distance + bias[i] : distance);
      sums.numerator += weight * load_first<float>(past.values.data() + row * past.value_width + c, n);
      sums.denominator += weight;
    });
    const auto gate = activated(o.choice, load_first<float>(memory + o.x + c, n));
    store_first<float>(memory + o.y + c, gate * (sums.numerator / sums.denominator), n);
  }
}

/// y = activation(Σ taps · x) over the last tokens, channel by channel.
inline void step_taps(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t first = piece * o.channels_at_once, last = std::min(o.columns, first + o.channels_at_once);
  for (int64_t c = first; c < last; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - c);
    float *rows = past.values.data() + c;
    store_first<float>(rows + past.row() * o.columns, load_first<float>(memory + o.x + c, n), n);
    Floats sum{};
    for_each_row(past, [&](int64_t i, int64_t row) __attribute__((always_inline)) {
      sum += load_first<float>(o.weight + i * o.columns + c, n) * load_first<float>(rows + row * o.columns, n);
    });
    store_first<float>(memory + o.y + c, activated(o.choice, sum), n);
  }
}

/// Weights of scores: ½ (1 + erf((s - μ) / (σ √2))) with μ = √½ and σ = √(1/4π), or relu(s)².
INLINE Floats weighed(int32_t function, Floats score) {
  if (function == CTORCH_STEP_LAPLACE) return 0.5f + 0.5f * error_function((score - 0.707107f) * (1 / (0.282095f * 1.41421356f)));
  const auto positive = larger<float>(score, Floats{});
  return positive * positive;
}

/// The scores of some of the keys, the present one among them: a q · k + b for each distance; a is divided by the number of keys
/// but for softmax.
inline void step_score(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t rows = past.rows(), d = past.key_width;
  const int64_t first = rows * piece / o.score_pieces, last = rows * (piece + 1) / o.score_pieces;
  if (last == rows) std::memcpy(past.keys.data() + (rows - 1) * d, memory + o.k, sizeof(float) * static_cast<size_t>(d));
  const float *keys = past.keys.data(), *q = memory + o.x, *bias = past.biases.data() + rows - 1;
  float *scores = past.scores.data();
  int64_t j = first;
  for (; j + 4 <= last; j += 4) four_products(d, keys + j * d, q, scores + j);
  for (; j < last; ++j) scores[j] = row_product(d, keys + j * d, q);
  const float scale = o.choice == CTORCH_STEP_SOFTMAX ? o.a : o.a / static_cast<float>(rows);
  for (j = first; j < last; ++j) scores[j] = scores[j] * scale + bias[-j];
  if (o.choice == CTORCH_STEP_SOFTMAX) return;
  for (j = first; j < last; j += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - j);
    store_first<float>(scores + j, weighed(o.choice, load_first<float>(scores + j, n)), n);
  }
}

/// y += Σ_j weight_j row_j for `columns` channels of rows that lie `stride` apart.
inline void add_rows(int64_t count, const float *weights, const float *rows, int64_t stride, int64_t columns, float *y) {
  constexpr int together = 4;
  int64_t c = 0;
  for (; c + together * width<float> <= columns; c += together * width<float>) {
    Floats sums[together];
    for (int i = 0; i < together; ++i) sums[i] = load<float>(y + c + i * width<float>);
    for (int64_t j = 0; j < count; ++j)
      for (int i = 0; i < together; ++i) sums[i] += load<float>(rows + j * stride + c + i * width<float>) * weights[j];
    for (int i = 0; i < together; ++i) store<float>(y + c + i * width<float>, sums[i]);
  }
  for (; c < columns; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, columns - c);
    auto sum = load_first<float>(y + c, n);
    for (int64_t j = 0; j < count; ++j) sum += load_first<float>(rows + j * stride + c, n) * weights[j];
    store_first<float>(y + c, sum, n);
  }
}

/// y = Σ_j softmax(score_j) v_j, a block of exponentials at a time.
inline void softmax_of_rows(int64_t count, const float *scores, const float *rows, int64_t stride, int64_t columns, float *y) {
  constexpr int64_t block = 128;
  alignas(64) float weights[block];
  const float largest = *std::max_element(scores, scores + count);
  Floats sum{};
  for (int64_t first = 0; first < count; first += block) {
    const int64_t some = std::min(block, count - first);
    for (int64_t j = 0; j < some; j += width<float>) {
      const int64_t n = std::min<int64_t>(width<float>, some - j);
      store<float>(weights + j, exponential(load_first<float>(scores + first + j, n) - largest));
      sum += load_first<float>(weights + j, n);
    }
    add_rows(some, weights, rows + first * stride, stride, columns, y);
  }
  const float total = sum_of<float>(sum);
  for (int64_t c = 0; c < columns; ++c) y[c] /= total;
}

/// y = Σ_j w_j v_j + b over the values so far, for some channels of a head: with the weights that a score has left, or with those
/// that a matrix has for the present position.
inline void step_sum(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  const int64_t head = piece / o.blocks(), at = piece % o.blocks() * o.channels_at_once, from = head * o.columns + at;
  const int64_t columns = std::min(o.channels_at_once, o.columns - at), rows = past.rows(), stride = past.value_width;
  const size_t bytes = sizeof(float) * static_cast<size_t>(columns);
  float *values = past.values.data() + from, *y = memory + o.y + from;
  std::memcpy(values + past.row() * stride, memory + o.v + from, bytes);
  std::memset(static_cast<void *>(y), 0, bytes);
  if (o.choice == CTORCH_STEP_SOFTMAX) return softmax_of_rows(rows, past.scores.data(), values, stride, columns, y);
  const float *weights = o.weight ? o.weight + head * o.group + (rows - 1) * o.stride : past.scores.data();
  add_rows(rows, weights, values, stride, columns, y);
  if (!o.bias) return;
  for (int64_t c = 0; c < columns; ++c) y[c] += o.bias[head * past.most + rows - 1];
}

inline void step_past(const StepOperation &o, float *memory, StepPast &past, int64_t piece) {
  switch (o.kind) {
  case StepKind::average: return step_average(o, memory, past, piece);
  case StepKind::taps: return step_taps(o, memory, past, piece);
  case StepKind::score: return step_score(o, memory, past, piece);
  default: return step_sum(o, memory, past, piece);
  }
}
