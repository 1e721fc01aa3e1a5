// Softmax attention over ranges of keys for one instruction set; see interval_attention.cpp for the equations.
#include "interval_attention_tiles.kernels.hpp"
#include "interval_distances.kernels.hpp"

/// Asks for rows that may lie far apart.
template <typename T> INLINE void interval_prefetch(const OrderedRows<const T> &from, int64_t first, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < from.columns; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from[first + r] + c);
}

/// What one head's tasks read.
template <typename T> struct IntervalInputs {
  OrderedRows<const T> q, k, v;

  IntervalInputs(const IntervalWork<T> &work, int64_t head)
      : q(work.by_query(work.q, head, work.features)), k(work.by_key(work.k, head, work.features)),
        v(work.by_key(work.v, head, work.values)) {}

  /// Asks for the keys and values of the visit after this one.
  INLINE void prefetch_next(const IntervalPlan &plan, int64_t visit) const {
    if (static_cast<size_t>(visit + 1) >= plan.visits.size()) return;
    const int64_t next = plan.visits[visit + 1].tile;
    interval_prefetch<T>(k, next * interval_tile, plan.keys_of(next));
    interval_prefetch<T>(v, next * interval_tile, plan.keys_of(next));
  }
};

template <typename T> void interval_forward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const int64_t features = work.features, values = padded<T>(work.values), tile = interval_tile, ranges = plan.intervals.ranges;
  const int64_t columns = features + 2 * padded<T>(features) + 2 * values + tile + 2 * ranges + 3;
  Scratch scratch(IntervalDistanceScores<T>::bytes(work) + sizeof(T) * static_cast<size_t>(tile * columns) + 1024);
  T *q = scratch.take<T>(tile * padded<T>(features)), *q_turned = scratch.take<T>(tile * features);
  T *key_room = scratch.take<T>(tile * padded<T>(features)), *value_room = scratch.take<T>(tile * values);
  T *scores = scratch.take<T>(tile * tile), *out = scratch.take<T>(tile * values), *bounds = scratch.take<T>(2 * ranges * tile);
  T *peak = scratch.take<T>(tile), *before = scratch.take<T>(tile), *sum = scratch.take<T>(tile);
  T *peaks = work.peak + head * work.queries, *inverse_sums = work.inverse_sum + head * work.queries;
  const IntervalInputs<T> inputs(work, head);
  const IntervalDistanceScores<T> distances(scratch, work, plan, head, segment);
  const auto outs = work.by_query(work.out, head, work.values);
  for (int64_t block = plan.segment_begin[segment]; block < plan.segment_begin[segment + 1]; ++block) {
    if (work.continues && plan.first_visit[block] == plan.first_visit[block + 1]) continue;
    const int64_t rows = plan.rows_of(block), row = block * tile;
    interval_pack<T>(inputs.q, row, rows, work.scale, q, padded<T>(features));
    interval_turn<T>(rows, features, q, padded<T>(features), q_turned);
    std::fill_n(peak, tile, T(-INFINITY));
    interval_zero(tile, sum);
    interval_zero(rows * values, out);
    for (int64_t r = 0; work.continues && r < rows; ++r) {
      const int64_t query = work.query_order[row + r];
      if (inverse_sums[query] == 0) continue;
      peak[r] = peaks[query];
      sum[r] = 1 / inverse_sums[query];
      interval_pack<T>(outs, row + r, 1, sum[r], out + r * values, values);
    }
    bool first = !work.continues;
    for (int64_t i = plan.first_visit[block]; i < plan.first_visit[block + 1]; ++i) {
      const auto &visit = plan.visits[i];
      const IntervalTile<T> here(plan, block, visit, work.real(head), bounds);
      if (here.hidden()) continue;
      const int64_t key = visit.tile * tile;
      inputs.prefetch_next(plan, i);
      if (distances.any) distances.put(block, visit, q, scores);
      here.products(features, IntervalRows<T>::left(inputs.k, key, here.keys, key_room), q_turned, scores, distances.any);
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
      here.add_to_queries(scores, IntervalRows<T>::right(inputs.v, key, here.keys, value_room), values, out);
      first = false;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const bool blind = sum[r] == 0;
      const T inverse = blind ? T(0) : 1 / sum[r];
      const int64_t query = work.query_order[row + r];
      peaks[query] = blind ? T(INFINITY) : peak[r];
      inverse_sums[query] = inverse;
      interval_unpack<T>(outs, row + r, 1, inverse, false, out + r * values, values);
    }
  }
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
  void read(const IntervalWork<T> &work, const IntervalInputs<T> &inputs, int64_t head, int64_t row, int64_t rows) {
    const T *inverse_sums = work.inverse_sum + head * work.queries, *peaks = work.peak + head * work.queries;
    const auto cotangents = work.by_query(work.cotangent, head, work.values);
    const auto outs = work.by_query(work.out, head, work.values);
    interval_pack<T>(inputs.q, row, rows, work.scale, q, features);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t query = work.query_order[row + r];
      interval_pack<T>(cotangents, row + r, 1, inverse_sums[query], g + r * values, values);
      const T *out = outs[row + r];
      Vector<T> sum{};
      int64_t c = 0;
      for (; c + width<T> <= work.values; c += width<T>) sum += load<T>(g + r * values + c) * load<T>(out + c);
      if (c < work.values) sum += load<T>(g + r * values + c) * load_first<T>(out + c, work.values - c);
      delta[r] = sum_of<T>(sum);
      peak[r] = peaks[query];
    }
    interval_turn<T>(rows, work.features, q, features, q_turned);
    interval_turn<T>(rows, work.values, g, values, g_turned);
    interval_zero(rows * features, dq);
  }
};

/// The gradients of a tile's keys, as tasks sum them up: dk and dv in padded rows, and da.
template <typename T> struct IntervalSlot {
  int64_t features, values; // padded
  T *dk, *dv, *d_bias;

  IntervalSlot(const IntervalWork<T> &work, T *data)
      : features(padded<T>(work.features)), values(padded<T>(work.values)), dk(data), dv(dk + interval_tile * features),
        d_bias(dv + interval_tile * values) {}

  static int64_t size(const IntervalWork<T> &work) {
    return interval_tile * (padded<T>(work.features) + padded<T>(work.values) + 1);
  }

  /// Writes the gradients of the keys, or adds them to what is there.
  void write(const IntervalWork<T> &work, int64_t head, int64_t key, int64_t keys) const {
    interval_unpack<T>(work.by_key(work.dk, head, work.features), key, keys, T(1), work.continues, dk, features);
    interval_unpack<T>(work.by_key(work.dv, head, work.values), key, keys, T(1), work.continues, dv, values);
    if (work.distances.rows) std::copy_n(d_bias, keys, work.distances.d_key_bias + head * work.keys + key);
  }
};

template <typename T> void interval_backward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const int64_t features = padded<T>(work.features), values = padded<T>(work.values), tile = interval_tile;
  const int64_t ranges = plan.intervals.ranges, slot_size = IntervalSlot<T>::size(work);
  const int64_t room_size = plan.slots * slot_size + tile * (features + values + 2 * tile + 2 * ranges);
  Scratch scratch(IntervalBlock<T>::bytes(work) + IntervalDistanceScores<T>::bytes(work) +
                  sizeof(T) * static_cast<size_t>(room_size) + 1024);
  IntervalBlock<T> queries(scratch, work);
  T *slots = scratch.take<T>(plan.slots * slot_size);
  T *key_room = scratch.take<T>(tile * features), *value_room = scratch.take<T>(tile * values);
  T *weights = scratch.take<T>(tile * tile), *slopes = scratch.take<T>(tile * tile), *bounds = scratch.take<T>(2 * ranges * tile);
  const IntervalInputs<T> inputs(work, head);
  const IntervalDistanceScores<T> distances(scratch, work, plan, head, segment);
  const auto dq = work.by_query(work.dq, head, work.features);
  for (int64_t block = plan.segment_begin[segment]; block < plan.segment_begin[segment + 1]; ++block) {
    if (work.continues && plan.first_visit[block] == plan.first_visit[block + 1]) continue;
    const int64_t rows = plan.rows_of(block);
    queries.read(work, inputs, head, block * tile, rows);
    for (int64_t i = plan.first_visit[block]; i < plan.first_visit[block + 1]; ++i) {
      const auto &visit = plan.visits[i];
      const IntervalTile<T> here(plan, block, visit, work.real(head), bounds);
      const int64_t key = visit.tile * tile;
      const IntervalSlot<T> slot(work, slots + visit.slot * slot_size);
      if (visit.first) interval_zero(slot_size, slot.dk);
      if (!here.hidden()) {
        inputs.prefetch_next(plan, i);
        const auto k = IntervalRows<T>::right(inputs.k, key, here.keys, key_room);
        const auto v = IntervalRows<T>::left(inputs.v, key, here.keys, value_room);
        if (distances.any) distances.put(block, visit, queries.q, weights);
        here.products(work.features, k, queries.q_turned, weights, distances.any);
        here.products(work.values, v, queries.g_turned, slopes, false);
        here.take_slopes(weights, slopes, queries.peak, queries.delta);
        here.add_to_keys(weights, queries.g, values, slot.dv);
        here.add_to_keys(slopes, queries.q, features, slot.dk);
        here.add_to_queries(slopes, k, features, queries.dq);
        if (distances.any) distances.add_gradients(block, visit, slopes, queries.q, queries.dq, slot.d_bias);
      }
      if (visit.finish == IntervalVisit::direct)
        slot.write(work, head, key, here.keys);
      else if (visit.finish != IntervalVisit::later)
        std::memcpy(work.partial_of(head, visit.finish), slot.dk, sizeof(T) * static_cast<size_t>(slot_size));
    }
    interval_unpack<T>(dq, block * tile, rows, work.scale, work.continues, queries.dq, features);
  }
}

/// The gradients of keys that several segments met, or none.
template <typename T> void interval_finish(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head) {
  const int64_t slot_size = IntervalSlot<T>::size(work);
  for (const auto &shared : plan.shared) {
    T *sum = work.partial_of(head, shared.first_partial);
    for (int32_t other = shared.first_partial + 1; other < shared.end_partial; ++other) {
      const T *more = work.partial_of(head, other);
      for (int64_t c = 0; c < slot_size; c += width<T>) store<T>(sum + c, load<T>(sum + c) + load<T>(more + c));
    }
    IntervalSlot<T>(work, sum).write(work, head, shared.tile * interval_tile, plan.keys_of(shared.tile));
  }
  if (work.continues) return;
  const auto dk = work.by_key(work.dk, head, work.features), dv = work.by_key(work.dv, head, work.values);
  for (int32_t unseen : plan.unseen)
    for (int64_t key = unseen * interval_tile; key < unseen * interval_tile + plan.keys_of(unseen); ++key) {
      interval_zero(dk.columns, dk[key]);
      interval_zero(dv.columns, dv[key]);
      if (work.distances.rows) work.distances.d_key_bias[head * work.keys + key] = 0;
    }
}
