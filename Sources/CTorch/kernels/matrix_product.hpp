// What the products of large matrices work on; see matrix_product.cpp.
#pragma once

#include "nonlinearity.hpp"
#include "team.hpp"

namespace ctorch {

/// c[m, n] (+)= Σ_k a[m, k] b[k, n] + bias[n] + added[m, n], cut into blocks of rows, of columns and of depth.
///
/// a and b may be strided, one of their strides being 1; the rows of c are contiguous.
template <typename T> struct ProductWork {
  int64_t rows, columns, depth;
  const T *a;
  int64_t a_row, a_column;
  const T *b;
  int64_t b_row, b_column;
  T *c;
  int64_t c_row;
  bool accumulate = false;
  const T *bias = nullptr;  // [columns]
  const T *added = nullptr; // laid out as c
  Nonlinearity nonlinearity = Nonlinearity::identity;
  T *activated = nullptr;       // f(c), laid out as c
  const T *activation_input = nullptr; // u, laid out as c: c becomes c f'(u), and `activated` f(u)
  T *row_sums = nullptr;        // [rows] (+)= Σ_k a[m, k]

  int64_t row_block = 0, column_block = 0, depth_block = 0;
  int64_t segments = 1, segment_depth = 0; // of the depth, each summed by itself
  T *panels = nullptr;                 // b in panels, for all to read; otherwise each task packs its own
  T *partial = nullptr;                // [segments, rows, columns], and the row sums behind each
  int64_t padded_columns = 0;          // a whole number of panels

  int64_t row_blocks() const { return (rows + row_block - 1) / row_block; }
  int64_t column_blocks() const { return (columns + column_block - 1) / column_block; }
  int64_t partial_size() const { return rows * columns + rows; }
};

/// Computes the product on the team of threads. The blocks depend on the sizes alone.
template <typename T> void product(ProductWork<T> work);

/// Whether this machine's products beat LibTorch's: on AMD's processors MKL leaves the longer vectors unused.
bool products_are_faster(int64_t rows, int64_t columns, int64_t depth);

} // namespace ctorch
