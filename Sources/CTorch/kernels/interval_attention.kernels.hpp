// Softmax attention over ranges of keys for one instruction set; see interval_attention.cpp for the equations.
#include "interval_attention_tiles.kernels.hpp"
#include "interval_distances.kernels.hpp"

/// Asks for the next tile's rows, which may lie far apart.
template <typename T> INLINE void interval_prefetch(int64_t rows, int64_t columns, const T *from, int64_t from_row) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + r * from_row + c);
}

template <typename T> void interval_forward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const int64_t features = work.features, values = padded<T>(work.values), tile = interval_tile, ranges = plan.intervals.ranges;
  Scratch scratch(IntervalDistanceScores<T>::bytes(work) +
                  sizeof(T) * static_cast<size_t>(tile * (features + 2 * values + tile + 2 * ranges + 3 + padded<T>(features))) + 1024);
  T *q_rows = scratch.take<T>(tile * padded<T>(features)), *q = scratch.take<T>(tile * features), *room = scratch.take<T>(tile * values);
  T *scores = scratch.take<T>(tile * tile), *out = scratch.take<T>(tile * values), *bounds = scratch.take<T>(2 * ranges * tile);
  T *peak = scratch.take<T>(tile), *before = scratch.take<T>(tile), *sum = scratch.take<T>(tile);
  const IntervalDistanceScores<T> distances(scratch, work, plan, head, segment);
  const T *k = work.k.head(head), *v = work.v.head(head);
  for (int64_t block = plan.segment_begin[segment]; block < plan.segment_begin[segment + 1]; ++block) {
    const int64_t rows = plan.rows_of(block), row = block * tile;
    interval_pack<T>(rows, features, work.scale, work.q.head(head) + row * work.q.row, work.q.row, q_rows, padded<T>(features));
    interval_turn<T>(rows, features, q_rows, padded<T>(features), q);
    std::fill_n(peak, tile, T(-INFINITY));
    interval_zero(tile, sum);
    interval_zero(rows * values, out);
    bool first = true;
    for (int64_t i = plan.first_visit[block]; i < plan.first_visit[block + 1]; ++i) {
      const auto &visit = plan.visits[i];
      const IntervalTile<T> here(plan, block, visit, work.real(head), bounds);
      if (here.hidden()) continue;
      const int64_t key = visit.tile * tile;
      if (static_cast<size_t>(i + 1) < plan.visits.size()) {
        const int64_t next = plan.visits[i + 1].tile;
        interval_prefetch<T>(plan.keys_of(next), features, k + next * tile * work.k.row, work.k.row);
        interval_prefetch<T>(plan.keys_of(next), work.values, v + next * tile * work.v.row, work.v.row);
      }
      if (distances.any) distances.put(block, visit, q_rows, scores);
      here.products(features, k + key * work.k.row, work.k.row, q, scores, distances.any);
      std::memcpy(before, peak, sizeof(T) * static_cast<size_t>(tile));
      here.take_peaks(scores, peak);
      // What was summed up below the new peak counts for less.
      for (int64_t c = 0; c < tile; c += width<T>) {
        const auto top = load<T>(peak + c), finite = select(top == splat<T>(-INFINITY), Vector<T>{}, top);
        const auto factor = interval_weight(load<T>(before + c) - finite);
        store<T>(before + c, factor);
        store<T>(sum + c, load<T>(sum + c) * factor);
        store<T>(peak + c, finite);
      }
      for (int64_t r = 0; !first && r < rows; ++r)
        if (before[r] != 1)
          for (int64_t c = 0; c < values; c += width<T>) store<T>(out + r * values + c, load<T>(out + r * values + c) * before[r]);
      here.take_weights(scores, peak, sum);
      for (int64_t c = 0; c < tile; c += width<T>)
        store<T>(peak + c, select(load<T>(sum + c) == Vector<T>{}, splat<T>(-INFINITY), load<T>(peak + c)));
      here.add_to_queries(scores, IntervalRows<T>(here.keys, work.values, v + key * work.v.row, work.v.row, room), values, out);
      first = false;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const bool blind = sum[r] == 0;
      const T inverse = blind ? T(0) : 1 / sum[r];
      work.peak[head * work.queries + row + r] = blind ? T(INFINITY) : peak[r];
      work.inverse_sum[head * work.queries + row + r] = inverse;
      interval_unpack<T>(1, work.values, inverse, out + r * values, values, work.out.head(head) + (row + r) * work.out.row, 0);
    }
  }
}

/// The gradients of a tile's keys: dk, dv and da, as a slot has them.
template <typename T> void interval_write_keys(const IntervalWork<T> &work, int64_t head, int64_t key, int64_t keys, const T *slot) {
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values);
  const T *dv = slot + interval_tile * features, *d_bias = dv + interval_tile * values;
  interval_unpack<T>(keys, work.features, T(1), slot, features, work.dk.head(head) + key * work.dk.row, work.dk.row);
  interval_unpack<T>(keys, work.values, T(1), dv, values, work.dv.head(head) + key * work.dv.row, work.dv.row);
  if (work.distances.rows) std::copy_n(d_bias, keys, work.distances.d_key_bias + head * work.keys + key);
}

/// What the backward pass needs of a block of queries.
template <typename T> struct IntervalBlock {
  int64_t features, values; // padded
  T *q, *q_turned, *g, *g_turned, *dq, *peak, *delta;

  IntervalBlock(Scratch &scratch, const IntervalWork<T> &work)
      : features(padded<T>(work.features)), values(padded<T>(work.values)), q(scratch.take<T>(interval_tile * features)),
        q_turned(scratch.take<T>(interval_tile * features)), g(scratch.take<T>(interval_tile * values)),
        g_turned(scratch.take<T>(interval_tile * values)), dq(scratch.take<T>(interval_tile * features)),
        peak(scratch.zeros<T>(interval_tile)), delta(scratch.zeros<T>(interval_tile)) {}

  static size_t bytes(const IntervalWork<T> &work) {
    return sizeof(T) * static_cast<size_t>(interval_tile * (3 * padded<T>(work.features) + 2 * padded<T>(work.values) + 2)) + 512;
  }

  /// Scaled queries, and the cotangents divided by the sums: then the weights need no division.
  void read(const IntervalWork<T> &work, int64_t head, int64_t row, int64_t rows) {
    const T *inverse = work.inverse_sum + head * work.queries + row, *peaks = work.peak + head * work.queries + row;
    interval_pack<T>(rows, work.features, work.scale, work.q.head(head) + row * work.q.row, work.q.row, q, features);
    for (int64_t r = 0; r < rows; ++r) {
      interval_pack<T>(1, work.values, inverse[r], work.cotangent.head(head) + (row + r) * work.cotangent.row, 0, g + r * values, values);
      const T *out = work.out.head(head) + (row + r) * work.out.row;
      Vector<T> sum{};
      int64_t c = 0;
      for (; c + width<T> <= work.values; c += width<T>) sum += load<T>(g + r * values + c) * load<T>(out + c);
      if (c < work.values) sum += load<T>(g + r * values + c) * load_first<T>(out + c, work.values - c);
      delta[r] = sum_of<T>(sum);
      peak[r] = peaks[r];
    }
    interval_turn<T>(rows, work.features, q, features, q_turned);
    interval_turn<T>(rows, work.values, g, values, g_turned);
    interval_zero(rows * features, dq);
  }
};

template <typename T> void interval_backward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), tile = interval_tile;
  const int64_t ranges = plan.intervals.ranges, slot_size = tile * (features + values + 1);
  Scratch scratch(IntervalBlock<T>::bytes(work) + IntervalDistanceScores<T>::bytes(work) +
                  sizeof(T) * static_cast<size_t>(plan.slots * slot_size + tile * (features + 2 * tile + 2 * ranges)) + 1024);
  IntervalBlock<T> queries(scratch, work);
  T *slots = scratch.take<T>(plan.slots * slot_size), *room = scratch.take<T>(tile * features);
  T *weights = scratch.take<T>(tile * tile), *slopes = scratch.take<T>(tile * tile), *bounds = scratch.take<T>(2 * ranges * tile);
  const IntervalDistanceScores<T> distances(scratch, work, plan, head, segment);
  const T *k = work.k.head(head), *v = work.v.head(head);
  for (int64_t block = plan.segment_begin[segment]; block < plan.segment_begin[segment + 1]; ++block) {
    const int64_t rows = plan.rows_of(block);
    queries.read(work, head, block * tile, rows);
    for (int64_t i = plan.first_visit[block]; i < plan.first_visit[block + 1]; ++i) {
      const auto &visit = plan.visits[i];
      const IntervalTile<T> here(plan, block, visit, work.real(head), bounds);
      const int64_t key = visit.tile * tile;
      T *dk = slots + visit.slot * slot_size, *dv = dk + tile * features, *d_bias = dv + tile * values;
      if (visit.first) interval_zero(slot_size, dk);
      if (!here.hidden()) {
        if (static_cast<size_t>(i + 1) < plan.visits.size()) {
          const int64_t next = plan.visits[i + 1].tile;
          interval_prefetch<T>(plan.keys_of(next), work.features, k + next * tile * work.k.row, work.k.row);
          interval_prefetch<T>(plan.keys_of(next), work.values, v + next * tile * work.v.row, work.v.row);
        }
        const IntervalRows<T> key_rows(here.keys, work.features, k + key * work.k.row, work.k.row, room);
        if (distances.any) distances.put(block, visit, queries.q, weights);
        here.products(work.features, key_rows.data, key_rows.row, queries.q_turned, weights, distances.any);
        here.products(work.values, v + key * work.v.row, work.v.row, queries.g_turned, slopes, false);
        here.take_slopes(weights, slopes, queries.peak, queries.delta);
        here.add_to_keys(weights, queries.g, values, dv);
        here.add_to_keys(slopes, queries.q, features, dk);
        here.add_to_queries(slopes, key_rows, features, queries.dq);
        if (distances.any) distances.add_gradients(block, visit, slopes, queries.q, queries.dq, d_bias);
      }
      if (visit.finish == IntervalVisit::direct) {
        interval_write_keys(work, head, key, here.keys, dk);
      } else if (visit.finish != IntervalVisit::later) {
        std::memcpy(work.partial_of(head, visit.finish), dk, sizeof(T) * static_cast<size_t>(slot_size));
      }
    }
    interval_unpack<T>(rows, work.features, work.scale, queries.dq, features, work.dq.head(head) + block * tile * work.dq.row, work.dq.row);
  }
}

/// The gradients of keys that several segments met, or none.
template <typename T> void interval_finish(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head) {
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), tile = interval_tile;
  for (const auto &shared : plan.shared) {
    T *sum = work.partial_of(head, shared.first_partial);
    for (int32_t other = shared.first_partial + 1; other < shared.end_partial; ++other) {
      const T *more = work.partial_of(head, other);
      for (int64_t c = 0; c < tile * (features + values + 1); c += width<T>) store<T>(sum + c, load<T>(sum + c) + load<T>(more + c));
    }
    interval_write_keys(work, head, shared.tile * tile, plan.keys_of(shared.tile), sum);
  }
  for (int32_t unseen : plan.unseen)
    for (int64_t key = unseen * tile; key < unseen * tile + plan.keys_of(unseen); ++key) {
      interval_zero(work.features, work.dk.head(head) + key * work.dk.row);
      interval_zero(work.values, work.dv.head(head) + key * work.dv.row);
      if (work.distances.rows) work.distances.d_key_bias[head * work.keys + key] = 0;
    }
}
