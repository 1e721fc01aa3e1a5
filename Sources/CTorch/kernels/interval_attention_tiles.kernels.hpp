// A block of queries at a tile of keys, for one instruction set; see interval_attention.cpp for the equations.
//
// Scores lie turned over, a row for each key of a tile and a column for each query of a block: then keys and values are read as
// they are, row by row, and what belongs to a query is a lane, so that neither maxima nor sums go across vectors.

/// e^x for x ≤ 0, to within 2 units in the last place of float32; 0 below -86.9.
INLINE Vector<float> interval_weight(Vector<float> x) {
  typedef int32_t Whole __attribute__((vector_size(vector_bytes)));
  const auto low = splat<float>(-86.9f);
  const auto bounded = low > x ? low : x; // in this order a NaN stays one
  const float magic = 12582912.0f;
  const auto shifted = bounded * 1.44269504088896341f + magic;
  const auto n = shifted - magic;
  auto r = bounded - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  const auto p = exponential_series(r);
  // The last bits of `shifted` are n: added to the exponent of p, which stays above its smallest.
  const auto y = reinterpret_cast<Vector<float>>(reinterpret_cast<Whole>(p) + (reinterpret_cast<Whole>(shifted) << 23));
  return x < low ? Vector<float>{} : y;
}
INLINE Vector<double> interval_weight(Vector<double> x) { return exponential(x); }

/// The rows from place `first` on, times `scale`, into rows padded with zeros.
template <typename T, typename U>
void interval_pack(const OrderedRows<U> &from, int64_t first, int64_t rows, T scale, T *to, int64_t to_row) {
  const int64_t whole = from.columns / width<T> * width<T>;
  for (int64_t r = 0; r < rows; ++r, to += to_row) {
    const T *row = from[first + r];
    for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, load<T>(row + c) * scale);
    if (whole < from.columns) store<T>(to + whole, load_first<T>(row + whole, from.columns - whole) * scale);
  }
}

/// And back, or added to what is there.
template <typename T>
void interval_unpack(const OrderedRows<T> &to, int64_t first, int64_t rows, T scale, bool add, const T *from, int64_t from_row) {
  const int64_t whole = to.columns / width<T> * width<T>, rest = to.columns - whole;
  for (int64_t r = 0; r < rows; ++r, from += from_row) {
    T *row = to[first + r];
    for (int64_t c = 0; c < whole; c += width<T>) {
      const auto x = load<T>(from + c) * scale;
      store<T>(row + c, add ? load<T>(row + c) + x : x);
    }
    if (rest == 0) continue;
    const auto x = load<T>(from + whole) * scale;
    store_first<T>(row + whole, add ? load_first<T>(row + whole, rest) + x : x, rest);
  }
}

/// to[c, r] = from[r, c] for a tile; columns beyond `rows` are zero.
template <typename T> void interval_turn(int64_t rows, int64_t columns, const T *from, int64_t from_row, T *to) {
  if (rows < interval_tile)
    for (int64_t c = 0; c < columns; ++c) std::fill(to + c * interval_tile + rows, to + (c + 1) * interval_tile, T(0));
  transpose<T>(rows, columns, from, from_row, to, interval_tile);
}

template <typename T> INLINE void interval_zero(int64_t count, T *to) {
  std::memset(static_cast<void *>(to), 0, sizeof(T) * static_cast<size_t>(count));
}

/// Rows of a tile as a product reads them: as they lie, or packed into `room`.
template <typename T> struct IntervalRows {
  const T *data;
  int64_t row;

  /// The left side of a product may have rows of any length, the right side such as are whole vectors.
  static IntervalRows left(const OrderedRows<const T> &from, int64_t first, int64_t rows, T *room) {
    return from.order.is_natural() ? IntervalRows{from[first], from.row} : packed(from, first, rows, room);
  }
  static IntervalRows right(const OrderedRows<const T> &from, int64_t first, int64_t rows, T *room) {
    const bool fits = from.order.is_natural() && from.row == padded<T>(from.columns);
    return fits ? IntervalRows{from[first], from.row} : packed(from, first, rows, room);
  }

private:
  static IntervalRows packed(const OrderedRows<const T> &from, int64_t first, int64_t rows, T *room) {
    interval_pack<T>(from, first, rows, T(1), room, padded<T>(from.columns));
    return {room, padded<T>(from.columns)};
  }
};

/// One block of queries at one tile of keys.
template <typename T> struct IntervalTile {
  int64_t rows, keys;
  const bool *real; // of the keys, or null
  const IntervalSpan *key_spans, *query_spans;
  int64_t key_strips, query_strips;
  bool whole;
  int64_t ranges;
  const T *from, *to; // [ranges, tile]: which keys of the tile a query sees
  IntervalSpan all_keys, all_queries;

  IntervalTile(const IntervalPlan &plan, int64_t block, const IntervalVisit &visit, const bool *mask, T *bounds)
      : rows(plan.rows_of(block)), keys(plan.keys_of(visit.tile)), real(mask ? mask + visit.tile * interval_tile : nullptr),
        whole(visit.part < 0), ranges(0), from(bounds), to(nullptr),
        all_keys{0, static_cast<int16_t>(keys), 0, static_cast<int16_t>(rows)},
        all_queries{0, static_cast<int16_t>(rows), 0, static_cast<int16_t>(keys)} {
    key_spans = &all_keys, query_spans = &all_queries;
    key_strips = query_strips = 1;
    if (whole) return;
    const auto &part = plan.parts[visit.part];
    key_spans = part.keys, query_spans = part.queries;
    key_strips = (keys + interval_strip - 1) / interval_strip, query_strips = (rows + interval_strip - 1) / interval_strip;
    ranges = visit.end_range - visit.first_range;
    to = bounds + ranges * interval_tile;
    for (int64_t i = 0; i < ranges; ++i) {
      const int32_t range = plan.met_ranges[visit.first_range + i];
      const int32_t *pairs = plan.intervals.data + (range * plan.intervals.queries + block * interval_tile) * 2;
      const auto first = static_cast<int32_t>(visit.tile * interval_tile);
      for (int64_t row = 0; row < rows; ++row) {
        bounds[i * interval_tile + row] = static_cast<T>(std::max(pairs[2 * row], first) - first);
        bounds[(ranges + i) * interval_tile + row] = static_cast<T>(std::max(pairs[2 * row + 1], first) - first);
      }
      for (int64_t row = rows; row < interval_tile; ++row)
        bounds[i * interval_tile + row] = bounds[(ranges + i) * interval_tile + row] = 0;
    }
  }
  IntervalTile(const IntervalTile &) = delete;

  bool hidden() const {
    return real && std::none_of(real, real + keys, [](bool x) { return x; });
  }

  /// Which of the queries from `column` on see the key.
  INLINE auto seen(int64_t key, int64_t column) const {
    const auto place = splat<T>(static_cast<T>(key));
    auto any = (load<T>(from + column) <= place) & (place < load<T>(to + column));
    for (int64_t i = 1; i < ranges; ++i)
      any |= (load<T>(from + i * interval_tile + column) <= place) & (place < load<T>(to + i * interval_tile + column));
    return any;
  }

  static int64_t first_column(const IntervalSpan &span) { return span.from / width<T> * width<T>; }
  static int64_t end_column(const IntervalSpan &span) { return padded<T>(span.to); }

  /// scores[key, query] = a_key · b_query, added to what they are if `accumulate`.
  void products(int64_t depth, const IntervalRows<T> &a, const T *b, T *scores, bool accumulate) const {
    for (int64_t i = 0; i < key_strips; ++i) {
      const auto &span = key_spans[i];
      const int64_t column = first_column(span), columns = end_column(span) - column;
      if (columns > 0)
        multiply<T>(span.end - span.begin, columns, depth, a.data + span.begin * a.row, a.row, 1, b + column, interval_tile,
                    scores + span.begin * interval_tile + column, interval_tile, accumulate);
    }
  }

  /// sum[key] += Σ over queries of weights[key, query] b[query]
  void add_to_keys(const T *weights, const T *b, int64_t columns, T *sum) const {
    for (int64_t i = 0; i < key_strips; ++i) {
      const auto &span = key_spans[i];
      if (span.from < span.to)
        multiply<T>(span.end - span.begin, columns, span.to - span.from, weights + span.begin * interval_tile + span.from,
                    interval_tile, 1, b + span.from * columns, columns, sum + span.begin * columns, columns, true);
    }
  }

  /// sum[query] += Σ over keys of weights[key, query] b[key]
  void add_to_queries(const T *weights, const IntervalRows<T> &b, int64_t columns, T *sum) const {
    for (int64_t i = 0; i < query_strips; ++i) {
      const auto &span = query_spans[i];
      if (span.from < span.to)
        multiply<T>(span.end - span.begin, columns, span.to - span.from, weights + span.from * interval_tile + span.begin, 1,
                    interval_tile, b.data + span.from * b.row, b.row, sum + span.begin * columns, columns, true);
    }
  }

  /// peak = the largest score of each query and of `peak` before; what is not seen becomes -∞.
  void take_peaks(T *scores, T *peak) const {
    const auto nothing = splat<T>(-INFINITY);
    for (int64_t i = 0; i < key_strips; ++i) {
      const auto &span = key_spans[i];
      for (int64_t column = first_column(span); column < end_column(span); column += width<T>) {
        auto largest = load<T>(peak + column), other = largest;
        T *row = scores + span.begin * interval_tile + column;
        int64_t key = span.begin;
        if (whole && !real)
          for (; key + 1 < span.end; key += 2, row += 2 * interval_tile) {
            largest = larger<T>(load<T>(row), largest);
            other = larger<T>(load<T>(row + interval_tile), other);
          }
        for (; key < span.end; ++key, row += interval_tile) {
          auto score = load<T>(row);
          if (!whole) score = select(seen(key, column), score, nothing);
          if (real && !real[key]) score = nothing;
          store<T>(row, score);
          largest = larger<T>(score, largest);
        }
        store<T>(peak + column, larger<T>(largest, other));
      }
    }
  }

  /// scores = exp(scores - peak), their sums added to `sum`.
  void take_weights(T *scores, const T *peak, T *sum) const {
    for (int64_t i = 0; i < key_strips; ++i) {
      const auto &span = key_spans[i];
      for (int64_t column = 0; column < padded<T>(rows); column += width<T>) {
        T *row = scores + span.begin * interval_tile + column;
        if (column < first_column(span) || column >= end_column(span)) {
          for (int64_t key = span.begin; key < span.end; ++key, row += interval_tile) store<T>(row, Vector<T>{});
          continue;
        }
        const auto top = load<T>(peak + column);
        auto total = load<T>(sum + column);
        for (int64_t key = span.begin; key < span.end; ++key, row += interval_tile) {
          const auto weight = interval_weight(load<T>(row) - top);
          store<T>(row, weight);
          total += weight;
        }
        store<T>(sum + column, total);
      }
    }
  }

  /// scores = exp(scores - peak), slopes = scores (slopes - delta); zero where nothing is seen.
  void take_slopes(T *scores, T *slopes, const T *peak, const T *delta) const {
    for (int64_t i = 0; i < key_strips; ++i) {
      const auto &span = key_spans[i];
      for (int64_t column = 0; column < padded<T>(rows); column += width<T>) {
        const bool outside = column < first_column(span) || column >= end_column(span);
        const auto top = load<T>(peak + column), d = load<T>(delta + column);
        for (int64_t key = span.begin; key < span.end; ++key) {
          T *score = scores + key * interval_tile + column, *slope = slopes + key * interval_tile + column;
          if (outside || (real && !real[key])) {
            store<T>(score, Vector<T>{});
            store<T>(slope, Vector<T>{});
            continue;
          }
          auto weight = interval_weight(load<T>(score) - top);
          auto change = weight * (load<T>(slope) - d);
          if (!whole) {
            const auto visible = seen(key, column);
            weight = select(visible, weight, Vector<T>{});
            change = select(visible, change, Vector<T>{});
          }
          store<T>(score, weight);
          store<T>(slope, change);
        }
      }
    }
  }
};
