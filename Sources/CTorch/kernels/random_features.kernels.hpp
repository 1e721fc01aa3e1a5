// Random features for one instruction set; see random_features.cpp for the equations.

template <typename T> void positive_features(const PositiveFeaturesWork<T> &work, int64_t task) {
  const int64_t head = task / work.blocks(), first = task % work.blocks() * work.block;
  const int64_t count = std::min(work.block, work.length - first), columns = work.columns;
  const T *x = work.x.head(head) + first * work.x.row;
  T *out = work.out.head(head) + first * work.out.row;
  Scratch scratch(sizeof(T) * static_cast<size_t>(work.block * work.wide_columns));
  T *u = scratch.take<T>(work.block * work.wide_columns);
  multiply<T>(count, work.wide_columns, work.dim, x, work.x.row, 1, work.directions, work.wide_columns, u, work.wide_columns, false);
  for (int64_t i = 0; i < count; ++i, x += work.x.row, out += work.out.row, u += work.wide_columns) {
    Vector<T> squares{};
    for_each_part<T>(work.dim, [&](int64_t c, int64_t n) {
      const auto part = load_first<T>(x + c, n);
      squares += part * part;
    });
    const auto offset = splat<T>(work.temperature / 2 * sum_of<T>(squares) + work.offset);
    for_each_part<T>(columns, [&](int64_t c, int64_t n) {
      const auto v = load<T>(u + c);
      store_first<T>(out + c, exponential(v - offset), n);
      store_first<T>(out + columns + c, exponential(-v - offset), n);
    });
  }
}

template <typename T> void positive_features_back(const PositiveFeaturesWork<T> &work, int64_t task) {
  const int64_t head = task / work.blocks(), first = task % work.blocks() * work.block;
  const int64_t count = std::min(work.block, work.length - first), columns = work.columns;
  const T *x = work.x.head(head) + first * work.x.row, *g = work.cotangent.head(head) + first * work.cotangent.row;
  const T *phi = work.features.head(head) + first * work.features.row;
  T *dx = work.out.head(head) + first * work.out.row;
  Scratch scratch(sizeof(T) * static_cast<size_t>(work.block * (work.wide_columns + work.wide_dim + 1)) + 3 * 64);
  T *du = scratch.take<T>(work.block * work.wide_columns), *through = scratch.take<T>(work.block * work.wide_dim);
  T *share = scratch.take<T>(work.block);
  for (int64_t i = 0; i < count; ++i, g += work.cotangent.row, phi += work.features.row) {
    Vector<T> total{};
    for_each_part<T>(columns, [&](int64_t c, int64_t n) {
      const auto up = load_first<T>(phi + c, n) * load_first<T>(g + c, n);
      const auto down = load_first<T>(phi + columns + c, n) * load_first<T>(g + columns + c, n);
      store_first<T>(du + i * work.wide_columns + c, up - down, n);
      total += up + down;
    });
    share[i] = work.temperature * sum_of<T>(total);
  }
  multiply<T>(count, work.wide_dim, columns, du, work.wide_columns, 1, work.turned, work.wide_dim, through, work.wide_dim, false);
  for (int64_t i = 0; i < count; ++i, x += work.x.row, dx += work.out.row)
    for_each_part<T>(work.dim, [&](int64_t c, int64_t n) {
      store_first<T>(dx + c, load<T>(through + i * work.wide_dim + c) - load_first<T>(x + c, n) * share[i], n);
    });
}
