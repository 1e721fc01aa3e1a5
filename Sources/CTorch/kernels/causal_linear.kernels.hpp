// The causal linear family for one instruction set; see causal_linear.cpp for the equations and the names.

#include "feature_maps.kernels.hpp"

/// Copies rows, φ applied, into a matrix whose rows are padded with zeros. Rows that `real` rules out become zero.
template <typename T>
void pack(FeatureMap map, int64_t rows, int64_t columns, const T *from, int64_t from_row, const bool *real, T *to, int64_t to_row) {
  const int64_t whole = columns / width<T> * width<T>;
  for (int64_t r = 0; r < rows; ++r, from += from_row, to += to_row) {
    if (real && !real[r]) {
      std::memset(static_cast<void *>(to), 0, sizeof(T) * static_cast<size_t>(to_row));
      continue;
    }
    for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, feature<T>(map, load<T>(from + c)));
    if (whole == columns) continue;
    store<T>(to + whole, Vector<T>{});
    store_first<T>(to + whole, feature<T>(map, load_first<T>(from + whole, columns - whole)), columns - whole);
  }
}

/// Writes rows of the cotangent of x, from that of φ(x).
template <typename T>
void unpack(FeatureMap map, int64_t rows, int64_t columns, const T *x, int64_t x_row, const T *phi, const T *cotangent,
            int64_t packed_row, const bool *real, T *to, int64_t to_row) {
  const int64_t whole = columns / width<T> * width<T>;
  for (int64_t r = 0; r < rows; ++r, x += x_row, phi += packed_row, cotangent += packed_row, to += to_row) {
    if (real && !real[r]) {
      std::memset(static_cast<void *>(to), 0, sizeof(T) * static_cast<size_t>(columns));
      continue;
    }
    for (int64_t c = 0; c < whole; c += width<T>)
      store<T>(to + c, load<T>(cotangent + c) * feature_slope<T>(map, load<T>(x + c), load<T>(phi + c)));
    if (whole == columns) continue;
    const auto slope = feature_slope<T>(map, load_first<T>(x + whole, columns - whole), load<T>(phi + whole));
    store_first<T>(to + whole, load<T>(cotangent + whole) * slope, columns - whole);
  }
}

template <typename T> INLINE T dot(int64_t n, const T *x, const T *y) {
  Vector<T> sum{};
  for (int64_t i = 0; i < n; i += width<T>) sum += load<T>(x + i) * load<T>(y + i);
  return sum_of<T>(sum);
}
/// y += scale · x, for n a multiple of the width.
template <typename T> INLINE void add_scaled(int64_t n, T scale, const T *x, T *y) {
  for (int64_t i = 0; i < n; i += width<T>) store<T>(y + i, load<T>(y + i) + splat<T>(scale) * load<T>(x + i));
}

/// s, p and z of one head with padded rows, and a copy of s or p turned over.
template <typename T> struct LinearState {
  int64_t features, values; // padded
  bool momentum;
  T *s, *p, *z, *turned;

  LinearState(Scratch &scratch, int64_t features, int64_t values, bool momentum)
      : features(features), values(values), momentum(momentum), s(scratch.zeros<T>(features * values)),
        p(momentum ? scratch.zeros<T>(features * values) : nullptr), z(scratch.zeros<T>(features)),
        turned(scratch.take<T>(features * values)) {}

  static size_t bytes(int64_t features, int64_t values) {
    return sizeof(T) * static_cast<size_t>(3 * features * values + features) + 256;
  }

  /// s' = s - β g(n) p + Σ s-weight_c a_c b_cᵀ, p' = βⁿ p - γ Σ β^(n-1-c) a_c b_cᵀ. `weighted` is room for b.
  void advance(const ChunkWeights<T> &w, int64_t n, const T *a, const T *b, const T *to_s, const T *to_p, T *weighted) {
    if (!momentum) return multiply<T>(features, values, n, a, 1, features, b, values, s, values, true);
    const T from_p = static_cast<T>(-w.beta * w.geometric(n)), kept = static_cast<T>(std::pow(w.beta, static_cast<double>(n)));
    for (int64_t i = 0; i < features; ++i) {
      add_scaled<T>(values, from_p, p + i * values, s + i * values);
      for (int64_t j = 0; j < values; j += width<T>) store<T>(p + i * values + j, load<T>(p + i * values + j) * kept);
    }
    scale_rows(n, b, to_s, T(1), weighted);
    multiply<T>(features, values, n, a, 1, features, weighted, values, s, values, true);
    scale_rows(n, b, to_p, static_cast<T>(-w.gamma), weighted);
    multiply<T>(features, values, n, a, 1, features, weighted, values, p, values, true);
  }

  void scale_rows(int64_t n, const T *from, const T *by, T scale, T *to) const {
    for (int64_t r = 0; r < n; ++r)
      for (int64_t j = 0; j < values; j += width<T>)
        store<T>(to + r * values + j, load<T>(from + r * values + j) * (by[r] * scale));
  }

  /// sum += x s - diag(b) x p
  void add_past(int64_t n, const T *x, const T *b, T *sum, T *room) const {
    multiply<T>(n, values, features, x, features, 1, s, values, sum, values, true);
    if (!momentum) return;
    multiply<T>(n, values, features, x, features, 1, p, values, room, values, false);
    for (int64_t r = 0; r < n; ++r) add_scaled<T>(values, -b[r], room + r * values, sum + r * values);
  }

  /// sum += y sᵀ - diag(b) y pᵀ
  void add_past_turned(int64_t n, const T *y, const T *b, T *sum, T *room) {
    transpose<T>(features, values, s, values, turned, features);
    multiply<T>(n, features, values, y, values, 1, turned, features, sum, features, true);
    if (!momentum) return;
    transpose<T>(features, values, p, values, turned, features);
    multiply<T>(n, features, values, y, values, 1, turned, features, room, features, false);
    for (int64_t r = 0; r < n; ++r) add_scaled<T>(features, -b[r], room + r * features, sum + r * features);
  }

  void read(int64_t f, int64_t m, const T *from_s, const T *from_p, const T *from_z) {
    for (int64_t i = 0; i < f; ++i) {
      std::memcpy(s + i * values, from_s + i * m, sizeof(T) * static_cast<size_t>(m));
      if (momentum) std::memcpy(p + i * values, from_p + i * m, sizeof(T) * static_cast<size_t>(m));
    }
    std::memcpy(z, from_z, sizeof(T) * static_cast<size_t>(f));
  }

  void write(int64_t f, int64_t m, T *to_s, T *to_p, T *to_z) const {
    for (int64_t i = 0; i < f; ++i) {
      std::memcpy(to_s + i * m, s + i * values, sizeof(T) * static_cast<size_t>(m));
      if (momentum) std::memcpy(to_p + i * m, p + i * values, sizeof(T) * static_cast<size_t>(m));
    }
    std::memcpy(to_z, z, sizeof(T) * static_cast<size_t>(f));
  }
};

/// Rows of the lower triangle that are worked on together: what lies right of them is not computed.
constexpr int64_t strip = 12;

/// A = (Q Kᵀ) ∘ W below the diagonal and zero above, up to the strip's end; W left out if null.
template <typename T>
void lower_products(int64_t n, int64_t depth, const T *q, const T *k_turned, int64_t size, const T *weights, T *a) {
  for (int64_t r0 = 0; r0 < n; r0 += strip) {
    const int64_t rows = std::min(strip, n - r0), columns = padded<T>(r0 + rows);
    multiply<T>(rows, columns, depth, q + r0 * depth, depth, 1, k_turned, size, a + r0 * size, size, false);
    for (int64_t r = r0; r < r0 + rows; ++r) {
      T *row = a + r * size;
      if (weights) // weights[i] = w(size - 1 - i)
        for (int64_t c = 0; c <= r; c += width<T>) store<T>(row + c, load<T>(row + c) * load<T>(weights + size - 1 - r + c));
      std::memset(static_cast<void *>(row + r + 1), 0, sizeof(T) * static_cast<size_t>(columns - r - 1));
    }
  }
}

/// c += A b for a lower triangle A [n, size].
template <typename T> void lower_times(int64_t n, int64_t size, const T *a, const T *b, int64_t columns, T *c) {
  for (int64_t r0 = 0; r0 < n; r0 += strip) {
    const int64_t rows = std::min(strip, n - r0);
    multiply<T>(rows, columns, r0 + rows, a + r0 * size, size, 1, b, columns, c + r0 * columns, columns, true);
  }
}

/// c += Aᵀ b for a lower triangle A [n, size].
template <typename T> void upper_times(int64_t n, int64_t size, const T *a, const T *b, int64_t columns, T *c) {
  for (int64_t r0 = 0; r0 < n; r0 += strip) {
    const int64_t rows = std::min(strip, n - r0);
    multiply<T>(rows, columns, n - r0, a + r0 * size + r0, 1, size, b + r0 * columns, columns, c + r0 * columns, columns, true);
  }
}

template <typename T> INLINE T row_sum(int64_t n, const T *row) {
  Vector<T> sum{};
  for (int64_t c = 0; c < n; c += width<T>) sum += load<T>(row + c);
  return sum_of<T>(sum);
}

/// A row of any length from one that is padded.
template <typename T> INLINE void scaled_copy(int64_t n, T scale, const T *from, T *to) {
  const int64_t whole = n / width<T> * width<T>;
  for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, load<T>(from + c) * splat<T>(scale));
  if (whole < n) store_first<T>(to + whole, load<T>(from + whole) * splat<T>(scale), n - whole);
}

/// The room of one task: a chunk's matrices with padded rows.
template <typename T> struct LinearChunk {
  int64_t size, features, values;
  T *q, *k, *k_turned, *v, *a, *sum, *room;

  LinearChunk(Scratch &scratch, int64_t size, int64_t features, int64_t values)
      : size(size), features(features), values(values), q(scratch.take<T>(size * features)), k(scratch.take<T>(size * features)),
        k_turned(scratch.zeros<T>(size * features)), v(scratch.take<T>(size * values)), a(scratch.take<T>(size * size + width<T>)),
        sum(scratch.take<T>(size * values)), room(scratch.take<T>(size * std::max(features, values))) {}

  static size_t bytes(int64_t size, int64_t features, int64_t values) {
    return sizeof(T) * static_cast<size_t>(size * (3 * features + 2 * values + size + std::max(features, values)) + 16) + 512;
  }
};

/// Takes up the keys and values of a stretch of one head into its state.
template <typename T>
void linear_absorb(const CausalLinearWork<T> &work, int64_t head, int64_t from, int64_t to, LinearState<T> &state,
                   LinearChunk<T> &chunk) {
  const auto &w = work.weights;
  for (int64_t start = from; start < to; start += w.size) {
    const int64_t n = std::min(w.size, to - start);
    pack<T>(work.map, n, work.features, work.k.head(head) + start * work.k.row, work.k.row, work.real(head, start), chunk.k,
            chunk.features);
    pack<T>(FeatureMap::identity, n, work.values, work.v.head(head) + start * work.v.row, work.v.row, nullptr, chunk.v,
            chunk.values);
    state.advance(w, n, chunk.k, chunk.v, w.key_s_of(n), w.key_p_of(n), chunk.room);
    for (int64_t c = 0; c < n; ++c) add_scaled<T>(chunk.features, T(1), chunk.k + c * chunk.features, state.z);
  }
}

/// What the segment adds to the state, from zero: for the segments of a sequence to be worked on at once.
template <typename T> void linear_segment_sums(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), size = work.weights.size;
  Scratch scratch(LinearState<T>::bytes(features, values) + LinearChunk<T>::bytes(size, features, values));
  LinearState<T> state(scratch, features, values, work.momentum);
  LinearChunk<T> chunk(scratch, size, features, values);
  linear_absorb(work, head, work.begin(segment), work.begin(segment + 1), state, chunk);
  auto to = work.segment(head, segment + 1);
  state.write(work.features, work.values, to.s, to.p, to.z);
}

template <typename T> void linear_forward(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  const auto &w = work.weights;
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), size = w.size;
  Scratch scratch(LinearState<T>::bytes(features, values) + LinearChunk<T>::bytes(size, features, values));
  LinearState<T> state(scratch, features, values, work.momentum);
  LinearChunk<T> chunk(scratch, size, features, values);
  auto initial = work.segment(head, segment);
  state.read(work.features, work.values, initial.s, initial.p, initial.z);

  const int64_t end = work.begin(segment + 1);
  for (int64_t start = work.begin(segment); start < end; start += size) {
    const int64_t n = std::min(size, end - start);
    if (work.keep) {
      auto kept = work.chunk(head, start / size);
      state.write(work.features, work.values, kept.s, kept.p, kept.z);
    }
    pack<T>(work.map, n, work.features, work.q.head(head) + start * work.q.row, work.q.row, nullptr, chunk.q, features);
    pack<T>(work.map, n, work.features, work.k.head(head) + start * work.k.row, work.k.row, work.real(head, start), chunk.k,
            features);
    pack<T>(FeatureMap::identity, n, work.values, work.v.head(head) + start * work.v.row, work.v.row, nullptr, chunk.v, values);
    transpose<T>(n, features, chunk.k, features, chunk.k_turned, size);

    lower_products<T>(n, features, chunk.q, chunk.k_turned, size, nullptr, chunk.a);
    T *norm = work.norm + head * work.length + start;
    if (work.normalization == LinearNormalization::sum)
      for (int64_t r = 0; r < n; ++r)
        norm[r] = dot<T>(features, chunk.q + r * features, state.z) + row_sum<T>(r + 1, chunk.a + r * size) + work.epsilon;
    if (work.momentum)
      for (int64_t r = 0; r < n; ++r)
        for (int64_t c = 0; c <= r; c += width<T>)
          store<T>(chunk.a + r * size + c, load<T>(chunk.a + r * size + c) * load<T>(w.lagged + size - 1 - r + c));
    std::memset(static_cast<void *>(chunk.sum), 0, sizeof(T) * static_cast<size_t>(n * values));
    state.add_past(n, chunk.q, w.from_start, chunk.sum, chunk.room);
    lower_times<T>(n, size, chunk.a, chunk.v, values, chunk.sum);
    for (int64_t r = 0; r < n; ++r) {
      T *sum = chunk.sum + r * values, *out = work.out.head(head) + (start + r) * work.out.row;
      if (work.normalization == LinearNormalization::root_mean_square)
        norm[r] = std::sqrt(dot<T>(values, sum, sum) / static_cast<T>(work.values)) + work.epsilon;
      const T scale = work.normalization == LinearNormalization::none ? T(1) : T(1) / norm[r];
      scaled_copy<T>(work.values, scale, sum, out);
    }
    state.advance(w, n, chunk.k, chunk.v, w.key_s_of(n), w.key_p_of(n), chunk.room);
    for (int64_t c = 0; c < n; ++c) add_scaled<T>(features, T(1), chunk.k + c * features, state.z);
  }
  auto last = work.end_of(head, segment);
  if (last.s) state.write(work.features, work.values, last.s, last.p, last.z);
}

/// What the backward pass of a chunk needs beside the forward pass's room.
template <typename T> struct LinearCotangents {
  T *g, *v_turned, *d, *of_features, *of_values, *e;

  LinearCotangents(Scratch &scratch, int64_t size, int64_t features, int64_t values)
      : g(scratch.take<T>(size * values)), v_turned(scratch.zeros<T>(size * values)), d(scratch.take<T>(size * size + width<T>)),
        of_features(scratch.take<T>(size * features)), of_values(scratch.take<T>(size * values)), e(scratch.take<T>(size)) {}

  static size_t bytes(int64_t size, int64_t features, int64_t values) {
    return sizeof(T) * static_cast<size_t>(size * (3 * values + size + features + 1) + 16) + 512;
  }
};

/// Cotangents of the numerator, g, and of the denominator, e, of n rows. With out = t / s(t):
/// a sum has g = c / s, e = -(c · out) / s; a root mean square has g = (c - out (c · out) / (values (s - ε) / s)) / s.
template <typename T>
void linear_cotangents(const CausalLinearWork<T> &work, int64_t head, int64_t start, int64_t n, int64_t values, T *g, T *e) {
  pack<T>(FeatureMap::identity, n, work.values, work.cotangent.head(head) + start * work.cotangent.row, work.cotangent.row,
          nullptr, g, values);
  const T *norm = work.norm + head * work.length + start;
  for (int64_t r = 0; r < n; ++r) {
    e[r] = 0;
    if (work.normalization == LinearNormalization::none) continue;
    const T *out = work.out.head(head) + (start + r) * work.out.row;
    T *row = g + r * values, product = 0;
    for (int64_t j = 0; j < work.values; ++j) product += row[j] * out[j];
    const T inverse = T(1) / norm[r];
    if (work.normalization == LinearNormalization::sum) {
      e[r] = -product * inverse;
    } else {
      const T root = norm[r] - work.epsilon, share = root > 0 ? product * norm[r] / (static_cast<T>(work.values) * root) : T(0);
      for (int64_t j = 0; j < work.values; ++j) row[j] -= out[j] * share;
    }
    for (int64_t j = 0; j < values; j += width<T>) store<T>(row + j, load<T>(row + j) * inverse);
  }
}

/// The state seen from the end takes up n queries and their cotangents.
template <typename T>
void linear_advance_later(const ChunkWeights<T> &w, int64_t n, const T *q, const T *g, const T *e, LinearState<T> &later, T *room) {
  later.advance(w, n, q, g, w.by_lag, w.powers, room);
  for (int64_t r = 0; r < n; ++r) add_scaled<T>(later.features, e[r], q + r * later.features, later.z);
}

/// What the segment adds to the state seen from the end, from zero.
template <typename T> void linear_segment_cotangents(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  const auto &w = work.weights;
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), size = w.size;
  Scratch scratch(LinearState<T>::bytes(features, values) + LinearChunk<T>::bytes(size, features, values) +
                  LinearCotangents<T>::bytes(size, features, values));
  LinearState<T> later(scratch, features, values, work.momentum);
  LinearChunk<T> chunk(scratch, size, features, values);
  LinearCotangents<T> cotangents(scratch, size, features, values);
  for (int64_t start = work.last_chunk(segment); start >= work.begin(segment); start -= size) {
    const int64_t n = std::min(size, work.begin(segment + 1) - start);
    pack<T>(work.map, n, work.features, work.q.head(head) + start * work.q.row, work.q.row, nullptr, chunk.q, features);
    linear_cotangents<T>(work, head, start, n, values, cotangents.g, cotangents.e);
    linear_advance_later<T>(w, n, chunk.q, cotangents.g, cotangents.e, later, chunk.room);
  }
  auto to = work.segment(head, segment);
  later.write(work.features, work.values, to.s, to.p, to.z);
}

template <typename T> void linear_backward(const CausalLinearWork<T> &work, int64_t head, int64_t segment) {
  const auto &w = work.weights;
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), size = w.size;
  Scratch scratch(2 * LinearState<T>::bytes(features, values) + LinearChunk<T>::bytes(size, features, values) +
                  LinearCotangents<T>::bytes(size, features, values));
  LinearState<T> before(scratch, features, values, work.momentum), later(scratch, features, values, work.momentum);
  LinearChunk<T> chunk(scratch, size, features, values);
  LinearCotangents<T> cotangents(scratch, size, features, values);
  auto &[g, v_turned, d, of_features, of_values, e] = cotangents;
  auto from = work.segment(head, segment + 1);
  later.read(work.features, work.values, from.s, from.p, from.z);
  const T *weights = work.momentum ? w.lagged : nullptr;

  for (int64_t start = work.last_chunk(segment); start >= work.begin(segment); start -= size) {
    const int64_t n = std::min(size, work.begin(segment + 1) - start);
    const T *q = work.q.head(head) + start * work.q.row, *k = work.k.head(head) + start * work.k.row;
    const bool *real = work.real(head, start);
    auto kept = work.chunk(head, start / size);
    before.read(work.features, work.values, kept.s, kept.p, kept.z);
    pack<T>(work.map, n, work.features, q, work.q.row, nullptr, chunk.q, features);
    pack<T>(work.map, n, work.features, k, work.k.row, real, chunk.k, features);
    pack<T>(FeatureMap::identity, n, work.values, work.v.head(head) + start * work.v.row, work.v.row, nullptr, chunk.v, values);
    transpose<T>(n, features, chunk.k, features, chunk.k_turned, size);
    transpose<T>(n, values, chunk.v, values, v_turned, size);
    linear_cotangents<T>(work, head, start, n, values, g, e);

    // D = (g vᵀ) ∘ W + e: the cotangent of A.
    lower_products<T>(n, values, g, v_turned, size, weights, d);
    if (work.normalization == LinearNormalization::sum)
      for (int64_t r = 0; r < n; ++r)
        for (int64_t c = 0; c <= r; ++c) d[r * size + c] += e[r];

    for (int64_t r = 0; r < n; ++r)
      for (int64_t j = 0; j < features; j += width<T>) store<T>(of_features + r * features + j, load<T>(before.z + j) * e[r]);
    before.add_past_turned(n, g, w.from_start, of_features, chunk.room);
    lower_times<T>(n, size, d, chunk.k, features, of_features);
    unpack<T>(work.map, n, work.features, q, work.q.row, chunk.q, of_features, features, nullptr,
              work.dq.head(head) + start * work.dq.row, work.dq.row);

    for (int64_t r = 0; r < n; ++r)
      std::memcpy(of_features + r * features, later.z, sizeof(T) * static_cast<size_t>(features));
    later.add_past_turned(n, chunk.v, w.to_end_of(n), of_features, chunk.room);
    upper_times<T>(n, size, d, chunk.q, features, of_features);
    unpack<T>(work.map, n, work.features, k, work.k.row, chunk.k, of_features, features, real,
              work.dk.head(head) + start * work.dk.row, work.dk.row);

    lower_products<T>(n, features, chunk.q, chunk.k_turned, size, weights, chunk.a);
    std::memset(static_cast<void *>(of_values), 0, sizeof(T) * static_cast<size_t>(n * values));
    later.add_past(n, chunk.k, w.to_end_of(n), of_values, chunk.room);
    upper_times<T>(n, size, chunk.a, g, values, of_values);
    for (int64_t r = 0; r < n; ++r)
      scaled_copy<T>(work.values, T(1), of_values + r * values, work.dv.head(head) + (start + r) * work.dv.row);

    linear_advance_later<T>(w, n, chunk.q, g, e, later, chunk.room);
  }
}
