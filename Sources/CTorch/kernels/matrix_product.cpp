// Products of large matrices: b in panels as wide as a tile, a tile of c in registers, blocks of a and c in the second cache.
//
// What is tall and meets a small matrix (tokens by weights) has that matrix packed once, for all tasks to read. What is deep
// (the gradient of weights, a sum over tokens) is cut along its depth as well; the sums of the segments are added in their
// order. No block depends on the number of threads.
#include "matrix_product.hpp"

#define KERNELS "matrix_product.kernels.hpp"
#include "for_each_isa.hpp"

namespace ctorch {

/// Plain loops.
namespace reference {

template <typename T> int64_t product_panel() { return 1; }
template <typename T> void pack_shared_panel(const ProductWork<T> &, int64_t, int64_t) {}
template <typename T> void add_segments(const ProductWork<T> &, int64_t, int64_t) {}

/// The first block does it all.
template <typename T> void product_block(const ProductWork<T> &work, int64_t row_index, int64_t column_index, int64_t segment) {
  if (row_index + column_index + segment > 0) return;
  for (int64_t m = 0; m < work.rows; ++m) {
    T row_sum = work.row_sums && work.accumulate ? work.row_sums[m] : T(0);
    for (int64_t k = 0; k < work.depth; ++k) row_sum += work.a[m * work.a_row + k * work.a_column];
    if (work.row_sums) work.row_sums[m] = row_sum;
    for (int64_t n = 0; n < work.columns; ++n) {
      const int64_t at = m * work.c_row + n;
      T sum = work.accumulate ? work.c[at] : T(0);
      for (int64_t k = 0; k < work.depth; ++k)
        sum += work.a[m * work.a_row + k * work.a_column] * work.b[k * work.b_row + n * work.b_column];
      if (work.bias) sum += work.bias[n];
      if (work.added) sum += work.added[at];
      if (work.activation_input) {
        sum *= slope(work.nonlinearity, work.activation_input[at]);
        work.activated[at] = apply(work.nonlinearity, work.activation_input[at]);
      } else if (work.activated) {
        work.activated[at] = apply(work.nonlinearity, sum);
      }
      work.c[at] = sum;
    }
  }
}

} // namespace reference

namespace {

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

/// The size of equal pieces, none above `largest`.
int64_t even(int64_t n, int64_t largest) { return divided(n, divided(n, largest)); }

constexpr int64_t depth_at_once = 256, enough_tasks = 16;

} // namespace

template <typename T> void product(ProductWork<T> work) {
  if (work.rows == 0 || work.columns == 0) return;
  const int64_t panel = DISPATCH(product_panel<T>);
  work.padded_columns = divided(work.columns, panel) * panel;
  work.depth_block = even(std::max<int64_t>(work.depth, 1), depth_at_once);
  work.segment_depth = std::max<int64_t>(work.depth, 1);
  const bool ends = work.bias || work.added || work.activated;
  const bool is_deep = !ends && work.depth >= 4 * depth_at_once && work.depth > work.rows;
  at::Tensor panels, partial;
  auto memory = [](at::Tensor &owner, int64_t count) {
    owner = at::empty({count}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    return owner.mutable_data_ptr<T>();
  };
  if (is_deep) {
    work.row_block = even(work.rows, 128);
    work.column_block = std::min(work.padded_columns, divided(512, panel) * panel);
    const int64_t blocks = work.row_blocks() * work.column_blocks();
    work.segments = std::min(divided(enough_tasks / 2, blocks), work.depth / (2 * depth_at_once));
    work.segment_depth = divided(divided(work.depth, work.segments), work.depth_block) * work.depth_block;
    work.segments = divided(work.depth, work.segment_depth);
    if (work.segments > 1) work.partial = memory(partial, work.segments * work.partial_size());
  } else {
    work.row_block = divided(even(work.rows, 96), 6) * 6; // whole tiles
    work.column_block = work.padded_columns;
    const int64_t parts = std::min(divided(enough_tasks, work.row_blocks()), work.padded_columns / panel);
    work.column_block = divided(work.padded_columns / panel, parts) * panel;
    if (work.row_blocks() > 1) work.panels = memory(panels, work.padded_columns * work.depth);
  }
  if (work.panels) {
    const int64_t across = work.padded_columns / panel;
    for_each_task(divided(work.depth, work.depth_block) * across,
                  [&](int64_t task) { DISPATCH(pack_shared_panel<T>, work, task / across, task % across); });
  }
  const int64_t across = work.column_blocks(), blocks = work.row_blocks() * across;
  for_each_task(blocks * work.segments, [&](int64_t task) {
    DISPATCH(product_block<T>, work, task % blocks / across, task % across, task / blocks);
  });
  if (!work.partial || active_isa() == Isa::reference) return;
  const int64_t rows = even(work.rows, 64);
  for_each_task(divided(work.rows, rows),
                [&](int64_t task) { DISPATCH(add_segments<T>, work, task * rows, std::min(rows, work.rows - task * rows)); });
}

template void product<float>(ProductWork<float>);
template void product<double>(ProductWork<double>);

bool products_are_faster(int64_t rows, int64_t columns, int64_t depth) {
#if defined(__x86_64__)
  static const bool is_amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return is_amd && active_isa() == Isa::avx512 && rows >= 48 && columns >= 16 && depth >= 16 && rows * columns * depth >= 1 << 20;
#else
  (void)rows, (void)columns, (void)depth;
  return false;
#endif
}

} // namespace ctorch
