// Norms of rows; included by for_each_isa.hpp inside an instruction set's namespace.

/// Calls body(first column, read, write) for each vector of a row; the last may be a part of one.
template <typename T, typename Body> INLINE void for_each_vector(int64_t columns, Body body) {
  int64_t n = 0;
  for (; n + width<T> <= columns; n += width<T>)
    body(n, [](const T *p) { return load<T>(p); }, [](T *p, Vector<T> v) { store<T>(p, v); });
  if (const int64_t rest = columns - n; rest > 0)
    body(n, [rest](const T *p) { return load_first<T>(p, rest); }, [rest](T *p, Vector<T> v) { store_first<T>(p, v, rest); });
}

/// r of a row by the simple norm. It takes what grows like a cube, whose squares would leave the range.
template <typename T> INLINE T simple_root(int64_t columns, const T *x) {
  auto largest = splat<T>(1);
  for_each_vector<T>(columns, [&](int64_t n, auto read, auto) {
    const auto part = read(x + n);
    largest = larger<T>(larger<T>(part, -part), largest);
  });
  const T unit = largest_of<T>(largest);
  Vector<T> squares{};
  for_each_vector<T>(columns, [&](int64_t n, auto read, auto) {
    const auto part = read(x + n) * (1 / unit);
    squares += part * part;
  });
  return unit * std::sqrt(sum_of<T>(squares) / static_cast<T>(columns));
}

template <typename T> void norm_forward(const NormWork<T> &work, int64_t task) {
  const int64_t columns = work.columns, last = std::min(work.rows, (task + 1) * work.block);
  const T count = static_cast<T>(columns);
  for (int64_t row = task * work.block; row < last; ++row) {
    const T *x = work.x + row * columns;
    T *y = work.y + row * columns;
    if (work.added) {
      const T *added = work.added + row * columns;
      T *sum = work.sum + row * columns;
      for_each_vector<T>(columns, [&](int64_t n, auto read, auto write) { write(sum + n, read(x + n) + read(added + n)); });
      x = sum;
    }
    T mean = 0;
    if (work.kind == NormKind::layer) {
      Vector<T> total{};
      for_each_vector<T>(columns, [&](int64_t n, auto read, auto) { total += read(x + n); });
      mean = sum_of<T>(total) / count;
    }
    T scale;
    if (work.kind == NormKind::simple) {
      const T root = simple_root(columns, x);
      scale = T(1) / (root + work.epsilon);
      work.center[row] = root > 0 ? (root + work.epsilon) / root : T(1);
    } else {
      // Of a last vector's part only the part counts: what lies beyond it is zero before the mean is taken off.
      Vector<T> squares{};
      int64_t n = 0;
      for (; n + width<T> <= columns; n += width<T>) {
        const auto deviation = load<T>(x + n) - mean;
        squares += deviation * deviation;
      }
      T total = sum_of<T>(squares);
      for (; n < columns; ++n) total += (x[n] - mean) * (x[n] - mean);
      scale = T(1) / std::sqrt(total / count + work.epsilon);
      work.center[row] = mean;
    }
    for_each_vector<T>(columns, [&](int64_t at, auto read, auto write) {
      auto v = (read(x + at) - mean) * scale;
      if (work.weight) v *= read(work.weight + at);
      if (work.bias) v += read(work.bias + at);
      write(y + at, v);
    });
    work.scale[row] = scale;
  }
}

/// With x̂ the normalized row and g = dy weight: dx = scale (g - mean(g) - x̂ mean(g x̂)) + dsum, without mean(g) for a root
/// mean square, and for the simple one x̂ (r + ε) / r instead of x̂ there.
template <typename T> void norm_backward(const NormWork<T> &work, int64_t task) {
  const int64_t columns = work.columns, last = std::min(work.rows, (task + 1) * work.block);
  const T count = static_cast<T>(columns);
  T *dweight = work.parts ? work.parts + task * 2 * columns : nullptr, *dbias = dweight + (dweight ? columns : 0);
  if (dweight) std::memset(static_cast<void *>(dweight), 0, sizeof(T) * static_cast<size_t>(2 * columns));
  for (int64_t row = task * work.block; row < last; ++row) {
    const T *x = work.x + row * columns, *dy = work.dy + row * columns;
    const T *dsum = work.dsum ? work.dsum + row * columns : nullptr;
    T *dx = work.dx + row * columns;
    const bool is_simple = work.kind == NormKind::simple;
    const T mean = is_simple ? T(0) : work.center[row], scale = work.scale[row], factor = is_simple ? work.center[row] : T(1);
    Vector<T> gradients{}, products{};
    for_each_vector<T>(columns, [&](int64_t n, auto read, auto write) {
      const auto d = read(dy + n), normalized = (read(x + n) - mean) * scale;
      if (dweight) {
        write(dweight + n, read(dweight + n) + d * normalized);
        write(dbias + n, read(dbias + n) + d);
      }
      const auto g = work.weight ? d * read(work.weight + n) : d;
      gradients += g;
      products += g * normalized;
    });
    const T shift = work.kind == NormKind::layer ? sum_of<T>(gradients) / count : T(0), share = sum_of<T>(products) / count * factor;
    for_each_vector<T>(columns, [&](int64_t n, auto read, auto write) {
      const auto d = read(dy + n), normalized = (read(x + n) - mean) * scale;
      auto result = ((work.weight ? d * read(work.weight + n) : d) - shift - normalized * share) * scale;
      if (dsum) result += read(dsum + n);
      write(dx + n, result);
    });
  }
}
