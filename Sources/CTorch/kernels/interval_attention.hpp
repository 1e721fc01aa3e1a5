// What the kernels of softmax attention over ranges of keys work on; see interval_attention.cpp for the equations.
#pragma once

#include "team.hpp"

#include <cmath>

namespace ctorch {

/// Queries of a block, and keys of a tile.
constexpr int64_t interval_tile = 64;
/// Rows of a tile that is seen in part which are worked on together: what they do not see left and right is not computed.
constexpr int64_t interval_strip = 12;
constexpr int64_t interval_strips = (interval_tile + interval_strip - 1) / interval_strip;

/// The ranges of one head, [ranges, queries, 2].
struct Intervals {
  const int32_t *data;
  int64_t ranges, queries, keys;

  int64_t start(int64_t range, int64_t query) const { return std::max<int64_t>(0, data[(range * queries + query) * 2]); }
  int64_t end(int64_t range, int64_t query) const { return std::min(keys, whole_end(range, query)); }
  /// As it was given: maybe beyond the last key.
  int64_t whole_end(int64_t range, int64_t query) const { return data[(range * queries + query) * 2 + 1]; }
};

/// Rows begin..<end of a tile meet only its columns from..<to.
struct IntervalSpan {
  int16_t begin, end, from, to;
};

/// A tile that not every query of a block sees whole: where anything is, seen from its keys and from its queries.
struct IntervalPart {
  IntervalSpan keys[interval_strips], queries[interval_strips];
};

/// A block of queries meets a tile of keys.
struct IntervalVisit {
  static constexpr int32_t later = -1, direct = -2;

  int32_t tile = 0;
  int32_t part = -1;                      // in IntervalPlan::parts, or -1 when all is seen
  int32_t first_range = 0, end_range = 0; // in IntervalPlan::met_ranges, those that meet the tile
  int32_t slot = 0;                       // where a segment sums the gradients of these keys
  int32_t finish = later; // `later` unless it is the segment's last visit; which partial sum the slot is then, or `direct`
  bool first = false;     // of this tile in the segment
};

/// A tile of keys that several segments meet: partial sums first_partial..<end_partial.
struct SharedTile {
  int32_t tile, first_partial, end_partial;
};

/// The walk over the tiles of one head, cut into segments of about as many visits each: a task for each segment.
struct IntervalPlan {
  Intervals intervals;
  std::vector<int64_t> first_visit;   // of each block, and after the last
  std::vector<int64_t> segment_begin; // blocks
  std::vector<IntervalVisit> visits;
  std::vector<IntervalPart> parts;
  std::vector<int32_t> met_ranges;
  std::vector<SharedTile> shared;
  std::vector<int32_t> unseen; // tiles of keys
  int64_t slots = 0, partials = 0;

  IntervalPlan(const Intervals &intervals, int64_t segments);

  int64_t segments() const { return static_cast<int64_t>(segment_begin.size()) - 1; }
  int64_t blocks() const { return (intervals.queries + interval_tile - 1) / interval_tile; }
  int64_t tiles() const { return (intervals.keys + interval_tile - 1) / interval_tile; }
  int64_t rows_of(int64_t block) const { return std::min(interval_tile, intervals.queries - block * interval_tile); }
  int64_t keys_of(int64_t tile) const { return std::min(interval_tile, intervals.keys - tile * interval_tile); }

private:
  void walk(int64_t block);
  bool describe(int64_t block, int64_t tile, IntervalVisit &visit);
  void cut(int64_t segments);
  void share();
};

/// What the distance of a key from the end of its range, and the key itself, add to a score; nothing where `rows` is null.
///
/// Tables lie in the order of falling distance: then a query meets the keys of a range at places that rise with the keys.
template <typename T> struct IntervalDistances {
  int64_t places, row, turned_row;
  const int64_t *stops;  // [ranges]: one past the place of distance 0
  const T *rows;         // R [heads, places, row], rows padded to 16 numbers
  const T *turned;       // R [heads, features, turned_row], padded beyond the places by as many at least
  const T *bias;         // c [heads, turned_row]
  const T *key_bias;     // a [batch heads, keys]
  T *d_rows;             // [batch heads, segments, places, row]
  T *d_bias;             // [batch heads, segments, places]
  T *d_key_bias;         // [batch heads, keys]

  const T *row_of(int64_t head, int64_t place) const { return rows + (head * places + place) * row; }
  /// Where a range of a query has key 0, were it that long.
  int64_t origin(const Intervals &intervals, int64_t range, int64_t query) const {
    return stops[range] - intervals.whole_end(range, query);
  }
};

/// Which row of a head stands at a place: as they lie, or as a list says.
struct IntervalOrder {
  const int32_t *rows = nullptr;

  bool is_natural() const { return rows == nullptr; }
  int64_t operator[](int64_t place) const { return rows ? rows[place] : place; }
};

/// The rows of one head in an order.
template <typename T> struct OrderedRows {
  T *data;
  int64_t row, columns;
  IntervalOrder order;

  T *operator[](int64_t place) const { return data + order[place] * row; }
};

/// One pass over [batch, heads, queries or keys, …].
///
/// The plan counts places; `query_order` and `key_order` say whose they are.
template <typename T> struct IntervalWork {
  int64_t heads, queries, keys, features, values; // `keys`: their places in this pass
  T scale;
  IntervalOrder query_order, key_order;
  bool continues; // out, peak and inverse_sum, or the gradients, hold what earlier passes found
  Rows<const T> q, k, v, cotangent;
  Rows<T> out, dq, dk, dv;
  const bool *mask; // [batch, keys] in this pass's order, or null
  T *peak;          // [batch heads, queries]: the largest score of a row, infinity where it sees nothing
  T *inverse_sum;   // [batch heads, queries]: 1 / Σ exp(score - peak), 0 where it sees nothing
  T *partial;       // [batch heads, partials, partial_size()]: gradients of keys that several tasks meet
  int64_t partials;
  IntervalDistances<T> distances; // where rows are taken as they lie

  template <typename U> OrderedRows<U> by_query(const Rows<U> &x, int64_t head, int64_t columns) const {
    return {x.head(head), x.row, columns, query_order};
  }
  template <typename U> OrderedRows<U> by_key(const Rows<U> &x, int64_t head, int64_t columns) const {
    return {x.head(head), x.row, columns, key_order};
  }
  const bool *real(int64_t head) const { return mask ? mask + head / heads * keys : nullptr; }
  /// dk, dv and da; rows may be padded to 16 numbers.
  int64_t partial_size() const { return interval_tile * (features + values + 32); }
  T *partial_of(int64_t head, int64_t index) const { return partial + (head * partials + index) * partial_size(); }
};

} // namespace ctorch
