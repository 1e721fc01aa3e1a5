// What distances add to scores, for one instruction set; see interval_attention.cpp for the equations.
//
// A few queries after each other meet nearly the same distances to the keys of a tile. Their products with these rows of R are a
// band, in which the keys of each query begin further left by as much as its range ends further right. Put side by side, and
// turned over, they are scores.

/// Queries of a band, and places that they may meet together.
constexpr int64_t band_rows = 16, band_places = interval_tile + band_rows;

struct IntervalBand {
  int64_t first, count = 0;          // queries of a block
  int64_t low = INT64_MAX, high = 0; // places low..<high
  int64_t from[band_rows], to[band_rows], origin[band_rows]; // keys from..<to of the tile; the place of its first key

  bool empty() const { return high == 0; }
  int64_t places() const { return high - low; }

  /// As many queries from `first` to `rows` as fit. The block begins with `query`, the tile is key..<key + keys.
  template <typename T>
  IntervalBand(const IntervalDistances<T> &distances, const Intervals &intervals, int64_t range, int64_t query, int64_t first,
               int64_t rows, int64_t key, int64_t keys)
      : first(first) {
    for (; count < band_rows && first + count < rows; ++count) {
      const int64_t i = query + first + count;
      from[count] = std::clamp<int64_t>(intervals.start(range, i) - key, 0, keys);
      to[count] = std::clamp<int64_t>(intervals.end(range, i) - key, from[count], keys);
      origin[count] = distances.origin(intervals, range, i) + key;
      if (from[count] == to[count]) continue;
      const int64_t lowest = std::min(low, origin[count] + from[count]), highest = std::max(high, origin[count] + to[count]);
      if (highest - lowest > band_places) break;
      low = lowest, high = highest;
    }
  }
};

/// The distances of one task.
template <typename T> struct IntervalDistanceScores {
  const bool any;
  const IntervalDistances<T> &distances;
  const IntervalPlan &plan;
  const int64_t features;
  const T *rows, *turned, *bias, *key_bias;
  T *d_rows, *d_bias;
  T *upright; // [queries, keys] of a tile
  T *band;    // [band_rows, band_places]

  static size_t bytes(const IntervalWork<T> &work) {
    return work.distances.rows ? sizeof(T) * static_cast<size_t>(interval_tile * interval_tile + band_rows * band_places) + 128 : 0;
  }

  IntervalDistanceScores(Scratch &scratch, const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment)
      : any(work.distances.rows), distances(work.distances), plan(plan), features(work.features) {
    if (!any) return;
    const int64_t table = head % work.heads, task = head * plan.segments() + segment;
    rows = distances.rows + table * distances.places * distances.row;
    turned = distances.turned + table * features * distances.turned_row;
    bias = distances.bias + table * distances.turned_row;
    key_bias = distances.key_bias + head * work.keys;
    d_rows = distances.d_rows ? distances.d_rows + task * distances.places * distances.row : nullptr;
    d_bias = distances.d_rows ? distances.d_bias + task * distances.places : nullptr;
    upright = scratch.take<T>(interval_tile * interval_tile);
    band = scratch.take<T>(band_rows * band_places);
  }

  /// Calls body(band) for the queries that see anything, range by range.
  template <typename Body> void for_each_band(int64_t block, const IntervalVisit &visit, Body body) const {
    const int64_t count = plan.rows_of(block), key = visit.tile * interval_tile, keys = plan.keys_of(visit.tile);
    for (int32_t i = visit.first_range; i < visit.end_range; ++i)
      for (int64_t first = 0; first < count;) {
        const IntervalBand of(distances, plan.intervals, plan.met_ranges[i], block * interval_tile, first, count, key, keys);
        if (!of.empty()) body(of);
        first += of.count;
      }
  }

  /// scores[key, query] = q·R_distance + c_distance + a_key where the key is seen. q [queries, padded features].
  void put(int64_t block, const IntervalVisit &visit, const T *q, T *scores) const {
    const T *added = key_bias + visit.tile * interval_tile;
    interval_zero(interval_tile * interval_tile, upright);
    for_each_band(block, visit, [&](const IntervalBand &of) {
      const int64_t columns = padded<T>(of.places()), q_row = padded<T>(features);
      for (int64_t r = 0; r < of.count; ++r) std::copy_n(bias + of.low, columns, band + r * band_places);
      multiply<T>(of.count, columns, features, q + of.first * q_row, q_row, 1, turned + of.low, distances.turned_row, band,
                  band_places, true);
      for (int64_t r = 0; r < of.count; ++r) {
        const T *stretch = band + r * band_places + of.origin[r] - of.low;
        T *row = upright + (of.first + r) * interval_tile;
        for (int64_t j = of.from[r]; j < of.to[r]; ++j) row[j] = stretch[j] + added[j];
      }
    });
    interval_turn<T>(plan.rows_of(block), plan.keys_of(visit.tile), upright, interval_tile, scores);
  }

  /// Adds what slopes[key, query], zero where nothing is seen, give to dq, to da of the tile's keys, and to the task's dR and dc.
  void add_gradients(int64_t block, const IntervalVisit &visit, const T *slopes, const T *q, T *dq, T *d_key_bias) const {
    const int64_t columns = padded<T>(features);
    interval_turn<T>(plan.keys_of(visit.tile), plan.rows_of(block), slopes, interval_tile, upright);
    for (int64_t r = 0; r < plan.rows_of(block); ++r)
      for (int64_t j = 0; j < interval_tile; j += width<T>)
        store<T>(d_key_bias + j, load<T>(d_key_bias + j) + load<T>(upright + r * interval_tile + j));
    for_each_band(block, visit, [&](const IntervalBand &of) {
      interval_zero(of.count * band_places, band);
      for (int64_t r = 0; r < of.count; ++r) {
        const T *row = upright + (of.first + r) * interval_tile;
        T *stretch = band + r * band_places + of.origin[r] - of.low;
        for (int64_t j = of.from[r]; j < of.to[r]; ++j) stretch[j] = row[j];
        for (int64_t x = 0; x < of.places(); ++x) d_bias[of.low + x] += band[r * band_places + x];
      }
      multiply<T>(of.count, columns, of.places(), band, band_places, 1, rows + of.low * distances.row, distances.row,
                  dq + of.first * columns, columns, true);
      multiply<T>(of.places(), columns, of.count, band, 1, band_places, q + of.first * columns, columns,
                  d_rows + of.low * distances.row, distances.row, true);
    });
  }
};
