// What the local RNN's kernels work on; see local_rnn.cpp for the equations.
#pragma once

#include "team.hpp"

namespace ctorch {

enum class RecurrentCell { gru, lstm, plain };

constexpr int64_t gates_of(RecurrentCell cell) { return cell == RecurrentCell::gru ? 3 : cell == RecurrentCell::lstm ? 4 : 1; }

/// Rows of what a step leaves for the backward pass besides h: r, z, n, U_n h + b of a GRU; i, f, g, o, c of an LSTM.
constexpr int64_t traces_of(RecurrentCell cell) { return cell == RecurrentCell::gru ? 4 : cell == RecurrentCell::lstm ? 5 : 0; }

/// A weight matrix as the products read it: strips of so many columns one after the other, each with contiguous rows.
constexpr int64_t strip = 64;

/// The row stride of a matrix in scratch memory: a multiple of 16 numbers, and an odd one, so that the rows of a column do not
/// all fall into the same few sets of a cache.
constexpr int64_t spread(int64_t columns) {
  const int64_t sixteens = (columns + 15) / 16;
  return (sixteens + (sixteens + 1) % 2) * 16;
}

/// What the steps of a block leave: `hidden` is h after each step, `gates` what `traces_of` says. Strides of 0 between the steps
/// keep the last one only.
template <typename T> struct Trace {
  T *gates, *hidden;
  int64_t gates_row, hidden_row, gates_step, hidden_step;

  T *gates_at(int64_t step, int64_t row) const { return gates + step * gates_step + row * gates_row; }
  T *hidden_at(int64_t step, int64_t row) const { return hidden + step * hidden_step + row * hidden_row; }
};

/// One pass over x [batch, length, dim]. Sequences are cut into blocks of tokens, whose windows go forward together; forward, a
/// block is a task. Backward, a task is a run of blocks, since each task has sums of the weights' gradients of its own.
template <typename T> struct LocalRnnWork {
  RecurrentCell cell;
  int64_t batch, length, dim, window;
  int64_t columns; // dim, rounded up to 16: the columns of a gate
  int64_t block;   // tokens of a block
  int64_t tasks;
  const T *x, *cotangent;
  int64_t x_batch, x_row, cotangent_batch, cotangent_row;
  T *out, *dx; // contiguous
  const T *input_weight, *hidden_weight, *input_bias, *hidden_bias; // as the caller gave them, contiguous

  // Of `columns` columns a gate, the surplus being zeros.
  const T *bias;      // what every projected input gets: both biases, but for U_n h's of a GRU
  const T *late_bias; // that one
  const T *input_up, *hidden_up;     // strips of Wᵀ and Uᵀ, [columns, gates · columns]
  const T *input_down, *hidden_down; // strips of W and U, [gates · columns, columns]

  T *kept; // [batch, blocks, kept_size] or null: then the steps are taken again
  T *input_weight_sum, *hidden_weight_sum; // [tasks, gates · columns, columns]
  T *input_bias_sum, *hidden_bias_sum;     // [tasks, gates · columns]
  T *early; // [tasks, reach, dim]: gradients of the tokens before a task's first

  int64_t gates() const { return gates_of(cell); }
  int64_t all_columns() const { return gates() * columns; }
  int64_t matrix() const { return all_columns() * columns; }
  int64_t blocks() const { return (length + block - 1) / block; }
  /// Tokens before a block that its windows may contain.
  int64_t reach() const { return std::min(window - 1, length); }
  int64_t row_stride() const { return spread(columns); }
  int64_t gates_stride() const { return spread(all_columns()); }
  int64_t trace_stride() const { return traces_of(cell) ? spread(traces_of(cell) * columns) : 0; }
  int64_t kept_size() const { return window * block * (trace_stride() + row_stride()); }
  Trace<T> trace(T *memory) const {
    const int64_t gates_step = block * trace_stride(), hidden_step = block * row_stride();
    return {memory, memory + window * gates_step, trace_stride(), row_stride(), gates_step, hidden_step};
  }
  /// The first of the blocks, counted through the batch, that a task does.
  int64_t first_block(int64_t task) const { return batch * blocks() * task / tasks; }
};

/// Where a block lies.
struct BlockPlace {
  int64_t sequence, start, rows;
  int64_t first; // the first token that its windows contain

  template <typename T> BlockPlace(const LocalRnnWork<T> &work, int64_t index) {
    sequence = index / work.blocks();
    start = index % work.blocks() * work.block;
    rows = std::min(work.block, work.length - start);
    first = std::max<int64_t>(0, start - (work.window - 1));
  }
  /// Tokens from `first` to the last.
  int64_t inputs() const { return start + rows - first; }
};

} // namespace ctorch
