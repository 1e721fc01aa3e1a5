// Softmax attention over ranges of keys in plain loops, a query at a time; see interval_attention.cpp for the equations.
#pragma once

#include "interval_attention.hpp"

namespace ctorch::reference {

/// Calls body(j, s_ij, place) for the places j of keys that the query at place i sees; the tables have the distance at `place`.
template <typename T, typename Body>
void for_each_key(const IntervalWork<T> &work, const Intervals &intervals, int64_t head, int64_t i, Body body) {
  const auto &distances = work.distances;
  const bool *real = work.real(head);
  const T *q = work.by_query(work.q, head, work.features)[i];
  const auto keys = work.by_key(work.k, head, work.features);
  for (int64_t range = 0; range < intervals.ranges; ++range)
    for (int64_t j = intervals.start(range, i); j < intervals.end(range, i); ++j) {
      if (real && !real[j]) continue;
      T score = 0;
      for (int64_t c = 0; c < work.features; ++c) score += q[c] * keys[j][c];
      if (!distances.rows) {
        body(j, score * work.scale, int64_t(0));
        continue;
      }
      const int64_t place = distances.origin(intervals, range, i) + j;
      const T *r = distances.row_of(head % work.heads, place);
      for (int64_t c = 0; c < work.features; ++c) score += q[c] * r[c];
      const T added = distances.bias[head % work.heads * distances.turned_row + place] + distances.key_bias[head * work.keys + j];
      body(j, score * work.scale + added, place);
    }
}

template <typename T>
void interval_forward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  const auto &intervals = plan.intervals;
  const auto values = work.by_key(work.v, head, work.values);
  const auto outs = work.by_query(work.out, head, work.values);
  const int64_t from = plan.segment_begin[segment] * interval_tile, to = plan.segment_begin[segment + 1] * interval_tile;
  for (int64_t i = from; i < std::min(to, intervals.queries); ++i) {
    const int64_t query = head * work.queries + work.query_order[i];
    const bool resumes = work.continues && work.inverse_sum[query] != 0;
    const T before = resumes ? work.peak[query] : -INFINITY;
    T *out = outs[i], peak = before;
    for_each_key(work, intervals, head, i, [&](int64_t, T score, int64_t) { peak = std::max(peak, score); });
    T sum = resumes ? std::exp(before - peak) / work.inverse_sum[query] : T(0);
    for (int64_t c = 0; c < work.values; ++c) out[c] = resumes ? out[c] * sum : T(0);
    for_each_key(work, intervals, head, i, [&](int64_t j, T score, int64_t) {
      const T weight = std::exp(score - peak);
      sum += weight;
      for (int64_t c = 0; c < work.values; ++c) out[c] += weight * values[j][c];
    });
    const bool blind = sum == 0;
    work.peak[query] = blind ? T(INFINITY) : peak;
    work.inverse_sum[query] = blind ? T(0) : 1 / sum;
    for (int64_t c = 0; c < work.values; ++c) out[c] *= blind ? T(0) : 1 / sum;
  }
}

/// What the slope of one score gives to what distances and keys added to it.
template <typename T>
void add_to_distances(const IntervalWork<T> &work, int64_t task, int64_t head, int64_t i, int64_t j, int64_t place, T slope) {
  const auto &distances = work.distances;
  const T *q = work.by_query(work.q, head, work.features)[i], *r = distances.row_of(head % work.heads, place);
  T *dq = work.by_query(work.dq, head, work.features)[i];
  T *dr = distances.d_rows + (task * distances.places + place) * distances.row;
  distances.d_key_bias[head * work.keys + j] += slope;
  distances.d_bias[task * distances.places + place] += slope;
  for (int64_t c = 0; c < work.features; ++c) dq[c] += slope * work.scale * r[c], dr[c] += slope * work.scale * q[c];
}

/// All of a head at once.
template <typename T> void interval_backward(const IntervalWork<T> &work, const IntervalPlan &plan, int64_t head, int64_t segment) {
  if (segment > 0) return;
  const auto &intervals = plan.intervals;
  const auto qs = work.by_query(work.q, head, work.features), ks = work.by_key(work.k, head, work.features);
  const auto vs = work.by_key(work.v, head, work.values), cotangents = work.by_query(work.cotangent, head, work.values);
  const auto outs = work.by_query(work.out, head, work.values), dqs = work.by_query(work.dq, head, work.features);
  const auto dks = work.by_key(work.dk, head, work.features), dvs = work.by_key(work.dv, head, work.values);
  if (work.distances.rows) std::fill_n(work.distances.d_key_bias + head * work.keys, work.keys, T(0));
  for (int64_t j = 0; !work.continues && j < intervals.keys; ++j) {
    std::fill_n(dks[j], work.features, T(0));
    std::fill_n(dvs[j], work.values, T(0));
  }
  for (int64_t i = 0; i < intervals.queries; ++i) {
    const int64_t query = head * work.queries + work.query_order[i];
    const T *cotangent = cotangents[i], *out = outs[i], *q = qs[i];
    const T peak = work.peak[query], inverse = work.inverse_sum[query];
    T *dq = dqs[i], delta = 0;
    if (!work.continues) std::fill_n(dq, work.features, T(0));
    for (int64_t c = 0; c < work.values; ++c) delta += cotangent[c] * out[c];
    for_each_key(work, intervals, head, i, [&](int64_t j, T score, int64_t place) {
      const T weight = std::exp(score - peak) * inverse, *k = ks[j], *v = vs[j];
      T *dk = dks[j], *dv = dvs[j], slope = 0;
      for (int64_t c = 0; c < work.values; ++c) slope += cotangent[c] * v[c], dv[c] += weight * cotangent[c];
      slope = weight * (slope - delta);
      if (work.distances.rows) add_to_distances(work, head * plan.segments(), head, i, j, place, slope);
      slope *= work.scale;
      for (int64_t c = 0; c < work.features; ++c) dq[c] += slope * k[c], dk[c] += slope * q[c];
    });
  }
}

template <typename T> void interval_finish(const IntervalWork<T> &, const IntervalPlan &, int64_t) {}

} // namespace ctorch::reference
