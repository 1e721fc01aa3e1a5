// AFT without a bias for one instruction set; see aft.cpp for the equations and the names.

/// Vectors that are worked on together: enough to hide the latency of a sum.
constexpr int aft_vectors = 4;

/// Brings the same channels of another token's row into the cache, to be read soon. Where a head's rows follow one another and
/// are taken in their order (`in_order`), the processor does that by itself.
template <typename T, int n, typename Row>
INLINE void fetch(const AftChannels<T> &work, const Rows<Row> &rows, int64_t unit, int64_t token, int64_t c, bool in_order = true) {
  if ((in_order && rows.row == work.channels) || token < 0 || token >= work.length) return;
  const T *to = work.row(rows, unit, token) + c;
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) __builtin_prefetch(to + i * width<T>);
}
/// How many tokens that is ahead.
constexpr int64_t fetched_ahead = 16;

/// `n` vectors of a row of which `count` numbers are left; zeros behind them.
template <typename T, int n> INLINE void read_row(const T *from, int64_t count, Vector<T> *to) {
  if (count >= n * width<T>) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) to[i] = load<T>(from + i * width<T>);
    return;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i)
    to[i] = load_first<T>(from + i * width<T>, std::max<int64_t>(0, std::min<int64_t>(width<T>, count - i * width<T>)));
}
template <typename T, int n> INLINE void write_row(T *to, int64_t count, const Vector<T> *from) {
  if (count >= n * width<T>) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) store<T>(to + i * width<T>, from[i]);
    return;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i)
    store_first<T>(to + i * width<T>, from[i], std::max<int64_t>(0, std::min<int64_t>(width<T>, count - i * width<T>)));
}

/// Writes a row of a result, around the caches if it `streams`.
template <typename T, int n>
INLINE void write_result(const AftChannels<T> &work, T *to, int64_t count, const Vector<T> *from) {
  if (!work.streams || count < n * width<T> || reinterpret_cast<uintptr_t>(to) % vector_bytes)
    return write_row<T, n>(to, count, from);
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) __builtin_nontemporal_store(from[i], reinterpret_cast<Vector<T> *>(to + i * width<T>));
}

/// Calls body(first channel, channels left, vectors) for the vectors of a unit, four at a time as long as there are as many.
template <typename T, typename Body> INLINE void for_vectors(int64_t count, Body body) {
  int64_t c = 0;
  for (; c + aft_vectors * width<T> <= count; c += aft_vectors * width<T>)
    body(c, count - c, std::integral_constant<int, aft_vectors>());
  for (; c < count; c += width<T>) body(c, count - c, std::integral_constant<int, 1>());
}

/// The sums of `n` vectors of channels, in registers.
template <typename T, int n> struct RunningSums {
  Vector<T> exponent[n], numerator[n], denominator[n];

  INLINE void read(AftSums<T> from, int64_t c) {
    read_row<T, n>(from.exponent + c, n * width<T>, exponent);
    read_row<T, n>(from.numerator + c, n * width<T>, numerator);
    read_row<T, n>(from.denominator + c, n * width<T>, denominator);
  }
  INLINE void write(AftSums<T> to, int64_t c) const {
    write_row<T, n>(to.exponent + c, n * width<T>, exponent);
    write_row<T, n>(to.numerator + c, n * width<T>, numerator);
    write_row<T, n>(to.denominator + c, n * width<T>, denominator);
  }
  INLINE void clear(T start) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) exponent[i] = splat<T>(start), numerator[i] = denominator[i] = Vector<T>{};
  }

  /// Makes the exponents larger.
  INLINE void raise(const Vector<T> *to) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) {
      const auto decay = exponential(exponent[i] - to[i]);
      exponent[i] = to[i];
      numerator[i] *= decay;
      denominator[i] *= decay;
    }
  }

  /// Takes up a key: `decay` is by how much the sums before shrink, `weight` that of the key. One of the two is 1.
  INLINE void add(const Vector<T> *k, const Vector<T> *v, Vector<T> *decay, Vector<T> *weight) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) {
      const auto larger = k[i] > exponent[i];
      const auto distance = exponential(larger ? exponent[i] - k[i] : k[i] - exponent[i]);
      decay[i] = larger ? distance : splat<T>(1);
      weight[i] = larger ? splat<T>(1) : distance;
      exponent[i] = larger ? k[i] : exponent[i];
      numerator[i] = numerator[i] * decay[i] + weight[i] * v[i];
      denominator[i] = denominator[i] * decay[i] + weight[i];
    }
  }
};

/// A token's key; that of a padded one is without weight.
template <typename T, int n>
INLINE void read_key(const AftChannels<T> &work, int64_t unit, int64_t token, int64_t c, int64_t left, Vector<T> *k) {
  const T *key = work.key(unit, token);
  const bool is_real = work.is_real(unit, token);
  if (!work.shared_key) fetch<T, n>(work, work.k, unit, token + fetched_ahead, c);
  if (is_real && !work.shared_key) return read_row<T, n>(key + c, left, k);
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) k[i] = splat<T>(is_real ? *key : static_cast<T>(aft_nothing));
}

/// A token's key and value; those of a padded one are without weight.
template <typename T, int n>
INLINE void read_token(const AftChannels<T> &work, int64_t unit, int64_t token, int64_t c, int64_t left, Vector<T> *k,
                       Vector<T> *v) {
  read_key<T, n>(work, unit, token, c, left, k);
  fetch<T, n>(work, work.v, unit, token + fetched_ahead, c);
  if (work.is_real(unit, token)) return read_row<T, n>(work.row(work.v, unit, token) + c, left, v);
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) v[i] = Vector<T>{};
}

/// Merges the sums over two sets of keys (sign 1) or of queries (sign -1).
template <typename T> INLINE void merge_sums(AftSums<T> to, AftSums<T> other, int64_t block, T sign) {
  for (int64_t c = 0; c < block; c += width<T>) {
    const auto x = load<T>(to.exponent + c), y = load<T>(other.exponent + c);
    const auto both = sign > 0 ? larger<T>(x, y) : smaller<T>(x, y);
    const auto a = exponential((x - both) * sign), b = exponential((y - both) * sign);
    store<T>(to.exponent + c, both);
    store<T>(to.numerator + c, load<T>(to.numerator + c) * a + load<T>(other.numerator + c) * b);
    store<T>(to.denominator + c, load<T>(to.denominator + c) * a + load<T>(other.denominator + c) * b);
  }
}
template <typename T> INLINE void copy_sums(AftSums<T> to, AftSums<T> from, int64_t block) {
  std::memmove(to.exponent, from.exponent, sizeof(T) * static_cast<size_t>(3 * block));
}
template <typename T> INLINE void clear_sums(AftSums<T> to, int64_t block, T start) {
  for (int64_t c = 0; c < block; ++c) to.exponent[c] = start, to.numerator[c] = to.denominator[c] = 0;
}

/// The sums of some keys: a few tokens at a time, whose largest exponent is found first.
template <typename T> void sum_keys(const AftChannels<T> &work, int64_t unit, int64_t from, int64_t end, AftSums<T> to) {
  constexpr int64_t together = 32;
  clear_sums<T>(to, work.block, static_cast<T>(aft_nothing));
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    RunningSums<T, n> sums;
    sums.clear(static_cast<T>(aft_nothing));
    Vector<T> k[n], v[n], largest[n];
    for (int64_t start = from; start < end; start += together) {
      const int64_t stop = std::min(end, start + together);
      std::copy_n(sums.exponent, n, largest);
      for (int64_t i = start; i < stop; ++i) {
        read_key<T, n>(work, unit, i, c, left, k);
#pragma clang loop unroll(full)
        for (int j = 0; j < n; ++j) largest[j] = larger<T>(largest[j], k[j]);
      }
      sums.raise(largest);
      for (int64_t i = start; i < stop; ++i) {
        read_token<T, n>(work, unit, i, c, left, k, v);
#pragma clang loop unroll(full)
        for (int j = 0; j < n; ++j) {
          const auto weight = exponential(k[j] - largest[j]);
          sums.numerator[j] += weight * v[j];
          sums.denominator[j] += weight;
        }
      }
    }
    sums.write(to, c);
  });
}

/// The sums of one segment's keys: to where the next segment begins if causal, otherwise to its own place.
template <typename T> void aft_segment_sums(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  sum_keys<T>(work, unit, work.begin(segment), work.begin(segment + 1),
              work.causal ? work.at_segment(unit, segment + 1) : work.before(unit, segment));
}

/// Adds up what the segments found: before each of them, or all.
template <typename T> void aft_merge_segments(const AftSimpleWork<T> &work, int64_t unit) {
  if (work.causal) {
    clear_sums<T>(work.before(unit, 0), work.block, static_cast<T>(aft_nothing));
    for (int64_t i = 1; i < work.segments; ++i)
      merge_sums<T>(work.at_segment(unit, i), work.at_segment(unit, i - 1), work.block, T(1));
    return;
  }
  const auto all = work.before(unit, work.chunks);
  copy_sums<T>(all, work.before(unit, 0), work.block);
  for (int64_t i = 1; i < work.segments; ++i) merge_sums<T>(all, work.before(unit, i), work.block, T(1));
}

/// 1 + e^-q, by which a gated mean is divided.
template <typename T, int n> INLINE void read_gate(const AftChannels<T> &work, int64_t unit, int64_t token, int64_t c, int64_t left,
                                                   Vector<T> *divisor) {
  if (work.gated) {
    fetch<T, n>(work, work.q, unit, token + fetched_ahead, c);
    read_row<T, n>(work.row(work.q, unit, token) + c, left, divisor);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) divisor[i] = work.gated ? T(1) + exponential(-divisor[i]) : splat<T>(1);
}

template <typename T> void aft_simple_forward(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    RunningSums<T, n> sums;
    Vector<T> k[n], v[n], decay[n], weight[n], divisor[n];
    sums.read(work.causal ? work.at_segment(unit, segment) : work.before(unit, work.chunks), c);
    for (int64_t i = work.begin(segment); i < work.begin(segment + 1); ++i) {
      if (work.causal) {
        if (work.keep && i % work.chunk == 0) sums.write(work.before(unit, i / work.chunk), c);
        read_token<T, n>(work, unit, i, c, left, k, v);
        sums.add(k, v, decay, weight);
      }
      read_gate<T, n>(work, unit, i, c, left, divisor);
#pragma clang loop unroll(full)
      for (int j = 0; j < n; ++j) v[j] = sums.numerator[j] / (sums.denominator[j] * divisor[j]);
      write_result<T, n>(work, work.row(work.out, unit, i) + c, left, v);
    }
  });
}

/// The cotangent of a token's mean; `writes` the gradient of its gate.
template <typename T, int n>
INLINE void pull_gate(const AftChannels<T> &work, int64_t unit, int64_t token, int64_t c, int64_t left, const Vector<T> *mean,
                      Vector<T> *cotangent, bool writes) {
  fetch<T, n>(work, work.cotangent, unit, token + fetched_ahead, c);
  read_row<T, n>(work.row(work.cotangent, unit, token) + c, left, cotangent);
  if (!work.gated) return;
  fetch<T, n>(work, work.q, unit, token + fetched_ahead, c);
  Vector<T> gate[n];
  read_row<T, n>(work.row(work.q, unit, token) + c, left, gate);
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) {
    gate[i] = logistic<T>(gate[i]);
    cotangent[i] *= gate[i];
    gate[i] = cotangent[i] * mean[i] * (T(1) - gate[i]);
  }
  if (writes) write_result<T, n>(work, work.row(work.dq, unit, token) + c, left, gate);
}

/// What one chunk's backward pass keeps of its tokens, in the order they are made: [chunk, vectors] each.
template <typename T> struct AftChunk {
  T *decay, *weight, *slope, *mean;

  AftChunk(Scratch &scratch, int64_t chunk)
      : decay(room(scratch, chunk)), weight(room(scratch, chunk)), slope(room(scratch, chunk)), mean(room(scratch, chunk)) {}
  static T *room(Scratch &scratch, int64_t chunk) { return scratch.take<T>(chunk * aft_vectors * width<T>); }
  static size_t bytes(int64_t chunk) { return sizeof(T) * static_cast<size_t>(4 * chunk * aft_vectors * width<T>) + 512; }
};

/// The sums of what later queries ask for, R = Σ G_i e^(m_j - m_i) and T = Σ G_i mean_i e^(m_j - m_i) at the token j that comes
/// next, with G the mean's cotangent divided by its denominator. All factors are at most 1.
template <typename T, int n> struct LaterSums {
  Vector<T> of_values[n], of_means[n];
};

/// Goes through one chunk: forward again for its means, then backward. `writes` dk and dv, or only sums up.
template <typename T, int n>
INLINE void pull_chunk(const AftSimpleWork<T> &work, int64_t unit, int64_t start, int64_t end, int64_t c, int64_t left,
                       const AftChunk<T> &room, bool writes, LaterSums<T, n> &later) {
  constexpr int step = n * width<T>;
  RunningSums<T, n> sums;
  sums.read(work.before(unit, start / work.chunk), c);
  Vector<T> k[n], v[n], decay[n], weight[n], mean[n], slope[n];
  for (int64_t i = start; i < end; ++i) {
    const int64_t place = (i - start) * step, next = i - work.chunk; // the chunk before comes next
    if (!work.shared_key) fetch<T, n>(work, work.k, unit, next, c, false);
    fetch<T, n>(work, work.v, unit, next, c, false);
    fetch<T, n>(work, work.cotangent, unit, next, c, false);
    if (work.gated) fetch<T, n>(work, work.q, unit, next, c, false);
    read_token<T, n>(work, unit, i, c, left, k, v);
    sums.add(k, v, decay, weight);
#pragma clang loop unroll(full)
    for (int j = 0; j < n; ++j) {
      k[j] = T(1) / sums.denominator[j];
      mean[j] = sums.numerator[j] * k[j];
    }
    pull_gate<T, n>(work, unit, i, c, left, mean, slope, writes);
#pragma clang loop unroll(full)
    for (int j = 0; j < n; ++j) slope[j] *= k[j];
    write_row<T, n>(room.decay + place, step, decay);
    write_row<T, n>(room.weight + place, step, weight);
    write_row<T, n>(room.slope + place, step, slope);
    write_row<T, n>(room.mean + place, step, mean);
  }
  for (int64_t i = end; i-- > start;) {
    const int64_t place = (i - start) * step;
    read_row<T, n>(room.decay + place, step, decay);
    read_row<T, n>(room.weight + place, step, weight);
    read_row<T, n>(room.slope + place, step, slope);
    read_row<T, n>(room.mean + place, step, mean);
    const bool is_real = work.is_real(unit, i);
    if (writes && is_real) read_row<T, n>(work.row(work.v, unit, i) + c, left, v);
#pragma clang loop unroll(full)
    for (int j = 0; j < n; ++j) {
      const auto of_values = later.of_values[j] + slope[j], of_means = later.of_means[j] + slope[j] * mean[j];
      k[j] = is_real ? weight[j] * (v[j] * of_values - of_means) : Vector<T>{};
      v[j] = is_real ? weight[j] * of_values : Vector<T>{};
      later.of_values[j] = of_values * decay[j];
      later.of_means[j] = of_means * decay[j];
    }
    if (!writes) continue;
    write_result<T, n>(work, work.row(work.dk, unit, i) + c, left, k);
    write_result<T, n>(work, work.row(work.dv, unit, i) + c, left, v);
  }
}

/// What a segment's queries ask of the keys before it, relative to the exponents there; written to its place.
template <typename T> void aft_segment_slopes(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  Scratch scratch(AftChunk<T>::bytes(work.chunk));
  AftChunk<T> room(scratch, work.chunk);
  const auto to = work.after(unit, segment);
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    LaterSums<T, n> later{};
    const int64_t begin = work.begin(segment), end = work.begin(segment + 1);
    for (int64_t start = (end - 1) / work.chunk * work.chunk; start >= begin; start -= work.chunk)
      pull_chunk<T, n>(work, unit, start, std::min(end, start + work.chunk), c, left, room, false, later);
    write_row<T, n>(to.numerator + c, n * width<T>, later.of_values);
    write_row<T, n>(to.denominator + c, n * width<T>, later.of_means);
  });
}

/// Adds up what the segments after each one ask for; without a direction, all.
template <typename T> void aft_merge_slopes(const AftSimpleWork<T> &work, int64_t unit) {
  for (int64_t i = work.segments - 1; i-- > work.causal;) {
    const auto to = work.after(unit, i), from = work.after(unit, i + 1);
    for (int64_t c = 0; c < work.count(unit); c += width<T>) {
      auto decay = splat<T>(1);
      if (work.causal)
        decay = exponential(load<T>(work.at_segment(unit, i).exponent + c) - load<T>(work.at_segment(unit, i + 1).exponent + c));
      store<T>(to.numerator + c, load<T>(to.numerator + c) + decay * load<T>(from.numerator + c));
      store<T>(to.denominator + c, load<T>(to.denominator + c) + decay * load<T>(from.denominator + c));
    }
  }
}

template <typename T> void aft_simple_backward(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  Scratch scratch(AftChunk<T>::bytes(work.chunk));
  AftChunk<T> room(scratch, work.chunk);
  const auto from = work.after(unit, segment + 1);
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    LaterSums<T, n> later{};
    const int64_t begin = work.begin(segment), end = work.begin(segment + 1);
    if (segment + 1 < work.segments) {
      read_row<T, n>(from.numerator + c, n * width<T>, later.of_values);
      read_row<T, n>(from.denominator + c, n * width<T>, later.of_means);
    }
    for (int64_t start = (end - 1) / work.chunk * work.chunk; start >= begin; start -= work.chunk)
      pull_chunk<T, n>(work, unit, start, std::min(end, start + work.chunk), c, left, room, true, later);
  });
}

/// Without a direction: the gate's gradient, and the sum of what a segment's queries ask of the mean.
template <typename T> void aft_total_slopes(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  const auto total = work.before(unit, work.chunks), to = work.after(unit, segment);
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    Vector<T> mean[n], count[n], cotangent[n], sum[n] = {};
    read_row<T, n>(total.numerator + c, n * width<T>, mean);
    read_row<T, n>(total.denominator + c, n * width<T>, count);
#pragma clang loop unroll(full)
    for (int j = 0; j < n; ++j) mean[j] /= count[j];
    for (int64_t i = work.begin(segment); i < work.begin(segment + 1); ++i) {
      pull_gate<T, n>(work, unit, i, c, left, mean, cotangent, true);
#pragma clang loop unroll(full)
      for (int j = 0; j < n; ++j) sum[j] += cotangent[j];
    }
    write_row<T, n>(to.numerator + c, n * width<T>, sum);
  });
}

/// Without a direction: dv = e^(k-m) G and dk = dv (v - mean), with G the sum divided by the denominator.
template <typename T> void aft_total_backward(const AftSimpleWork<T> &work, int64_t unit, int64_t segment) {
  const auto total = work.before(unit, work.chunks), asked = work.after(unit, 0);
  for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
    constexpr int n = decltype(vectors)::value;
    Vector<T> exponent[n], mean[n], count[n], slope[n], k[n], v[n];
    read_row<T, n>(total.exponent + c, n * width<T>, exponent);
    read_row<T, n>(total.numerator + c, n * width<T>, mean);
    read_row<T, n>(total.denominator + c, n * width<T>, count);
    read_row<T, n>(asked.numerator + c, n * width<T>, slope);
#pragma clang loop unroll(full)
    for (int j = 0; j < n; ++j) mean[j] /= count[j], slope[j] /= count[j];
    for (int64_t i = work.begin(segment); i < work.begin(segment + 1); ++i) {
      const bool is_real = work.is_real(unit, i);
      read_token<T, n>(work, unit, i, c, left, k, v);
#pragma clang loop unroll(full)
      for (int j = 0; j < n; ++j) {
        const auto of_value = is_real ? exponential(k[j] - exponent[j]) * slope[j] : Vector<T>{};
        k[j] = of_value * (v[j] - mean[j]);
        v[j] = of_value;
      }
      write_result<T, n>(work, work.row(work.dk, unit, i) + c, left, k);
      write_result<T, n>(work, work.row(work.dv, unit, i) + c, left, v);
    }
  });
}
