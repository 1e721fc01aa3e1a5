// AFT with a bias in a window for one instruction set; see aft.cpp for the equations and the names.
#include "aft.kernels.hpp"

/// e^(w - ω) of one row of biases, and what stands beside it.
template <typename T> void aft_table_row(const AftWindowWork<T> &work, int64_t row) {
  constexpr int64_t margin = aft_strip - 1;
  const T *bias = work.bias + row * work.taps();
  T *to = work.table + row * work.table_row();
  T largest = 0, smallest = 0;
  for (int64_t i = 0; i < work.taps(); ++i) largest = std::max(largest, bias[i]), smallest = std::min(smallest, bias[i]);
  work.beside[row] = exponential(-largest);
  work.spread[row] = largest - smallest;
  for (int64_t i = 0; i < margin; ++i) {
    to[i] = work.beside[row];
    to[margin + work.taps() + i] = work.causal ? T(0) : work.beside[row];
  }
  for (int64_t i = 0; i < work.taps(); i += width<T>) {
    const int64_t count = std::min<int64_t>(width<T>, work.taps() - i);
    store_first<T>(to + margin + i, exponential(load_first<T>(bias + i, count) - splat<T>(largest)), count);
  }
}

template <typename T> void aft_table_rows(const AftWindowWork<T> &work, int64_t from, int64_t end) {
  for (int64_t row = from; row < std::min(end, work.bias_rows()); ++row) aft_table_row(work, row);
}

/// The sums of the keys that the chunk's windows leave behind, and of those that its rows have beyond them.
template <typename T> void aft_window_sums(const AftWindowWork<T> &work, int64_t unit, int64_t chunk) {
  auto clipped = [&](int64_t token) { return std::max<int64_t>(0, std::min(work.length, token)); };
  const bool is_last = chunk + 1 == work.chunks;
  if (work.causal && is_last) return;
  const int64_t begin = work.begin(chunk), end = work.begin(chunk + 1);
  sum_keys<T>(work, unit, clipped(begin - work.left), is_last ? work.length : clipped(end - work.left),
              work.at(work.sums, unit, 0, chunk + 1));
  if (!work.causal && chunk > 0)
    sum_keys<T>(work, unit, clipped(begin + work.right), clipped(end + work.right), work.at(work.sums, unit, 1, chunk - 1));
}

template <typename T> void aft_window_merge(const AftWindowWork<T> &work, int64_t unit, T *sums, bool of_keys) {
  const T sign = of_keys ? T(1) : T(-1), nothing = sign * static_cast<T>(aft_nothing);
  // Forwards the keys before, or the queries before; backwards the keys or queries after.
  const int64_t forwards = of_keys ? 0 : 1, backwards = 1 - forwards;
  if (of_keys || !work.causal) {
    clear_sums<T>(work.at(sums, unit, forwards, 0), work.block, nothing);
    for (int64_t i = 1; i < work.chunks + of_keys; ++i)
      merge_sums<T>(work.at(sums, unit, forwards, i), work.at(sums, unit, forwards, i - 1), work.block, sign);
  }
  if (!of_keys || !work.causal) {
    clear_sums<T>(work.at(sums, unit, backwards, work.chunks - 1), work.block, nothing);
    for (int64_t i = work.chunks - 1; i-- > 0;)
      merge_sums<T>(work.at(sums, unit, backwards, i), work.at(sums, unit, backwards, i + 1), work.block, sign);
  }
}

/// One chunk of one unit: its rows, and the keys in their windows, from `first` on (before the sequence at first).
template <typename T> struct WindowTile {
  const AftWindowWork<T> &work;
  int64_t unit, chunk, begin, end, first, keys, lanes, columns;
  /// [keys, columns]: e^(k - shift) v beside e^(k - shift); for pairs k beside v
  T *x;
  T *shift;

  WindowTile(const AftWindowWork<T> &work, Scratch &scratch, int64_t chunk)
      : work(work), unit(0), chunk(chunk), begin(work.begin(chunk)), end(work.begin(chunk + 1)), first(begin - work.left),
        keys(end + work.right - first), lanes(padded<T>(std::min(work.block, work.channels))), columns(2 * lanes),
        x(scratch.take<T>(keys * columns)), shift(nullptr) {}
  static size_t bytes(const AftWindowWork<T> &work) {
    return sizeof(T) * static_cast<size_t>((work.chunk + work.taps()) * 2 * work.block) + 256;
  }

  bool is_inside(int64_t key) const { return key >= 0 && key < work.length; }
  T *key(int64_t key) const { return x + (key - first) * columns; }
  bool is_direct() const { return work.is_direct(unit, chunk); }
  void choose(int64_t to) { unit = to, shift = work.shift_of(unit, chunk); }

  /// The exponent of the chunk's sums, and whether its rows can all have it.
  void choose_shift() {
    const auto before = work.at(work.sums, unit, 0, work.causal ? chunk : work.chunks);
    std::memcpy(shift, before.exponent, sizeof(T) * static_cast<size_t>(work.block));
    T spread = 0;
    if (work.causal) {
      for (int64_t c = 0; c < work.count(unit); c += width<T>) {
        auto largest = load<T>(shift + c);
        Vector<T> k[1], v[1], at_first{};
        for (int64_t j = std::max<int64_t>(0, first); j < end; ++j) {
          read_token<T, 1>(work, unit, j, c, work.count(unit) - c, k, v);
          largest = larger<T>(largest, k[0]);
          if (j == begin) at_first = largest;
        }
        spread = std::max(spread, largest_of<T>(largest - at_first));
        store<T>(shift + c, largest);
      }
    }
    T of_bias = 0;
    if (work.by_position)
      for (int64_t i = begin; i < end; ++i) of_bias = std::max(of_bias, work.spread[i]);
    else
      of_bias = work.spread[work.bias_index(unit, begin)];
    work.is_direct(unit, chunk) = !(spread + of_bias <= work.limit);
  }

  void read_keys() const {
    const bool is_direct = this->is_direct();
    for (int64_t j = first; j < first + keys; ++j) {
      T *to = key(j);
      if (!is_inside(j)) {
        std::memset(static_cast<void *>(to), 0, sizeof(T) * static_cast<size_t>(columns));
        continue;
      }
      for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
        constexpr int n = decltype(vectors)::value;
        Vector<T> k[n], v[n];
        read_token<T, n>(work, unit, j, c, left, k, v);
#pragma clang loop unroll(full)
        for (int i = 0; i < n; ++i) {
          const auto weight = exponential(k[i] - load<T>(shift + c + i * width<T>));
          store<T>(to + c + i * width<T>, is_direct ? k[i] : weight * v[i]);
          store<T>(to + lanes + c + i * width<T>, is_direct ? v[i] : weight);
        }
      });
      for (int64_t c = padded<T>(work.count(unit)); c < lanes; c += width<T>) {
        store<T>(to + c, Vector<T>{});
        store<T>(to + lanes + c, Vector<T>{});
      }
    }
  }

  /// Sums at the chunk's exponent.
  void read_sums(AftSums<T> from, T *to) const {
    for (int64_t c = 0; c < lanes; c += width<T>) {
      const auto scale = exponential(load<T>(from.exponent + c) - load<T>(shift + c));
      store<T>(to + c, load<T>(from.numerator + c) * scale);
      store<T>(to + lanes + c, load<T>(from.denominator + c) * scale);
    }
  }

  void add_row(const T *from, T scale, T *to) const {
    for (int64_t c = 0; c < columns; c += width<T>) store<T>(to + c, load<T>(to + c) + load<T>(from + c) * splat<T>(scale));
  }

  // Pair by pair.

  int64_t last_seen(int64_t i) const { return std::min(work.length, work.causal ? i + 1 : first + keys); }

  /// The largest exponent that row i sees.
  INLINE Vector<T> largest_of_row(int64_t i, int64_t c) const {
    auto largest = load<T>(work.at(work.sums, unit, 0, chunk).exponent + c);
    if (!work.causal) largest = larger<T>(largest, load<T>(work.at(work.sums, unit, 1, chunk).exponent + c));
    for (int64_t j = std::max<int64_t>(0, first); j < last_seen(i); ++j)
      if (work.is_real(unit, j)) largest = larger<T>(largest, load<T>(key(j) + c) + splat<T>(work.bias_of(unit, i, j)));
    return largest;
  }
  /// The weight of a pair, the large numbers subtracted first.
  INLINE Vector<T> pair_weight(int64_t i, int64_t j, int64_t c, Vector<T> largest) const {
    return exponential((load<T>(key(j) + c) - largest) + splat<T>(work.bias_of(unit, i, j)));
  }
  void sum_pairs(int64_t i, T *to) const {
    for (int64_t c = 0; c < lanes; c += width<T>) {
      const auto largest = largest_of_row(i, c);
      Vector<T> numerator{}, denominator{};
      for (int64_t side = 0; side < (work.causal ? 1 : 2); ++side) {
        const auto sums = work.at(work.sums, unit, side, chunk);
        const auto scale = exponential(load<T>(sums.exponent + c) - largest);
        numerator += load<T>(sums.numerator + c) * scale;
        denominator += load<T>(sums.denominator + c) * scale;
      }
      for (int64_t j = std::max<int64_t>(0, first); j < last_seen(i); ++j) {
        if (!work.is_real(unit, j)) continue;
        const auto weight = pair_weight(i, j, c, largest);
        numerator += weight * load<T>(key(j) + lanes + c);
        denominator += weight;
      }
      store<T>(to + c, numerator);
      store<T>(to + lanes + c, denominator);
    }
  }

  // Strips.

  int64_t strip_columns() const { return padded<T>(aft_strip + work.left + work.right); }

  /// Rows from i on of the chunk's product.
  void sum_strip(int64_t i, int64_t rows, const T *others, T *to) const {
    for (int64_t r = 0; r < rows; ++r) {
      const T beside = work.beside[work.bias_index(unit, i + r)];
      for (int64_t c = 0; c < columns; c += width<T>) store<T>(to + r * columns + c, load<T>(others + c) * splat<T>(beside));
    }
    multiply<T>(rows, columns, rows + work.left + work.right, work.weight(unit, i, i - work.left), work.table_step() - 1, 1,
                x + (i - begin) * columns, columns, to, columns, true);
  }
};

/// Sums over numerators and denominators, from some rows of them, to the means and the outputs.
template <typename T>
void write_means(const AftWindowWork<T> &work, int64_t unit, int64_t i, int64_t rows, const T *sums, int64_t lanes) {
  for (int64_t r = 0; r < rows; ++r, sums += 2 * lanes) {
    for_vectors<T>(work.count(unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
      constexpr int n = decltype(vectors)::value;
      Vector<T> mean[n], inverse[n], divisor[n];
      read_row<T, n>(sums + lanes + c, n * width<T>, inverse);
      read_row<T, n>(sums + c, n * width<T>, mean);
      read_gate<T, n>(work, unit, i + r, c, left, divisor);
#pragma clang loop unroll(full)
      for (int j = 0; j < n; ++j) {
        inverse[j] = inverse[j] > 0 ? T(1) / inverse[j] : Vector<T>{}; // a row may see no key
        mean[j] *= inverse[j];
        divisor[j] = mean[j] / divisor[j];
      }
      write_row<T, n>(work.row(work.out, unit, i + r) + c, left, divisor);
      if (!work.mean.data) return;
      write_row<T, n>(work.row(work.mean, unit, i + r) + c, left, mean);
      write_row<T, n>(work.row(work.inverse, unit, i + r) + c, left, inverse);
    });
  }
}

template <typename T> void aft_window_forward(const AftWindowWork<T> &work, int64_t unit, int64_t chunk) {
  const int64_t strips = (work.chunk + aft_strip - 1) / aft_strip;
  Scratch scratch(WindowTile<T>::bytes(work) + sizeof(T) * static_cast<size_t>((strips + aft_strip + 3) * 2 * work.block) + 512);
  WindowTile<T> tile(work, scratch, chunk);
  tile.choose(unit);
  tile.choose_shift();
  tile.read_keys();
  const int64_t columns = tile.columns;
  T *sums = scratch.take<T>(aft_strip * columns), *before = scratch.zeros<T>(columns), *others = scratch.take<T>(columns);
  T *after = scratch.zeros<T>(columns * strips);
  if (tile.is_direct()) {
    for (int64_t i = tile.begin; i < tile.end; ++i) {
      tile.sum_pairs(i, sums);
      write_means<T>(work, unit, i, 1, sums, tile.lanes);
    }
    return;
  }
  tile.read_sums(work.at(work.sums, unit, 0, chunk), before);
  if (!work.causal) { // what lies beyond each strip's keys
    const int64_t last = (tile.end - tile.begin - 1) / aft_strip;
    tile.read_sums(work.at(work.sums, unit, 1, chunk), after + last * columns);
    for (int64_t s = last; s-- > 0;) {
      std::memcpy(after + s * columns, after + (s + 1) * columns, sizeof(T) * static_cast<size_t>(columns));
      const int64_t from = tile.begin + (s + 1) * aft_strip, end = std::min(from + aft_strip, tile.end);
      for (int64_t i = from; i < end; ++i) tile.add_row(tile.key(i + work.right), T(1), after + s * columns);
    }
  }
  for (int64_t i = tile.begin, s = 0; i < tile.end; i += aft_strip, ++s) {
    const int64_t rows = std::min(aft_strip, tile.end - i);
    std::memcpy(others, before, sizeof(T) * static_cast<size_t>(columns));
    tile.add_row(after + s * columns, T(1), others);
    tile.sum_strip(i, rows, others, sums);
    write_means<T>(work, unit, i, rows, sums, tile.lanes);
    for (int64_t r = 0; r < rows; ++r) tile.add_row(tile.key(i + r - work.left), T(1), before);
  }
}
