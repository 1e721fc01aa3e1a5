// LSH attention for one instruction set; see lsh_attention.cpp for the equations and the names.
#include "lsh_attention_tiles.kernels.hpp"

namespace lsh {

/// One task's memory and geometry.
template <typename T> struct Task {
  const LSHWork<T> &work;
  const int64_t group;
  const bool is_backward;
  const LSHRounds all;
  const int64_t features, values; // padded
  Scratch scratch;
  Keys<T> keys[kept];
  Queries<T> queries;
  View view;
  T *scores, *moved, *room;
  int32_t *times = nullptr; // how often a token sees one whose chunk lies d further, at times[d + all.all() - 1]

  static size_t bytes(const LSHWork<T> &work, int64_t chunks) {
    const int64_t d = padded<T>(work.features), e = padded<T>(work.values);
    const int64_t marks = work.settings.unique_pairs ? 2 * work.rounds * tile * kept + 2 * chunks : 0;
    return sizeof(T) * static_cast<size_t>(tile * (kept * (3 * d + 2 * e) + 3 * (d + e) + 2 * tile)) +
           sizeof(int32_t) * static_cast<size_t>(marks) + 4096;
  }

  Task(const LSHWork<T> &work, int64_t group, bool is_backward)
      : work(work), group(group), is_backward(is_backward), all(work.rounds_of(group)), features(padded<T>(work.features)),
        values(padded<T>(work.values)), scratch(bytes(work, all.all())) {
    auto matrix = [&](int64_t columns, bool wanted = true) { return wanted ? scratch.template take<T>(tile * columns) : nullptr; };
    for (auto &one : keys) {
      one.k = matrix(features), one.k_turned = matrix(features), one.v = matrix(values);
      one.dk = matrix(features, is_backward), one.dv = matrix(values, is_backward);
      const bool counted = work.settings.unique_pairs && !all.single();
      one.place = counted ? scratch.template take<int32_t>(work.rounds * tile) : nullptr;
      one.bucket = counted && work.settings.within_bucket ? scratch.template take<int32_t>(work.rounds * tile) : nullptr;
    }
    queries.q = matrix(features), queries.dq = matrix(features, is_backward);
    queries.out = matrix(values, !is_backward), queries.cotangent = matrix(values, is_backward);
    scores = matrix(tile), moved = matrix(tile, is_backward), room = matrix(std::max(features, values));
    if (work.settings.unique_pairs && !all.single()) count_sights();
  }

  void count_sights() {
    const int64_t n = all.all();
    times = scratch.template take<int32_t>(2 * n);
    for (int64_t d = 1 - n; d < n; ++d) {
      const int64_t ahead = ((d + all.before) % n + n) % n; // from the first chunk that is seen
      times[d + n - 1] = static_cast<int32_t>((all.window() - 1 - ahead + n) / n);
    }
  }

  /// Tokens of other buckets, and of other rounds, have other marks where they matter.
  int32_t mark(int64_t round, int32_t token) const {
    if (!work.settings.within_bucket || all.single()) return 0;
    return static_cast<int32_t>(round * (work.settings.bucket_count + 1)) + work.buckets[work.row(group, round) + token];
  }

  void read_keys(const LSHStretch &at, Keys<T> &to) {
    to.at = at;
    const T *x = work.x.head(group), *v = work.v.head(group), *inverse = work.inverse + group * work.length;
    const T scale = static_cast<T>(work.settings.scale);
    for (int64_t c = 0; c < at.count; ++c) {
      if (c + ahead < at.count) ask_for<T>(work.features, x + at.tokens[c + ahead] * work.x.row);
      read_row<T>(work.features, inverse[at.tokens[c]] * scale, x + at.tokens[c] * work.x.row, to.k + c * features);
    }
    const int64_t rows = padded<T>(at.count);
    clear((rows - at.count) * features, to.k + at.count * features);
    transpose<T>(rows, features, to.k, features, to.k_turned, tile);
    gather<T>(at, work.values, v, work.v.row, is_backward ? room : to.v);
    if (is_backward) {
      transpose<T>(rows, values, room, values, to.v, tile);
      clear(at.count * features, to.dk);
      clear(at.count * values, to.dv);
    }
    const bool *real = work.real(group);
    to.restricted = work.settings.within_bucket && !all.single();
    for (int64_t c = 0; c < at.count; ++c) {
      const bool hidden = real && !real[at.tokens[c]];
      to.restricted |= hidden;
      to.marks[c] = hidden ? -1 : mark(at.round, at.tokens[c]);
    }
    if (!times) return;
    for (int64_t r = 0; r < all.rounds; ++r)
      for (int64_t c = 0; c < at.count; ++c) {
        to.place[r * tile + c] = work.place[work.row(group, r) + at.tokens[c]];
        if (to.bucket) to.bucket[r * tile + c] = work.buckets[work.row(group, r) + at.tokens[c]];
      }
  }

  /// Sets the view; returns whether any query sees any key.
  bool look(const LSHStretch &at) {
    const bool causal = work.settings.causal;
    const int32_t count = static_cast<int32_t>(at.count);
    if (at.id == queries.at.id) {
      for (int32_t r = 0; r < queries.at.count; ++r) view.visible[r] = causal ? r + 1 : count, view.self[r] = r;
    } else if (!causal && at.round == queries.at.round) {
      for (int32_t r = 0; r < tile; ++r) view.visible[r] = count, view.self[r] = -1;
    } else {
      int32_t before[tile] = {}; // keys up to the query's own position
      for (int64_t c = 0; c < at.count; ++c)
        for (int64_t r = 0; r < tile; ++r) before[r] += at.tokens[c] <= queries.tokens[r];
      for (int64_t r = 0; r < queries.at.count; ++r) {
        view.self[r] = before[r] > 0 && at.tokens[before[r] - 1] == queries.tokens[r] ? before[r] - 1 : -1;
        view.visible[r] = causal ? before[r] : count;
      }
    }
    return view.visible[queries.at.count - 1] > 0;
  }

  /// s -= ln n_ij for the keys up to `count`.
  void discount(const Keys<T> &seen, int64_t r, int64_t count, T *row) const {
    int32_t found[tile] = {};
    const int32_t token = queries.tokens[r];
    for (int64_t round = 0; round < all.rounds; ++round) {
      const int64_t at = work.row(group, round) + token;
      const int32_t *by_place = times + all.all() - 1 - work.place[at];
      if (seen.bucket) { // buckets of two rounds are never the same
        const int32_t own = work.buckets[at], *bucket = seen.bucket + round * tile, *place = seen.place + round * tile;
        for (int64_t c = 0; c < count; ++c) found[c] += bucket[c] == own ? by_place[place[c]] : 0;
      } else {
        for (int64_t c = 0; c < all.rounds * tile; ++c)
          if (c % tile < count) found[c % tile] += by_place[seen.place[c]];
      }
    }
    for (int64_t c = 0; c < count; ++c) row[c] -= static_cast<T>(work.discounts[std::max(found[c], 1)]);
  }

  /// Scores of rows r0 … r0 + rows - 1 with the first `columns` keys, -∞ where a key is hidden.
  void score(const Keys<T> &seen, int64_t r0, int64_t rows, int64_t columns) {
    const T none = -static_cast<T>(INFINITY), self_logit = static_cast<T>(work.settings.self_logit);
    multiply<T>(rows, columns, features, queries.q + r0 * features, features, 1, seen.k_turned, tile, scores + r0 * tile, tile,
                false);
    for (int64_t r = r0; r < r0 + rows; ++r) {
      T *row = scores + r * tile;
      if (times) discount(seen, r, view.visible[r], row);
      if (seen.restricted)
        for (int64_t c = 0; c < view.visible[r]; ++c) row[c] = seen.marks[c] == queries.marks[r] ? row[c] : none;
      hide<T>(view.visible[r], columns, row, std::make_index_sequence<width<T>>());
      if (view.self[r] >= 0) row[view.self[r]] = self_logit;
    }
  }

  /// Calls body(first row, rows, keys that these may see) for the strips of the tile of queries.
  template <typename Body> INLINE void for_each_strip(Body body) {
    const int64_t count = queries.at.count, step = work.settings.causal ? strip : tile;
    for (int64_t r0 = 0; r0 < count; r0 += step) {
      const int64_t rows = std::min(step, count - r0);
      body(r0, rows, static_cast<int64_t>(view.visible[r0 + rows - 1]));
    }
  }

  /// Calls body(keys) for all that the queries of chunk c see some of.
  template <typename Body> INLINE void for_each_seen(int64_t c, Body body) {
    const int64_t parts = work.parts(all, tile);
    for (int64_t offset = -all.before; offset <= all.after; ++offset)
      for (int64_t part = 0; part < parts; ++part) {
        const auto at = work.stretch(all, group, all.around(c, offset), part, tile);
        if (at.count == 0 || !look(at)) continue;
        auto &found = keys[at.id % kept];
        if (found.at.id != at.id) {
          if (is_backward) settle(found);
          read_keys(at, found);
        }
        body(found);
      }
  }

  /// Calls body(chunk) for each tile of queries of the segment, its tokens in place.
  template <typename Body> INLINE void for_each_query(int64_t segment, Body body) {
    const int64_t chunks = all.all(), parts = work.parts(all, tile);
    for (int64_t c = segment * chunks / work.segments; c < (segment + 1) * chunks / work.segments; ++c)
      for (int64_t part = 0; part < parts; ++part) {
        queries.at = work.stretch(all, group, c, part, tile);
        if (queries.at.count == 0) continue;
        for (int64_t r = 0; r < tile; ++r) {
          queries.tokens[r] = r < queries.at.count ? queries.at.tokens[r] : -1;
          if (r < queries.at.count) queries.marks[r] = mark(queries.at.round, queries.tokens[r]);
        }
        gather<T>(queries.at, work.features, work.x.head(group), work.x.row, queries.q);
        body(c);
      }
  }

  // MARK: forward

  /// The rows' weights exp(s - t) in place of their scores; t, l and out are brought to the new t.
  void weigh(int64_t r0, int64_t rows, int64_t columns) {
    for (int64_t r = r0; r < r0 + rows; ++r) {
      T *row = scores + r * tile;
      auto most = load<T>(row);
      for (int64_t c = width<T>; c < columns; c += width<T>) most = larger<T>(most, load<T>(row + c));
      const T old = queries.largest[r], now = std::max(old, highest<T>(most));
      if (now == -static_cast<T>(INFINITY)) {
        clear(columns, row);
        continue;
      }
      Vector<T> sum{};
      for (int64_t c = 0; c < columns; c += width<T>) {
        const auto weight = exponential(load<T>(row + c) - splat<T>(now));
        store<T>(row + c, weight);
        sum += weight;
      }
      const T share = old == now ? T(1) : std::exp(old - now);
      queries.largest[r] = now;
      queries.sum[r] = queries.sum[r] * share + total<T>(sum);
      if (share == T(1)) continue;
      T *out = queries.out + r * values;
      for (int64_t c = 0; c < values; c += width<T>) store<T>(out + c, load<T>(out + c) * splat<T>(share));
    }
  }

  void attend(const Keys<T> &seen) {
    for_each_strip([&](int64_t r0, int64_t rows, int64_t limit) {
      if (limit == 0) return;
      const int64_t columns = padded<T>(limit);
      score(seen, r0, rows, columns);
      weigh(r0, rows, columns);
      multiply<T>(rows, values, limit, scores + r0 * tile, tile, 1, seen.v, values, queries.out + r0 * values, values, true);
    });
  }

  void forward(int64_t segment) {
    const auto out = work.sums(work.part_out, work.out, work.values, group, segment);
    T *largest = work.part_largest + work.part(group, segment), *sum = work.part_sum + work.part(group, segment);
    for (int64_t i = 0; i < work.length; ++i) {
      largest[i] = -static_cast<T>(INFINITY), sum[i] = 0;
      clear(work.values, out.data + i * out.row);
    }
    for_each_query(segment, [&](int64_t c) {
      const auto &at = queries.at;
      gather<T>(at, work.values, out.data, out.row, queries.out);
      for (int64_t r = 0; r < at.count; ++r) queries.largest[r] = largest[at.tokens[r]], queries.sum[r] = sum[at.tokens[r]];
      for_each_seen(c, [&](const Keys<T> &seen) { attend(seen); });
      for (int64_t r = 0; r < at.count; ++r) {
        const int32_t token = at.tokens[r];
        largest[token] = queries.largest[r], sum[token] = queries.sum[r];
        write_row<T>(work.values, queries.out + r * values, out.data + token * out.row);
      }
    });
  }

  // MARK: backward

  /// p in place of the scores, ds in place of the cotangents of p.
  void differentiate(int64_t r0, int64_t rows, int64_t columns) {
    for (int64_t r = r0; r < r0 + rows; ++r) {
      T *p = scores + r * tile, *d = moved + r * tile;
      const auto largest = splat<T>(queries.largest[r]), share = splat<T>(queries.sum[r]), drift = splat<T>(queries.drift[r]);
      for (int64_t c = 0; c < columns; c += width<T>) {
        const auto weight = exponential(load<T>(p + c) - largest) * share;
        store<T>(p + c, weight);
        store<T>(d + c, weight * (load<T>(d + c) - drift));
      }
      if (view.self[r] >= 0) d[view.self[r]] = 0;
      // Strips of keys reach past the limits of their queries.
      for (int64_t c = columns; c < tile; c += width<T>) store<T>(p + c, Vector<T>{}), store<T>(d + c, Vector<T>{});
    }
  }

  void attend_backward(Keys<T> &seen) {
    const int64_t count = queries.at.count;
    for_each_strip([&](int64_t r0, int64_t rows, int64_t limit) {
      if (limit == 0) return;
      const int64_t columns = padded<T>(limit);
      score(seen, r0, rows, columns);
      multiply<T>(rows, columns, values, queries.cotangent + r0 * values, values, 1, seen.v, tile, moved + r0 * tile, tile, false);
      differentiate(r0, rows, columns);
      multiply<T>(rows, features, limit, moved + r0 * tile, tile, 1, seen.k, features, queries.dq + r0 * features, features, true);
    });
    // The queries that see a key are the last ones.
    const int64_t step = work.settings.causal ? strip : tile;
    for (int64_t first = 0, c0 = 0; c0 < seen.at.count; c0 += step) {
      const int64_t columns = std::min(step, seen.at.count - c0);
      while (first < count && view.visible[first] <= c0) ++first;
      if (first == count) break;
      multiply<T>(columns, values, count - first, scores + first * tile + c0, 1, tile, queries.cotangent + first * values, values,
                  seen.dv + c0 * values, values, true);
      multiply<T>(columns, features, count - first, moved + first * tile + c0, 1, tile, queries.q + first * features, features,
                  seen.dk + c0 * features, features, true);
    }
  }

  int64_t segment_of_sums = 0;

  /// Adds a tile's cotangents to those of its tokens. With κ = τ k̂ and k̂ = x g, dx = τ g (dκ - κ (κ·dκ) / τ²).
  void settle(Keys<T> &seen) {
    if (seen.at.id < 0) return;
    const auto dx = work.sums(work.part_dx, work.dx, work.features, group, segment_of_sums);
    const auto dv = work.sums(work.part_dv, work.dv, work.values, group, segment_of_sums);
    const T *inverse = work.inverse + group * work.length, scale = static_cast<T>(work.settings.scale);
    for (int64_t c = 0; c < seen.at.count; ++c) {
      const int32_t token = seen.at.tokens[c];
      if (c + ahead < seen.at.count) {
        const int32_t next = seen.at.tokens[c + ahead];
        ask_for<T>(work.features, dx.data + next * dx.row);
        ask_for<T>(work.values, dv.data + next * dv.row);
      }
      T *dk = seen.dk + c * features, *k = seen.k + c * features;
      const T along = product<T>(features, k, dk) / (scale * scale), by = scale * inverse[token];
      for (int64_t i = 0; i < features; i += width<T>)
        store<T>(dk + i, (load<T>(dk + i) - load<T>(k + i) * splat<T>(along)) * splat<T>(by));
      add_to_row<T>(work.features, dk, dx.data + token * dx.row);
      add_to_row<T>(work.values, seen.dv + c * values, dv.data + token * dv.row);
    }
    seen.at.id = -1;
  }

  void backward(int64_t segment) {
    segment_of_sums = segment;
    const auto dx = work.sums(work.part_dx, work.dx, work.features, group, segment);
    const auto dv = work.sums(work.part_dv, work.dv, work.values, group, segment);
    for (int64_t i = 0; i < work.length; ++i)
      clear(work.features, dx.data + i * dx.row), clear(work.values, dv.data + i * dv.row);
    const int64_t own = group * work.length;
    for_each_query(segment, [&](int64_t c) {
      const auto &at = queries.at;
      gather<T>(at, work.values, work.cotangent.head(group), work.cotangent.row, queries.cotangent);
      for (int64_t r = 0; r < at.count; ++r) {
        const int64_t token = own + at.tokens[r];
        queries.largest[r] = work.largest[token], queries.sum[r] = T(1) / work.sum[token], queries.drift[r] = work.drift[token];
      }
      clear(at.count * features, queries.dq);
      for_each_seen(c, [&](Keys<T> &seen) { attend_backward(seen); });
      for (int64_t r = 0; r < at.count; ++r)
        add_to_row<T>(work.features, queries.dq + r * features, dx.data + at.tokens[r] * dx.row);
    });
    for (auto &seen : keys) settle(seen);
  }
};

/// 1 / √(|x|² + D ε) of all tokens of a group.
template <typename T> void normalize(const LSHWork<T> &work, int64_t group) {
  const T *x = work.x.head(group);
  const int64_t whole = work.features / width<T> * width<T>;
  const double floor = work.settings.epsilon * static_cast<double>(work.features);
  for (int64_t i = 0; i < work.length; ++i, x += work.x.row) {
    Vector<T> squares{};
    for (int64_t c = 0; c < whole; c += width<T>) squares += load<T>(x + c) * load<T>(x + c);
    const auto rest = load_first<T>(x + whole, work.features - whole);
    work.inverse[group * work.length + i] = T(1) / std::sqrt(total<T>(squares + rest * rest) + static_cast<T>(floor));
  }
}

template <typename T> void forward(const LSHWork<T> &work, int64_t group, int64_t segment) {
  Task<T>(work, group, false).forward(segment);
}

/// The segments' sums brought to one t, and divided by l. A token that took no part has zeros.
template <typename T> void merge(const LSHWork<T> &work, int64_t group) {
  const int64_t n = work.length, whole = work.values / width<T> * width<T>;
  for (int64_t i = 0; i < n; ++i) {
    const T *largest = work.part_largest + work.part(group, 0) + i, *sum = work.part_sum + work.part(group, 0) + i;
    T most = largest[0], sums = 0;
    for (int64_t s = 1; s < work.segments; ++s) most = std::max(most, largest[s * n]);
    const bool blind = most == -static_cast<T>(INFINITY);
    for (int64_t s = 0; s < work.segments && !blind; ++s) sums += std::exp(largest[s * n] - most) * sum[s * n];
    T *out = work.out.head(group) + i * work.out.row;
    for (int64_t s = 0; s < work.segments; ++s) {
      const auto part = work.sums(work.part_out, work.out, work.values, group, s);
      const T *from = part.data + i * part.row, share = blind ? T(0) : std::exp(largest[s * n] - most) / sums;
      for (int64_t c = 0; c < whole; c += width<T>)
        store<T>(out + c, load<T>(from + c) * splat<T>(share) + (s > 0 ? load<T>(out + c) : Vector<T>{}));
      for (int64_t c = whole; c < work.values; ++c) out[c] = from[c] * share + (s > 0 ? out[c] : T(0));
    }
    work.largest[group * n + i] = blind ? T(0) : most;
    work.sum[group * n + i] = blind ? T(1) : sums;
  }
}

/// Cotangent · out of all tokens of a group.
template <typename T> void find_drift(const LSHWork<T> &work, int64_t group) {
  const T *cotangent = work.cotangent.head(group), *out = work.out.head(group);
  const int64_t whole = work.values / width<T> * width<T>, left = work.values - whole;
  for (int64_t i = 0; i < work.length; ++i, cotangent += work.cotangent.row, out += work.out.row) {
    auto sum = load_first<T>(cotangent + whole, left) * load_first<T>(out + whole, left);
    for (int64_t c = 0; c < whole; c += width<T>) sum += load<T>(cotangent + c) * load<T>(out + c);
    work.drift[group * work.length + i] = total<T>(sum);
  }
}

template <typename T> void backward(const LSHWork<T> &work, int64_t group, int64_t segment) {
  Task<T>(work, group, true).backward(segment);
}

/// Adds up the segments' cotangents.
template <typename T> void collect(const LSHWork<T> &work, int64_t group) {
  if (!work.part_dx) return;
  for (int64_t s = 0; s < work.segments; ++s) {
    const auto dx = work.sums(work.part_dx, work.dx, work.features, group, s);
    const auto dv = work.sums(work.part_dv, work.dv, work.values, group, s);
    for (int64_t i = 0; i < work.length; ++i) {
      T *to_x = work.dx.head(group) + i * work.dx.row, *to_v = work.dv.head(group) + i * work.dv.row;
      for (int64_t c = 0; c < work.features; ++c) to_x[c] = dx.data[i * dx.row + c] + (s > 0 ? to_x[c] : T(0));
      for (int64_t c = 0; c < work.values; ++c) to_v[c] = dv.data[i * dv.row + c] + (s > 0 ? to_v[c] : T(0));
    }
  }
}

} // namespace lsh
