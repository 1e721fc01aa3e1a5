// The backward pass of AFT with a bias in a window for one instruction set; see aft.cpp for the equations and the names.
#include "aft_window.kernels.hpp"

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
