// Blocks of large products; included by for_each_isa.hpp inside an instruction set's namespace.
#include "nonlinearity.kernels.hpp"

template <typename T> constexpr int64_t panel = tile_vectors * width<T>;

template <typename T> int64_t product_panel() { return panel<T>; }

/// to[k, n] = b[k, n] for n below `columns`, zeros up to the panel's width.
template <typename T> void pack_panel(int64_t depth, int64_t columns, const T *b, int64_t b_row, int64_t b_column, T *to) {
  if (b_column == 1 && columns == panel<T>) {
    for (int64_t k = 0; k < depth; ++k)
      for (int n = 0; n < tile_vectors; ++n) store<T>(to + k * panel<T> + n * width<T>, load<T>(b + k * b_row + n * width<T>));
    return;
  }
  if (columns < panel<T>) std::memset(static_cast<void *>(to), 0, sizeof(T) * static_cast<size_t>(depth * panel<T>));
  if (b_column == 1)
    for (int64_t k = 0; k < depth; ++k) std::memcpy(to + k * panel<T>, b + k * b_row, sizeof(T) * static_cast<size_t>(columns));
  else
    transpose<T>(columns, depth, b, b_column, to, panel<T>);
}

/// One panel of the shared copy of b: panels of a block of depth lie one after the other.
template <typename T> void pack_shared_panel(const ProductWork<T> &work, int64_t block, int64_t index) {
  const int64_t k = block * work.depth_block, depth = std::min(work.depth_block, work.depth - k), n = index * panel<T>;
  pack_panel<T>(depth, std::min(panel<T>, work.columns - n), work.b + k * work.b_row + n * work.b_column, work.b_row, work.b_column,
                work.panels + k * work.padded_columns + n * depth);
}

/// Rows of a whose columns are contiguous, as tiles [k, tile_rows].
template <typename T> void pack_rows(int64_t rows, int64_t depth, const T *a, int64_t a_column, T *to) {
  const int64_t whole = rows / tile_rows * tile_rows;
  for (int64_t k = 0; k < depth; ++k, a += a_column) {
    for (int64_t m = 0; m < whole; m += tile_rows) std::memcpy(to + m * depth + k * tile_rows, a + m, sizeof(T) * tile_rows);
    for (int64_t m = whole; m < rows; ++m) to[whole * depth + k * tile_rows + m - whole] = a[m];
  }
}

template <typename T, int vectors>
void packed_columns(int64_t rows, int64_t depth, const T *a, const T *b, T *c, int64_t c_row, bool accumulate) {
  for (; rows >= tile_rows; rows -= tile_rows, a += tile_rows * depth, c += tile_rows * c_row)
    product_tile<T, tile_rows, vectors>(depth, a, 1, tile_rows, b, panel<T>, c, c_row, accumulate);
  if (rows > 0) product_columns<T, vectors>(rows, depth, a, 1, tile_rows, b, panel<T>, c, c_row, accumulate);
}

/// `columns` up to a panel's, a multiple of the width.
template <typename T>
void multiply_packed(int64_t rows, int64_t columns, int64_t depth, const T *a, const T *b, T *c, int64_t c_row, bool accumulate) {
  switch (columns / width<T>) {
  case 4: return packed_columns<T, 4>(rows, depth, a, b, c, c_row, accumulate);
  case 3: return packed_columns<T, 3>(rows, depth, a, b, c, c_row, accumulate);
  case 2: return packed_columns<T, 2>(rows, depth, a, b, c, c_row, accumulate);
  default: return packed_columns<T, 1>(rows, depth, a, b, c, c_row, accumulate);
  }
}

/// What comes on top of one row of a panel once its sum is complete.
template <typename T, bool whole> INLINE void finish_vector(const ProductWork<T> &work, int64_t at, int64_t n, int64_t lanes) {
  auto get = [&](const T *p) { return whole ? load<T>(p) : load_first<T>(p, lanes); };
  auto put = [&](T *p, Vector<T> v) { whole ? store<T>(p, v) : store_first<T>(p, v, lanes); };
  auto c = get(work.c + at);
  if (work.bias) c += get(work.bias + n);
  if (work.added) c += get(work.added + at);
  Vector<T> slope;
  if (work.activation_input) {
    put(work.activated + at, nonlinear<true, T>(work.nonlinearity, get(work.activation_input + at), slope));
    c *= slope;
  } else if (work.activated) {
    put(work.activated + at, nonlinear<false, T>(work.nonlinearity, c, slope));
  }
  put(work.c + at, c);
}

template <typename T> void finish(const ProductWork<T> &work, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  if (!work.bias && !work.added && !work.activated) return;
  for (int64_t m = row; m < row + rows; ++m) {
    int64_t n = column;
    for (; n + width<T> <= column + columns; n += width<T>) finish_vector<T, true>(work, m * work.c_row + n, n, width<T>);
    if (n < column + columns) finish_vector<T, false>(work, m * work.c_row + n, n, column + columns - n);
  }
}

/// Σ_k a[m, k] where the columns of a are contiguous.
template <typename T> void add_row_sums(int64_t rows, int64_t depth, const T *a, int64_t a_column, T *sums) {
  for (int64_t k = 0; k < depth; ++k, a += a_column) {
    int64_t m = 0;
    for (; m + width<T> <= rows; m += width<T>) store<T>(sums + m, load<T>(sums + m) + load<T>(a + m));
    for (; m < rows; ++m) sums[m] += a[m];
  }
}

/// One block of rows and columns, over one segment of the depth.
template <typename T> void product_block(const ProductWork<T> &work, int64_t row_index, int64_t column_index, int64_t segment) {
  const int64_t row = row_index * work.row_block, rows = std::min(work.row_block, work.rows - row);
  const int64_t column = column_index * work.column_block, last_column = std::min(work.columns, column + work.column_block);
  const int64_t first = segment * work.segment_depth, last = std::min(work.depth, first + work.segment_depth);
  const bool packs_rows = work.a_column != 1;
  const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows * tile_rows;
  Scratch scratch(sizeof(T) * static_cast<size_t>((packs_rows ? row_tiles * work.depth_block : 0) + rows * panel<T> +
                                                  (work.panels ? 0 : panel<T> * work.depth_block)) + 256);
  T *row_tile = packs_rows ? scratch.take<T>(row_tiles * work.depth_block) : nullptr;
  T *own_panel = work.panels ? nullptr : scratch.take<T>(panel<T> * work.depth_block);
  T *edge = scratch.take<T>(rows * panel<T>);
  T *c = work.partial ? work.partial + segment * work.partial_size() : work.c;
  const int64_t c_row = work.partial ? work.columns : work.c_row;
  T *sums = column_index > 0 || !work.row_sums ? nullptr : (work.partial ? c + work.rows * work.columns : work.row_sums) + row;
  const bool adds = work.accumulate && !work.partial;
  if (sums && !adds) std::memset(static_cast<void *>(sums), 0, sizeof(T) * static_cast<size_t>(rows));
  for (int64_t k = first; k < last; k += work.depth_block) {
    const int64_t depth = std::min(work.depth_block, last - k);
    const bool accumulate = k > first || adds;
    const T *a = work.a + row * work.a_row + k * work.a_column;
    if (packs_rows) pack_rows<T>(rows, depth, a, work.a_column, row_tile);
    if (sums) add_row_sums<T>(rows, depth, a, work.a_column, sums);
    for (int64_t n = column; n < last_column; n += panel<T>) {
      const int64_t columns = std::min(panel<T>, last_column - n), padded_columns = padded<T>(columns);
      const T *b = work.panels + k * work.padded_columns + n * depth;
      if (!work.panels) {
        pack_panel<T>(depth, columns, work.b + k * work.b_row + n * work.b_column, work.b_row, work.b_column, own_panel);
        b = own_panel;
      }
      T *to = c + row * c_row + n;
      const bool at_edge = padded_columns != columns;
      const size_t edge_bytes = sizeof(T) * static_cast<size_t>(columns);
      if (at_edge && accumulate)
        for (int64_t m = 0; m < rows; ++m) std::memcpy(edge + m * panel<T>, to + m * c_row, edge_bytes);
      T *target = at_edge ? edge : to;
      const int64_t target_row = at_edge ? panel<T> : c_row;
      if (packs_rows)
        multiply_packed<T>(rows, padded_columns, depth, row_tile, b, target, target_row, accumulate);
      else
        multiply<T>(rows, padded_columns, depth, a, work.a_row, 1, b, panel<T>, target, target_row, accumulate);
      if (at_edge)
        for (int64_t m = 0; m < rows; ++m) std::memcpy(to + m * c_row, edge + m * panel<T>, edge_bytes);
      if (k + depth == last && !work.partial) finish<T>(work, row, rows, n, columns);
    }
  }
}

/// Adds up the segments, in their order, for a range of rows.
template <typename T> void add_segments(const ProductWork<T> &work, int64_t row, int64_t rows) {
  for (int64_t m = row; m < row + rows; ++m) {
    T *to = work.c + m * work.c_row;
    const T *from = work.partial + m * work.columns;
    int64_t n = 0;
    for (; n + width<T> <= work.columns; n += width<T>) {
      auto sum = work.accumulate ? load<T>(to + n) : Vector<T>{};
      for (int64_t s = 0; s < work.segments; ++s) sum += load<T>(from + s * work.partial_size() + n);
      store<T>(to + n, sum);
    }
    for (; n < work.columns; ++n) {
      T sum = work.accumulate ? to[n] : T(0);
      for (int64_t s = 0; s < work.segments; ++s) sum += from[s * work.partial_size() + n];
      to[n] = sum;
    }
    if (!work.row_sums) continue;
    if (!work.accumulate) work.row_sums[m] = 0;
    for (int64_t s = 0; s < work.segments; ++s)
      work.row_sums[m] += work.partial[s * work.partial_size() + work.rows * work.columns + m];
  }
}
