// The spatial gate for one instruction set; see spatial_gate.cpp for the equations.

/// Calls body(first, count) for the vectors of a row; the last may be a part of one.
template <typename T, typename Body> INLINE void gate_vectors(int64_t columns, Body body) {
  int64_t c = 0;
  for (; c + width<T> <= columns; c += width<T>) body(c, static_cast<int64_t>(width<T>));
  if (c < columns) body(c, columns - c);
}
template <typename T> INLINE Vector<T> some(const T *from, int64_t count) {
  return count == width<T> ? load<T>(from) : load_first<T>(from, count);
}
template <typename T> INLINE void put_some(T *to, Vector<T> v, int64_t count) {
  if (count == width<T>) store<T>(to, v);
  else store_first<T>(to, v, count);
}

/// LayerNorm(v) of some tokens; zeros for padded ones.
template <typename T> void gate_norm(const SpatialGateWork<T> &work, int64_t from, int64_t end) {
  for (int64_t token = from; token < end; ++token) {
    const T *v = work.gate(token);
    T *to = work.normed + token * work.channels;
    Vector<T> sum{}, squares{};
    gate_vectors<T>(work.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) { sum += some<T>(v + c, n); });
    const T center = sum_of<T>(sum) / static_cast<T>(work.channels);
    gate_vectors<T>(work.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      auto distance = some<T>(v + c, n) - splat<T>(center);
      if (n < width<T>) for (int64_t i = n; i < width<T>; ++i) distance[i] = 0;
      squares += distance * distance;
    });
    const T inverse = T(1) / std::sqrt(sum_of<T>(squares) / static_cast<T>(work.channels) + work.epsilon);
    work.center[token] = center, work.inverse[token] = inverse;
    const bool is_real = !work.mask || work.mask[token];
    gate_vectors<T>(work.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const auto x = (some<T>(v + c, n) - splat<T>(center)) * splat<T>(inverse);
      put_some<T>(to + c, is_real ? x * some<T>(work.scale + c, n) + some<T>(work.shift + c, n) : Vector<T>{}, n);
    });
  }
}

/// Some columns of a [length, channels] matrix, with zeros up to whole vectors.
template <typename T> void gate_panel(const T *from, int64_t from_row, int64_t rows, int64_t columns, T *to) {
  for (int64_t r = 0; r < rows; ++r, from += from_row, to += gate_columns) {
    gate_vectors<T>(columns, [&](int64_t c, int64_t n) __attribute__((always_inline)) { store<T>(to + c, some<T>(from + c, n)); });
  }
}

/// A block of W, or of its transpose, with zeros for what a causal W leaves out.
template <typename T>
void gate_block(const SpatialGateWork<T> &work, const T *w, bool turned, int64_t r0, int64_t rows, int64_t k0, int64_t depth,
                T *to) {
  if (turned) {
    transpose<T>(depth, rows, w + k0 * work.w_row + r0, work.w_row, to, gate_depth);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + r * gate_depth, w + (r0 + r) * work.w_row + k0, sizeof(T) * static_cast<size_t>(depth));
  }
  const bool crosses = turned ? k0 < r0 + rows - 1 : k0 + depth - 1 > r0;
  if (!work.causal || !crosses) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < depth; ++k)
      if (turned ? k0 + k < r0 + r : k0 + k > r0 + r) to[r * gate_depth + k] = 0;
}

/// sums = W panel, or Wᵀ panel: [length, gate_columns].
template <typename T>
void gate_product(const SpatialGateWork<T> &work, int64_t head, bool turned, int64_t columns, const T *panel, T *block, T *sums) {
  const T *w = work.w + head * work.w_head;
  std::memset(static_cast<void *>(sums), 0, sizeof(T) * static_cast<size_t>(work.length * gate_columns));
  for (int64_t k0 = 0; k0 < work.length; k0 += gate_depth) {
    const int64_t depth = std::min(gate_depth, work.length - k0);
    for (int64_t r0 = 0; r0 < work.length; r0 += gate_rows) {
      const int64_t rows = std::min(gate_rows, work.length - r0);
      if (work.causal && (turned ? k0 + depth <= r0 : k0 >= r0 + rows)) continue;
      gate_block<T>(work, w, turned, r0, rows, k0, depth, block);
      multiply<T>(rows, padded<T>(columns), depth, block, gate_depth, 1, panel + k0 * gate_columns, gate_columns,
                  sums + r0 * gate_columns, gate_columns, true);
    }
  }
}

/// The room of a task, and which columns it works on.
template <typename T> struct GateTask {
  int64_t sequence, head, first, columns; // first: among all channels
  T *panel, *sums, *block;

  GateTask(const SpatialGateWork<T> &work, Scratch &scratch, int64_t task)
      : sequence(task / work.panels() / work.heads), head(task / work.panels() % work.heads),
        first(head * work.head_channels() + task % work.panels() * gate_columns),
        columns(std::min(gate_columns, (head + 1) * work.head_channels() - first)),
        panel(scratch.take<T>(work.length * gate_columns)), sums(scratch.take<T>(work.length * gate_columns)),
        block(scratch.take<T>(gate_rows * gate_depth)) {}
  static size_t bytes(const SpatialGateWork<T> &work) {
    return sizeof(T) * static_cast<size_t>(2 * work.length * gate_columns + gate_rows * gate_depth) + 256;
  }
};

/// out = u ⊙ (W v + b) for some columns.
template <typename T> void gate_forward(const SpatialGateWork<T> &work, int64_t index) {
  Scratch scratch(GateTask<T>::bytes(work));
  GateTask<T> task(work, scratch, index);
  const int64_t start = task.sequence * work.length;
  gate_panel<T>(work.normed + start * work.channels + task.first, work.channels, work.length, task.columns, task.panel);
  gate_product<T>(work, task.head, false, task.columns, task.panel, task.block, task.sums);
  for (int64_t i = 0; i < work.length; ++i) {
    const T *sums = task.sums + i * gate_columns, *u = work.keep(start + i) + task.first;
    const int64_t place = (start + i) * work.channels + task.first;
    const auto bias = splat<T>(work.bias[task.head * work.length + i]);
    gate_vectors<T>(task.columns, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const auto mixed = load<T>(sums + c) + bias;
      put_some<T>(work.out + place + c, some<T>(u + c, n) * mixed, n);
      if (work.mixed) put_some<T>(work.mixed + place + c, mixed, n);
    });
  }
}

/// du, the cotangent of W v + b, and that of b.
template <typename T> void gate_pull(const SpatialGateWork<T> &work, int64_t from, int64_t end) {
  const int64_t columns = work.head_channels();
  for (int64_t token = from; token < end; ++token) {
    for (int64_t head = 0; head < work.heads; ++head) {
      const int64_t place = token * work.channels + head * columns;
      const T *g = work.cotangent + place, *mixed = work.mixed + place, *u = work.keep(token) + head * columns;
      T *du = work.dz + token * 2 * work.channels + head * columns, *of_mixed = work.of_mixed + place;
      Vector<T> sum{};
      gate_vectors<T>(columns, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        const auto slope = some<T>(g + c, n), of_gate = slope * some<T>(u + c, n);
        put_some<T>(du + c, slope * some<T>(mixed + c, n), n);
        put_some<T>(of_mixed + c, of_gate, n);
        sum += of_gate;
      });
      work.dbias[(token / work.length * work.heads + head) * work.length + token % work.length] = sum_of<T>(sum);
    }
  }
}

/// Wᵀ times the cotangent of W v, for some columns.
template <typename T> void gate_backward(const SpatialGateWork<T> &work, int64_t index) {
  Scratch scratch(GateTask<T>::bytes(work));
  GateTask<T> task(work, scratch, index);
  const int64_t start = task.sequence * work.length * work.channels + task.first;
  gate_panel<T>(work.of_mixed + start, work.channels, work.length, task.columns, task.panel);
  gate_product<T>(work, task.head, true, task.columns, task.panel, task.block, task.sums);
  for (int64_t i = 0; i < work.length; ++i)
    gate_vectors<T>(task.columns, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      put_some<T>(work.of_normed + start + i * work.channels + c, load<T>(task.sums + i * gate_columns + c), n);
    });
}

/// Some columns of dW: the cotangent of W v times vᵀ, all sequences together.
template <typename T> void gate_weights(const SpatialGateWork<T> &work, int64_t head, int64_t panel) {
  const int64_t depth = work.head_channels(), j0 = panel * gate_columns, columns = std::min(gate_columns, work.length - j0);
  Scratch scratch(sizeof(T) * static_cast<size_t>((depth + work.length) * gate_columns) + 256);
  T *turned = scratch.zeros<T>(depth * gate_columns), *sums = scratch.zeros<T>(work.length * gate_columns);
  const int64_t first_row = work.causal ? j0 / gate_rows * gate_rows : 0;
  for (int64_t sequence = 0; sequence < work.batch; ++sequence) {
    const int64_t start = sequence * work.length * work.channels + head * depth;
    transpose<T>(columns, depth, work.normed + start + j0 * work.channels, work.channels, turned, gate_columns);
    for (int64_t k0 = 0; k0 < depth; k0 += gate_depth)
      for (int64_t r0 = first_row; r0 < work.length; r0 += gate_rows)
        multiply<T>(std::min(gate_rows, work.length - r0), padded<T>(columns), std::min(gate_depth, depth - k0),
                    work.of_mixed + start + r0 * work.channels + k0, work.channels, 1, turned + k0 * gate_columns, gate_columns,
                    sums + r0 * gate_columns, gate_columns, true);
  }
  T *to = work.dw + head * work.length * work.length + j0;
  for (int64_t i = 0; i < work.length; ++i, to += work.length) {
    const int64_t seen = work.causal ? std::max<int64_t>(0, std::min(columns, i + 1 - j0)) : columns;
    std::memcpy(to, sums + i * gate_columns, sizeof(T) * static_cast<size_t>(seen));
    std::memset(static_cast<void *>(to + seen), 0, sizeof(T) * static_cast<size_t>(columns - seen));
  }
}

/// From the cotangent of LayerNorm(v) to dv, and to the norm's own gradients of these tokens.
template <typename T> void gate_norm_backward(const SpatialGateWork<T> &work, int64_t from, int64_t end, T *of_norm) {
  T *of_scale = of_norm, *of_shift = of_norm + work.channels;
  std::memset(static_cast<void *>(of_norm), 0, sizeof(T) * static_cast<size_t>(2 * work.channels));
  for (int64_t token = from; token < end; ++token) {
    const T *v = work.gate(token), *slope = work.of_normed + token * work.channels;
    T *dv = work.dz + token * 2 * work.channels + work.channels;
    if (work.mask && !work.mask[token]) {
      std::memset(static_cast<void *>(dv), 0, sizeof(T) * static_cast<size_t>(work.channels));
      continue;
    }
    const auto center = splat<T>(work.center[token]), inverse = splat<T>(work.inverse[token]);
    Vector<T> sum{}, product{};
    gate_vectors<T>(work.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const auto x = (some<T>(v + c, n) - center) * inverse, g = some<T>(slope + c, n);
      put_some<T>(of_scale + c, some<T>(of_scale + c, n) + g * x, n);
      put_some<T>(of_shift + c, some<T>(of_shift + c, n) + g, n);
      const auto of_x = g * some<T>(work.scale + c, n); // zero behind the row's end
      sum += of_x;
      product += of_x * x;
    });
    const auto mean = splat<T>(sum_of<T>(sum) / static_cast<T>(work.channels));
    const auto slant = splat<T>(sum_of<T>(product) / static_cast<T>(work.channels));
    gate_vectors<T>(work.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const auto x = (some<T>(v + c, n) - center) * inverse;
      put_some<T>(dv + c, inverse * (some<T>(slope + c, n) * some<T>(work.scale + c, n) - mean - x * slant), n);
    });
  }
}
