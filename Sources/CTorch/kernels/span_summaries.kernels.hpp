// Span summaries for one instruction set; see span_summaries.cpp for the equations and the names.

/// x · y over rows of any length.
template <typename T> INLINE T dot_of_rows(int64_t n, const T *x, const T *y) {
  Vector<T> sum{};
  for (int64_t c = 0; c < n; c += width<T>) sum += load_up_to<T>(x + c, n - c) * load_up_to<T>(y + c, n - c);
  return sum_of<T>(sum);
}

/// The rows of one span: `count` of them, of which `real` (or all) count.
template <typename T> struct SpanRows {
  const T *data;
  int64_t row, count, columns;
  const bool *real;

  const T *operator[](int64_t r) const { return data + r * row; }
  bool counts(int64_t r) const { return !real || real[r]; }
};

/// What the pool makes of a span; `members` is how many of its rows count.
template <typename T> void pool_rows(SpanPool pool, const SpanRows<T> &rows, int64_t members, T *pooled) {
  for (int64_t c = 0; c < rows.columns; c += width<T>) {
    const int64_t n = rows.columns - c;
    auto value = splat<T>(pool == SpanPool::max && members > 0 ? T(-INFINITY) : T(0));
    for (int64_t r = 0; r < rows.count; ++r) {
      if (!rows.counts(r)) continue;
      const auto x = load_up_to<T>(rows[r] + c, n);
      value = pool == SpanPool::max ? larger<T>(value, x) : value + x;
    }
    if (pool == SpanPool::mean && members > 0) value = value * (T(1) / static_cast<T>(members));
    store_up_to<T>(pooled + c, value, n);
  }
}

/// Adds the gradient of what was pooled to that of its rows, or writes it. Of equal maxima each gets its share.
template <typename T>
void unpool_rows(SpanPool pool, const SpanRows<T> &rows, int64_t members, const T *pooled, const T *gradient, T *to, int64_t to_row,
                 bool add) {
  const auto zero = Vector<T>{}, one = splat<T>(1);
  for (int64_t c = 0; c < rows.columns; c += width<T>) {
    const int64_t n = rows.columns - c;
    const auto best = load_up_to<T>(pooled + c, n);
    auto share = load_up_to<T>(gradient + c, n);
    if (pool == SpanPool::mean && members > 0) share = share * (T(1) / static_cast<T>(members));
    if (pool == SpanPool::max) {
      auto equal = zero;
      for (int64_t r = 0; r < rows.count; ++r)
        if (rows.counts(r)) equal += load_up_to<T>(rows[r] + c, n) == best ? one : zero;
      share = share / larger<T>(equal, one);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      auto own = rows.counts(r) ? share : zero;
      if (pool == SpanPool::max) own = load_up_to<T>(rows[r] + c, n) == best ? own : zero;
      T *place = to + r * to_row + c;
      store_up_to<T>(place, add ? load_up_to<T>(place, n) + own : own, n);
    }
  }
}

/// The weights of the span's tokens under its pooled query; zeros where none counts.
template <typename T> void span_weights(const SpanRows<T> &k, int64_t members, const T *query, T scale, T *weights) {
  const int64_t size = padded<T>(k.count);
  T peak = -INFINITY;
  for (int64_t r = 0; r < size; ++r) {
    weights[r] = r < k.count && k.counts(r) ? scale * dot_of_rows<T>(k.columns, query, k[r]) : T(-INFINITY);
    peak = std::max(peak, weights[r]);
  }
  if (members == 0) {
    std::fill_n(weights, size, T(0));
    return;
  }
  Vector<T> sums{};
  for (int64_t r = 0; r < size; r += width<T>) {
    const auto x = exponential(load<T>(weights + r) - peak);
    store<T>(weights + r, x);
    sums += x;
  }
  const T inverse = T(1) / sum_of<T>(sums);
  for (int64_t r = 0; r < size; r += width<T>) store<T>(weights + r, load<T>(weights + r) * inverse);
}

/// to = Σ_r weights_r rows_r
template <typename T> void weighted_sum(const SpanRows<T> &rows, const T *weights, T *to) {
  for (int64_t c = 0; c < rows.columns; c += width<T>) {
    Vector<T> sum{};
    // A token that does not count may hold anything.
    for (int64_t r = 0; r < rows.count; ++r)
      if (rows.counts(r)) sum += weights[r] * load_up_to<T>(rows[r] + c, rows.columns - c);
    store_up_to<T>(to + c, sum, rows.columns - c);
  }
}

/// One span of one head, and room for its summaries.
template <typename T> struct Span {
  int64_t start, count, members;
  SpanRows<T> a, b, k, v;

  Span(const SpanWork<T> &work, int64_t head, int64_t index)
      : start(work.begin(index)), count(work.begin(index + 1) - start), members(count) {
    const bool *real = work.real(head, start);
    if (real) members = std::count(real, real + count, true);
    auto rows = [&](const Rows<const T> &of, int64_t columns) {
      return SpanRows<T>{of.head(head) + start * of.row, of.row, count, columns, real};
    };
    a = rows(work.a, work.features);
    b = rows(work.b, work.features);
    k = rows(work.k, work.features);
    v = rows(work.v, work.values);
  }
};

template <typename T> size_t span_room(const SpanWork<T> &work) {
  return sizeof(T) * static_cast<size_t>(2 * (work.span + width<T>) + 4 * (work.features + width<T>)) + 512;
}

/// The spans from `from` to `to` of one head.
template <typename T> void span_forward(const SpanWork<T> &work, int64_t head, int64_t from, int64_t to) {
  Scratch scratch(span_room<T>(work));
  T *query = scratch.take<T>(padded<T>(work.features)), *weights = scratch.take<T>(padded<T>(work.span));
  T *keys = work.out_keys.head(head), *values = work.out_values.head(head);
  for (int64_t index = from; index < to; ++index) {
    const Span<T> span(work, head, index);
    const int64_t last = work.length + index;
    pool_rows<T>(work.pool, span.a, span.members, query);
    pool_rows<T>(work.pool, span.b, span.members, keys + last * work.out_keys.row);
    span_weights<T>(span.k, span.members, query, work.scale, weights);
    weighted_sum<T>(span.v, weights, values + last * work.out_values.row);
    for (int64_t r = 0; r < span.count; ++r) {
      std::memcpy(keys + (span.start + r) * work.out_keys.row, span.k[r], sizeof(T) * static_cast<size_t>(work.features));
      std::memcpy(values + (span.start + r) * work.out_values.row, span.v[r], sizeof(T) * static_cast<size_t>(work.values));
    }
  }
}

/// to = from + scale · x
template <typename T> INLINE void sum_of_rows(int64_t columns, const T *from, T scale, const T *x, T *to) {
  for (int64_t c = 0; c < columns; c += width<T>)
    store_up_to<T>(to + c, load_up_to<T>(from + c, columns - c) + scale * load_up_to<T>(x + c, columns - c), columns - c);
}

template <typename T> void span_backward(const SpanWork<T> &work, int64_t head, int64_t from, int64_t to) {
  Scratch scratch(span_room<T>(work));
  const int64_t features = padded<T>(work.features), size = padded<T>(work.span);
  T *query = scratch.take<T>(features), *key = scratch.take<T>(features), *dquery = scratch.take<T>(features);
  T *weights = scratch.take<T>(size), *slopes = scratch.take<T>(size);
  const auto &gk = work.keys_cotangent, &gv = work.values_cotangent;
  for (int64_t index = from; index < to; ++index) {
    const Span<T> span(work, head, index);
    const T *dkey = gk.head(head) + (work.length + index) * gk.row, *dvalue = gv.head(head) + (work.length + index) * gv.row;
    pool_rows<T>(work.pool, span.a, span.members, query);
    pool_rows<T>(work.pool, span.b, span.members, key);
    span_weights<T>(span.k, span.members, query, work.scale, weights);
    T mean = 0;
    for (int64_t r = 0; r < span.count; ++r) {
      slopes[r] = span.v.counts(r) ? dot_of_rows<T>(work.values, dvalue, span.v[r]) : T(0);
      mean += weights[r] * slopes[r];
    }
    for (int64_t r = 0; r < span.count; ++r) {
      slopes[r] = work.scale * weights[r] * (slopes[r] - mean);
      const int64_t token = span.start + r;
      sum_of_rows<T>(work.features, gk.head(head) + token * gk.row, slopes[r], query, work.dk.head(head) + token * work.dk.row);
      sum_of_rows<T>(work.values, gv.head(head) + token * gv.row, weights[r], dvalue, work.dv.head(head) + token * work.dv.row);
    }
    weighted_sum<T>(span.k, slopes, dquery);
    auto rows_of = [&](const Rows<T> &rows) { return rows.head(head) + span.start * rows.row; };
    unpool_rows<T>(work.pool, span.a, span.members, query, dquery, rows_of(work.da), work.da.row, false);
    const auto &pooled_keys = work.pools_keys ? work.dk : work.db;
    unpool_rows<T>(work.pool, span.b, span.members, key, dkey, rows_of(pooled_keys), pooled_keys.row, work.pools_keys);
  }
}
