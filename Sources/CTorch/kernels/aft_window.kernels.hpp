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

/// G = the mean's cotangent by its denominator, beside -G mean: [rows, columns]. `writes` the gate's gradient.
template <typename T> void read_slopes(const AftWindowWork<T> &work, const WindowTile<T> &tile, bool writes, T *y) {
  for (int64_t i = tile.begin; i < tile.end; ++i, y += tile.columns) {
    for_vectors<T>(work.count(tile.unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
      constexpr int n = decltype(vectors)::value;
      Vector<T> mean[n], inverse[n], slope[n];
      read_row<T, n>(work.row(work.mean, tile.unit, i) + c, left, mean);
      read_row<T, n>(work.row(work.inverse, tile.unit, i) + c, left, inverse);
      pull_gate<T, n>(work, tile.unit, i, c, left, mean, slope, writes);
#pragma clang loop unroll(full)
      for (int j = 0; j < n; ++j) {
        slope[j] *= inverse[j];
        mean[j] *= -slope[j];
      }
      write_row<T, n>(y + c, n * width<T>, slope);
      write_row<T, n>(y + tile.lanes + c, n * width<T>, mean);
    });
    for (int64_t c = padded<T>(work.count(tile.unit)); c < tile.lanes; c += width<T>) {
      store<T>(y + c, Vector<T>{});
      store<T>(y + tile.lanes + c, Vector<T>{});
    }
  }
}

/// What a chunk's queries ask of the keys outside of all their windows.
template <typename T> void aft_window_asked(const AftWindowWork<T> &work, int64_t unit, int64_t chunk) {
  Scratch scratch(WindowTile<T>::bytes(work) + sizeof(T) * static_cast<size_t>(work.chunk * 2 * work.block) + 256);
  WindowTile<T> tile(work, scratch, chunk);
  tile.choose(unit);
  T *y = scratch.take<T>((tile.end - tile.begin) * tile.columns);
  read_slopes<T>(work, tile, false, y);
  const bool is_direct = tile.is_direct();
  if (is_direct) tile.read_keys();
  const auto after = work.at(work.asked, unit, 0, chunk > 0 ? chunk - 1 : work.chunks);
  const auto before = work.at(work.asked, unit, 1, chunk + 1);
  clear_sums<T>(after, work.block, static_cast<T>(-aft_nothing));
  clear_sums<T>(before, work.block, static_cast<T>(-aft_nothing));
  for (int64_t c = 0; c < tile.lanes; c += width<T>) {
    auto exponent = is_direct ? splat<T>(static_cast<T>(-aft_nothing)) : load<T>(tile.shift + c);
    Vector<T> of_values{}, of_means{};
    for (int64_t i = tile.begin; i < tile.end; ++i) {
      const T *row = y + (i - tile.begin) * tile.columns + c;
      auto weight = splat<T>(work.beside[work.bias_index(unit, i)]);
      if (is_direct) {
        const auto largest = tile.largest_of_row(i, c), both = smaller<T>(exponent, largest);
        const auto decay = exponential(both - exponent);
        weight = exponential(both - largest);
        of_values *= decay;
        of_means *= decay;
        exponent = both;
      }
      of_values += weight * load<T>(row);
      of_means += weight * load<T>(row + tile.lanes);
    }
    for (const auto &to : {after, before}) {
      store<T>(to.exponent + c, exponent);
      store<T>(to.numerator + c, of_values);
      store<T>(to.denominator + c, of_means);
    }
  }
}

/// The backward pass of one chunk for some units: what they add to the gradients of the keys in their windows and of the biases.
template <typename T> struct WindowBackward {
  const AftWindowWork<T> &work;
  WindowTile<T> tile;
  int64_t rows, strips, turned_row;
  T *y;         // [rows, columns]
  T *turned;    // [columns, turned_row]: x
  T *found;     // [keys, columns]: of the products, then dv beside dk
  T *of_bias;   // by weight: [strips or 1, aft_strip, strip's columns]
  T *of_pairs;  // [rows or 1, taps]
  T *run;       // [columns]

  WindowBackward(const AftWindowWork<T> &work, Scratch &scratch, int64_t chunk)
      : work(work), tile(work, scratch, chunk), rows(tile.end - tile.begin), strips((rows + aft_strip - 1) / aft_strip),
        turned_row(padded<T>(tile.keys) + width<T> + aft_strip), y(scratch.take<T>(rows * tile.columns)),
        turned(scratch.zeros<T>(tile.columns * turned_row)), found(scratch.take<T>(tile.keys * tile.columns)),
        of_bias(scratch.zeros<T>((work.by_position ? strips : 1) * aft_strip * tile.strip_columns())),
        of_pairs(scratch.zeros<T>((work.by_position ? rows : 1) * work.taps())), run(scratch.take<T>(tile.columns)) {}

  static size_t bytes(const AftWindowWork<T> &work) {
    const int64_t columns = 2 * work.block, keys = work.chunk + work.taps(), strips = work.chunk / aft_strip + 1;
    const int64_t bias_columns = aft_strip + work.taps() + 16;
    return WindowTile<T>::bytes(work) +
           sizeof(T) * static_cast<size_t>(columns * (work.chunk + 2 * keys + 64) + strips * aft_strip * bias_columns +
                                           work.chunk * work.taps() + columns) + 1024;
  }

  void products() {
    transpose<T>(tile.keys, tile.columns, tile.x, tile.columns, turned, turned_row);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t r = s * aft_strip;
      T *sums = of_bias + (work.by_position ? s * aft_strip * tile.strip_columns() : 0);
      multiply<T>(std::min(aft_strip, rows - r), tile.strip_columns(), tile.columns, y + r * tile.columns, tile.columns, 1,
                  turned + r, turned_row, sums, tile.strip_columns(), true);
    }
    outside_of_windows();
    for_key_strips([&](int64_t j, int64_t count) {
      const int64_t from = std::max(tile.begin, j - work.right), end = std::min(tile.end, j + count + work.left);
      if (end <= from) return;
      multiply<T>(count, tile.columns, end - from, work.weight(tile.unit, from, j), 1, work.table_step() - 1,
                  y + (from - tile.begin) * tile.columns, tile.columns, found + (j - tile.first) * tile.columns, tile.columns,
                  true);
    });
    for (int64_t j = 0; j < tile.keys; ++j) {
      const T *x = tile.x + j * tile.columns;
      T *row = found + j * tile.columns;
      for (int64_t c = 0; c < tile.lanes; c += width<T>) {
        const auto of_values = load<T>(row + c), of_means = load<T>(row + tile.lanes + c), weight = load<T>(x + tile.lanes + c);
        store<T>(row + c, weight * of_values);
        store<T>(row + tile.lanes + c, load<T>(x + c) * of_values + weight * of_means);
      }
    }
  }

  template <typename Body> void for_key_strips(Body body) const {
    for (int64_t j = tile.first; j < tile.first + tile.keys; j += aft_strip)
      body(j, std::min(aft_strip, tile.first + tile.keys - j));
  }

  /// For each strip of keys, the chunk's rows that have none of them in a window or the strip's margin.
  void outside_of_windows() {
    const int64_t columns = tile.columns, count = (tile.keys + aft_strip - 1) / aft_strip;
    auto add = [&](int64_t i) { tile.add_row(y + (i - tile.begin) * columns, work.beside[work.bias_index(tile.unit, i)], run); };
    std::memset(static_cast<void *>(run), 0, sizeof(T) * static_cast<size_t>(columns));
    int64_t next = tile.end;
    for (int64_t s = count; s-- > 0;) { // rows behind
      const int64_t j = tile.first + s * aft_strip, keys = std::min(aft_strip, tile.keys - s * aft_strip);
      while (next > std::max(tile.begin, j + keys + work.left)) add(--next);
      for (int64_t r = 0; r < keys; ++r)
        std::memcpy(found + (s * aft_strip + r) * columns, run, sizeof(T) * static_cast<size_t>(columns));
    }
    if (work.causal) return;
    std::memset(static_cast<void *>(run), 0, sizeof(T) * static_cast<size_t>(columns));
    next = tile.begin;
    for (int64_t s = 0; s < count; ++s) { // rows before
      const int64_t j = tile.first + s * aft_strip, keys = std::min(aft_strip, tile.keys - s * aft_strip);
      while (next < std::min(tile.end, j - work.right)) add(next++);
      for (int64_t r = 0; r < keys; ++r) tile.add_row(run, T(1), found + (s * aft_strip + r) * columns);
    }
  }

  void pairs() {
    std::memset(static_cast<void *>(found), 0, sizeof(T) * static_cast<size_t>(tile.keys * tile.columns));
    for (int64_t i = tile.begin; i < tile.end; ++i) {
      const T *row = y + (i - tile.begin) * tile.columns;
      T *of_row = of_pairs + (work.by_position ? (i - tile.begin) * work.taps() : 0);
      for (int64_t c = 0; c < tile.lanes; c += width<T>) {
        const auto largest = tile.largest_of_row(i, c), of_values = load<T>(row + c), of_means = load<T>(row + tile.lanes + c);
        for (int64_t j = std::max<int64_t>(0, tile.first); j < tile.last_seen(i); ++j) {
          if (!work.is_real(tile.unit, j)) continue;
          const auto weight = tile.pair_weight(i, j, c, largest);
          T *to = found + (j - tile.first) * tile.columns + c;
          const auto of_key = weight * (load<T>(tile.key(j) + tile.lanes + c) * of_values + of_means);
          store<T>(to, load<T>(to) + weight * of_values);
          store<T>(to + tile.lanes, load<T>(to + tile.lanes) + of_key);
          const int64_t tap = j - i + work.left;
          if (tap >= 0 && tap < work.taps()) of_row[tap] += sum_of<T>(of_key);
        }
      }
    }
  }

  /// Adds what the queries of other chunks ask for: of a key that none of them has in its window.
  void add_asked(int64_t j) const {
    T *row = found + (j - tile.first) * tile.columns;
    auto add = [&](AftSums<T> asked) {
      for_vectors<T>(work.count(tile.unit), [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
        constexpr int n = decltype(vectors)::value;
        Vector<T> k[n], v[n];
        read_token<T, n>(work, tile.unit, j, c, left, k, v);
#pragma clang loop unroll(full)
        for (int i = 0; i < n; ++i) {
          const int64_t at = c + i * width<T>;
          const auto weight = exponential(k[i] - load<T>(asked.exponent + at)), of_values = load<T>(asked.numerator + at);
          store<T>(row + at, load<T>(row + at) + weight * of_values);
          const auto of_key = weight * (v[i] * of_values + load<T>(asked.denominator + at));
          store<T>(row + tile.lanes + at, load<T>(row + tile.lanes + at) + of_key);
        }
      });
    };
    if (tile.chunk + 1 < work.chunks && j < tile.end - work.left) add(work.at(work.asked, tile.unit, 0, tile.chunk));
    if (!work.causal && tile.chunk > 0 && j >= tile.begin + work.right) add(work.at(work.asked, tile.unit, 1, tile.chunk));
  }

  /// Chunks of even number come first and write; the others add to what is there already.
  void write_keys() const {
    const int64_t count = work.count(tile.unit);
    for (int64_t j = std::max<int64_t>(0, tile.first); j < std::min(work.length, tile.first + tile.keys); ++j) {
      const bool is_of_next = tile.chunk + 1 < work.chunks && j >= tile.end - work.left;
      const bool adds = tile.chunk % 2 && (j < tile.begin + work.right || is_of_next);
      const bool is_real = work.is_real(tile.unit, j);
      if (is_real) add_asked(j);
      T *row = found + (j - tile.first) * tile.columns;
      if (!is_real) std::memset(static_cast<void *>(row), 0, sizeof(T) * static_cast<size_t>(tile.columns));
      write_row_of(row, work.row(work.dv, tile.unit, j), count, adds);
      if (!work.shared_key) {
        write_row_of(row + tile.lanes, work.row(work.dk, tile.unit, j), count, adds);
        continue;
      }
      T sum = 0;
      for (int64_t c = 0; c < count; ++c) sum += row[tile.lanes + c];
      T *dk = work.dk.head(work.head(tile.unit)) + j * work.dk.row;
      *dk = adds ? *dk + sum : sum;
    }
  }
  static void write_row_of(const T *from, T *to, int64_t count, bool adds) {
    for_vectors<T>(count, [&](int64_t c, int64_t left, auto vectors) __attribute__((always_inline)) {
      constexpr int n = decltype(vectors)::value;
      Vector<T> x[n], there[n] = {};
      read_row<T, n>(from + c, n * width<T>, x);
      if (adds) read_row<T, n>(to + c, left, there);
#pragma clang loop unroll(full)
      for (int i = 0; i < n; ++i) x[i] += there[i];
      write_row<T, n>(to + c, left, x);
    });
  }

  /// The biases' gradients, of all units that were worked on.
  void write_bias(int64_t group) const {
    const int64_t taps = work.taps(), columns = tile.strip_columns();
    if (work.by_position) {
      for (int64_t r = 0; r < rows; ++r) {
        const T *weight = work.weight(tile.unit, tile.begin + r, tile.begin + r - work.left);
        const T *sums = of_bias + r * columns + r % aft_strip;
        T *to = work.dbias + (group * work.length + tile.begin + r) * taps;
        for (int64_t t = 0; t < taps; ++t) to[t] = weight[t] * sums[t] + of_pairs[r * taps + t];
      }
      return;
    }
    T *to = work.dbias + (tile.unit * work.chunks + tile.chunk) * taps;
    const T *weight = work.weight(tile.unit, tile.begin, tile.begin - work.left);
    for (int64_t t = 0; t < taps; ++t) {
      T sum = 0;
      for (int64_t r = 0; r < aft_strip; ++r) sum += of_bias[r * columns + r + t];
      to[t] = weight[t] * sum + of_pairs[t];
    }
  }
};

template <typename T> void aft_window_backward(const AftWindowWork<T> &work, int64_t group, int64_t chunk) {
  Scratch scratch(WindowBackward<T>::bytes(work));
  WindowBackward<T> pass(work, scratch, chunk);
  for (int64_t unit = work.units * group / work.groups; unit < work.units * (group + 1) / work.groups; ++unit) {
    pass.tile.choose(unit);
    read_slopes<T>(work, pass.tile, true, pass.y);
    pass.tile.read_keys();
    if (pass.tile.is_direct()) pass.pairs();
    else pass.products();
    pass.write_keys();
  }
  pass.write_bias(group);
}
