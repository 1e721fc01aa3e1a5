// Products of small matrices that lie in the caches; included by for_each_isa.hpp inside an instruction set's namespace.

/// Rows and vectors of columns that a tile of the product keeps in registers.
constexpr int tile_rows = 6;
constexpr int tile_vectors = vector_bytes == 64 ? 4 : 2;

/// One tile: c[m, n] (+)= Σ_k a[m, k] b[k, n] for `rows` rows and `vectors` vectors of columns.
template <typename T, int rows, int vectors>
INLINE void product_tile(int64_t depth, const T *a, int64_t a_row, int64_t a_column, const T *b, int64_t b_row, T *c, int64_t c_row,
                         bool accumulate) {
  Vector<T> sum[rows][vectors];
#pragma clang loop unroll(full)
  for (int m = 0; m < rows; ++m)
#pragma clang loop unroll(full)
    for (int n = 0; n < vectors; ++n) sum[m][n] = accumulate ? load<T>(c + m * c_row + n * width<T>) : Vector<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> right[vectors];
#pragma clang loop unroll(full)
    for (int n = 0; n < vectors; ++n) right[n] = load<T>(b + k * b_row + n * width<T>);
#pragma clang loop unroll(full)
    for (int m = 0; m < rows; ++m) {
      const auto left = splat<T>(a[m * a_row + k * a_column]);
#pragma clang loop unroll(full)
      for (int n = 0; n < vectors; ++n) sum[m][n] += left * right[n];
    }
  }
#pragma clang loop unroll(full)
  for (int m = 0; m < rows; ++m)
#pragma clang loop unroll(full)
    for (int n = 0; n < vectors; ++n) store<T>(c + m * c_row + n * width<T>, sum[m][n]);
}

template <typename T, int vectors>
INLINE void product_columns(int64_t rows, int64_t depth, const T *a, int64_t a_row, int64_t a_column, const T *b, int64_t b_row,
                            T *c, int64_t c_row, bool accumulate) {
  int64_t m = 0;
  for (; m + tile_rows <= rows; m += tile_rows)
    product_tile<T, tile_rows, vectors>(depth, a + m * a_row, a_row, a_column, b, b_row, c + m * c_row, c_row, accumulate);
  a += m * a_row;
  c += m * c_row;
  switch (rows - m) {
  case 5: return product_tile<T, 5, vectors>(depth, a, a_row, a_column, b, b_row, c, c_row, accumulate);
  case 4: return product_tile<T, 4, vectors>(depth, a, a_row, a_column, b, b_row, c, c_row, accumulate);
  case 3: return product_tile<T, 3, vectors>(depth, a, a_row, a_column, b, b_row, c, c_row, accumulate);
  case 2: return product_tile<T, 2, vectors>(depth, a, a_row, a_column, b, b_row, c, c_row, accumulate);
  case 1: return product_tile<T, 1, vectors>(depth, a, a_row, a_column, b, b_row, c, c_row, accumulate);
  default: return;
  }
}

/// c[m, n] (+)= Σ_k a[m, k] b[k, n].
///
/// a is read one number at a time and may be strided both ways (a transposed matrix swaps the strides). The rows of b and c
/// are contiguous, and `columns` is a multiple of the vector's width: pad them.
template <typename T>
__attribute__((noinline)) void multiply(int64_t rows, int64_t columns, int64_t depth, const T *a, int64_t a_row, int64_t a_column,
                                        const T *b, int64_t b_row, T *c, int64_t c_row, bool accumulate) {
  constexpr int step = tile_vectors * width<T>;
  int64_t n = 0;
  for (; n + step <= columns; n += step)
    product_columns<T, tile_vectors>(rows, depth, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  switch ((columns - n) / width<T>) {
  case 3: return product_columns<T, 3>(rows, depth, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  case 2: return product_columns<T, 2>(rows, depth, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  case 1: return product_columns<T, 1>(rows, depth, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  default: return;
  }
}

/// The lower and the upper halves of x and y, their numbers in turn.
template <typename T, size_t... i> INLINE Vector<T> interleaved_lower(Vector<T> x, Vector<T> y, std::index_sequence<i...>) {
  return __builtin_shufflevector(x, y, (i / 2 + i % 2 * width<T>)...);
}
template <typename T, size_t... i> INLINE Vector<T> interleaved_upper(Vector<T> x, Vector<T> y, std::index_sequence<i...>) {
  return __builtin_shufflevector(x, y, (width<T> / 2 + i / 2 + i % 2 * width<T>)...);
}

/// A square of as many rows as a vector is wide: to[c, r] = from[r, c]. Shuffling the halves of the rows into each other as
/// often as two divides the width moves every number to its place.
template <typename T> INLINE void transpose_square(const T *from, int64_t from_row, T *to, int64_t to_row) {
  constexpr int n = width<T>;
  constexpr auto lanes = std::make_index_sequence<n>();
  Vector<T> rows[n], mixed[n];
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) rows[i] = load<T>(from + i * from_row);
#pragma clang loop unroll(full)
  for (int stage = 1; stage < n; stage *= 2) {
#pragma clang loop unroll(full)
    for (int i = 0; i < n / 2; ++i) {
      mixed[2 * i] = interleaved_lower<T>(rows[i], rows[i + n / 2], lanes);
      mixed[2 * i + 1] = interleaved_upper<T>(rows[i], rows[i + n / 2], lanes);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) rows[i] = mixed[i];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < n; ++i) store<T>(to + i * to_row, rows[i]);
}

/// to[c, r] = from[r, c]; the columns of `to` from `rows` to `to_row` are left as they are.
template <typename T>
__attribute__((noinline)) void transpose(int64_t rows, int64_t columns, const T *from, int64_t from_row, T *to, int64_t to_row) {
  constexpr int n = width<T>;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t r = 0; r < whole_rows; r += n)
    for (int64_t c = 0; c < whole_columns; c += n)
      transpose_square<T>(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
}
