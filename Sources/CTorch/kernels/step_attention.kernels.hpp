// The operations of step programs that look at the tokens before, for one instruction set; included by
// step_program.kernels.hpp.

/// p = β p - γ φk vᵀ, s = s - p, z = z + φk, y = φq s / (φq · z + ε) of one head; y = φq s without z.
inline void step_causal_linear(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, features = o.width;
  constexpr int64_t most = 1024, at_once = 512;
  alignas(64) float phi_q[at_once], phi_k[at_once], sums[most] = {};
  const float *q = memory + o.x + head * features, *k = memory + o.k + head * features, *v = memory + o.v + head * d;
  float *z = o.z < 0 ? nullptr : memory + o.z + head * features, *s = memory + o.s + head * features * d;
  float *p = o.p < 0 ? nullptr : memory + o.p + head * features * d;
  float norm = 0;
  for (int64_t first = 0; first < features; first += at_once) {
    const int64_t count = std::min(at_once, features - first);
    for (int64_t c = 0; c < count; c += width<float>) {
      const int64_t m = std::min<int64_t>(width<float>, count - c);
      store<float>(phi_q + c, feature<float>(o.map, load_first<float>(q + first + c, m)));
      store<float>(phi_k + c, feature<float>(o.map, load_first<float>(k + first + c, m)));
    }
    for (int64_t f = 0; f < count; ++f) {
      if (z) norm += phi_q[f] * (z[first + f] += phi_k[f]);
      float *row = s + (first + f) * d, *momentum = p ? p + (first + f) * d : nullptr;
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
  }
  for (int64_t c = 0; c < d; ++c) memory[o.y + head * d + c] = sums[c] / (z ? norm + o.epsilon : 1);
}

/// One head's momentum, of a size that |φk vᵀ - u| and |p| say, then as above with u = φk vᵀ.
inline void step_adaptive_momentum(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * d;
  constexpr int64_t most = 1024;
  alignas(64) float phi_q[most], phi_k[most], sums[most] = {};
  const float *v = memory + o.v + from;
  float *z = memory + o.z + from, *s = memory + o.s + from * d, *p = memory + o.p + from * d, *u = memory + o.u + from * d;
  float norm = o.epsilon;
  Floats change{}, length{};
  for (int64_t c = 0; c < d; c += width<float>) {
    const int64_t m = std::min<int64_t>(width<float>, d - c);
    store<float>(phi_q + c, feature<float>(o.map, load_first<float>(memory + o.x + from + c, m)));
    store<float>(phi_k + c, feature<float>(o.map, load_first<float>(memory + o.k + from + c, m)));
  }
  for (int64_t f = 0; f < d; ++f) {
    norm += phi_q[f] * (z[f] += phi_k[f]);
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t at = f * d + c, m = std::min<int64_t>(width<float>, d - c);
      const auto now = load_first<float>(v + c, m) * phi_k[f], moved = now - load_first<float>(u + at, m);
      const auto before = load_first<float>(p + at, m);
      store_first<float>(u + at, now, m);
      change += moved * moved, length += before * before;
    }
  }
  float &begun = memory[o.begun + head];
  const AdaptiveMomentum<float> momentum(sum_of<float>(change), sum_of<float>(length), o.step_size, o.a, begun != 0);
  begun = 1;
  for (int64_t f = 0; f < d; ++f)
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t at = f * d + c, m = std::min<int64_t>(width<float>, d - c);
      const auto next = load_first<float>(p + at, m) * momentum.beta - load_first<float>(u + at, m) * momentum.step_size;
      const auto total = load_first<float>(s + at, m) - next;
      store_first<float>(p + at, next, m);
      store_first<float>(s + at, total, m);
      store<float>(sums + c, load<float>(sums + c) + total * phi_q[f]);
    }
  for (int64_t c = 0; c < d; ++c) memory[o.y + from + c] = sums[c] / norm;
}

/// Attention's sums so far: they shrink when a larger score comes.
struct AttentionSums {
  float *y, largest = -INFINITY, sum = 0;
};

/// The weights of some scores, which take their place; returns by what the sums so far shrink.
INLINE float weigh(int32_t kind, int64_t count, float *scores, AttentionSums &sums) {
  if (kind == CTORCH_STEP_RELU_WEIGHTS) {
    for (int64_t j = 0; j < count; ++j) scores[j] = std::max(scores[j], 0.0f);
    return 1;
  }
  float most = sums.largest;
  for (int64_t j = 0; j < count; ++j) most = std::max(most, scores[j]);
  const float shrunk = std::exp(sums.largest - most);
  sums.largest = most, sums.sum *= shrunk;
  for (int64_t j = 0; j < count; j += width<float>) {
    const auto some = exponential(load<float>(scores + j) - most);
    store_first<float>(scores + j, some, std::min<int64_t>(width<float>, count - j));
  }
  for (int64_t j = 0; j < count; ++j) sums.sum += scores[j];
  return shrunk;
}

/// Adds the keys of a view, a block at a time.
inline void attend_view(const StepOperation &o, const StepView &view, const float *memory, const StepCache *caches, int64_t head,
                        AttentionSums &sums) {
  if (view.cache < 0) return;
  constexpr int64_t block = 128;
  const StepCache &cache = caches[view.cache];
  const StepCache *distances = view.distances < 0 ? nullptr : caches + view.distances;
  const SeenRows seen(cache, view.look, head);
  const int64_t d = o.columns, at = head * d;
  const float *q = memory + view.q + at, *distance_q = memory + view.distance_q + at;
  alignas(64) float weights[block] = {};
  int64_t places[block];
  for (int64_t first = 0; first < seen.count; first += block) {
    const int64_t count = std::min(block, seen.count - first);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t row = seen[first + j];
      places[j] = row * cache.width + at;
      float score = row_product(d, cache.keys.data() + places[j], q);
      if (distances) score += row_product(d, distances->keys.data() + cache.age(row) * distances->width + at, distance_q);
      weights[j] = o.a * score;
    }
    const float shrunk = weigh(o.choice, count, weights, sums);
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t n = std::min<int64_t>(width<float>, d - c);
      Floats part = load_first<float>(sums.y + c, n) * shrunk;
      const float *values = cache.values.data() + c;
      for (int64_t j = 0; j < count; ++j) part += load_first<float>(values + places[j], n) * weights[j];
      store_first<float>(sums.y + c, part, n);
    }
  }
}

/// Σ_j weight_j v_j of one head over the keys of some views, the token's own in the first of them.
inline void step_attend(const StepOperation &o, float *memory, StepCache *caches, int64_t head) {
  const int64_t d = o.columns, at = head * d;
  AttentionSums sums{memory + o.y + at};
  std::memset(static_cast<void *>(sums.y), 0, sizeof(float) * static_cast<size_t>(d));
  if (o.k >= 0) caches[o.views[0].cache].set(at, d, memory + o.k + at, memory + o.v + at);
  for (const auto &view : o.views) attend_view(o, view, memory, caches, head, sums);
  if (o.choice == CTORCH_STEP_RELU_WEIGHTS || sums.sum == 0) return;
  for (int64_t c = 0; c < d; ++c) sums.y[c] /= sums.sum;
}

/// Keys and values of some channels become those of one row.
inline void step_pool(const StepOperation &o, float *memory, const StepCache *caches, int64_t piece) {
  const StepCache &cache = caches[o.views[0].cache];
  const SeenRows seen(cache, o.views[0].look, 0);
  const bool is_largest = o.choice == CTORCH_STEP_LARGEST;
  const float share = o.choice == CTORCH_STEP_MEAN ? 1 / std::max(static_cast<float>(seen.count), 1.0f) : 1;
  auto pool = [&](const float *rows, float *to) {
    const int64_t last = std::min(o.columns, (piece + 1) * o.channels_at_once);
    for (int64_t c = piece * o.channels_at_once; c < last; c += width<float>) {
      const int64_t n = std::min<int64_t>(width<float>, last - c);
      Floats sum{};
      for (int64_t j = 0; j < seen.count; ++j) {
        const auto row = load_first<float>(rows + seen[j] * cache.width + c, n);
        sum = j == 0 ? row : is_largest ? larger<float>(sum, row) : sum + row;
      }
      store_first<float>(to + c, sum * share, n);
    }
  };
  pool(cache.keys.data(), memory + o.y);
  if (o.s >= 0) pool(cache.values.data(), memory + o.s);
}

/// By features f of one head: Z e^m = Σ e^k with the largest k as m, the mean s = Σ e^k v / Z e^m, and y = Σ_f softmax(q)_f s_f.
inline void step_weighted_means(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, features = o.width, from = head * features;
  constexpr int64_t most = 1024;
  alignas(64) float weights[most], kept[most], added[most], sums[most] = {};
  const float *q = memory + o.x + from, *k = memory + o.k + from, *v = memory + o.v + head * d;
  float *largest = memory + o.z + from, *totals = memory + o.u + from, *means = memory + o.s + from * d;
  const float highest = *std::max_element(q, q + features);
  float norm = 0;
  for (int64_t f = 0; f < features; f += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, features - f);
    const auto key = load_first<float>(k + f, n), before = load_first<float>(largest + f, n), next = larger<float>(before, key);
    const auto past = load_first<float>(totals + f, n) * exponential(before - next), present = exponential(key - next);
    store_first<float>(largest + f, next, n);
    store_first<float>(totals + f, past + present, n);
    store<float>(kept + f, past / (past + present));
    store<float>(added + f, present / (past + present));
    store<float>(weights + f, exponential(load_first<float>(q + f, n) - highest));
  }
  for (int64_t f = 0; f < features; ++f) {
    norm += weights[f];
    for (int64_t c = 0; c < d; c += width<float>) {
      const int64_t n = std::min<int64_t>(width<float>, d - c);
      const auto mean = load_first<float>(means + f * d + c, n) * kept[f] + load_first<float>(v + c, n) * added[f];
      store_first<float>(means + f * d + c, mean, n);
      store<float>(sums + c, load<float>(sums + c) + mean * weights[f]);
    }
  }
  for (int64_t c = 0; c < d; ++c) memory[o.y + head * d + c] = sums[c] / norm;
}
