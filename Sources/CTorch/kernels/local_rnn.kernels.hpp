// The local RNN's kernels for one instruction set; included by for_each_isa.hpp inside its namespace.
//
// A block's windows are the rows of tall products. Their inputs, gates and states stay in the second-level cache while the
// weights, in strips, pass by.

/// c (+)= a b for b in strips: [depth, columns].
template <typename T>
void multiply_strips(int64_t rows, int64_t columns, int64_t depth, const T *a, int64_t a_row, const T *b, T *c, int64_t c_row,
                     bool accumulate) {
  constexpr int64_t deep = 512; // a strip of so many rows leaves room for a and c in the second-level cache
  for (int64_t k = 0; k < depth; k += deep)
    for (int64_t n = 0; n < columns; n += strip) {
      const int64_t wide = std::min(strip, columns - n);
      multiply<T>(rows, wide, std::min(deep, depth - k), a + k, a_row, 1, b + n * depth + k * wide, wide, c + n, c_row,
                  accumulate || k > 0);
    }
}

/// One token's step of a cell: `input` is W x with its bias, `product` U h or null at the first step, where h is zero.
template <typename T> struct Step {
  const T *input, *product, *before, *gates_before;
  T *after, *gates;
};

template <typename T, bool first> INLINE void step_gru(const LocalRnnWork<T> &work, const Step<T> &step) {
  const int64_t n = work.columns;
  for (int64_t c = 0; c < n; c += width<T>) {
    auto product = [&](int64_t gate) { return first ? Vector<T>{} : load<T>(step.product + gate * n + c); };
    const auto r = logistic<T>(load<T>(step.input + c) + product(0));
    const auto z = logistic<T>(load<T>(step.input + n + c) + product(1));
    const auto recurrent = load<T>(work.late_bias + c) + product(2);
    const auto fresh = hyperbolic_tangent(load<T>(step.input + 2 * n + c) + r * recurrent);
    const auto h = first ? Vector<T>{} : load<T>(step.before + c);
    store<T>(step.after + c, fresh + z * (h - fresh));
    store<T>(step.gates + c, r);
    store<T>(step.gates + n + c, z);
    store<T>(step.gates + 2 * n + c, fresh);
    store<T>(step.gates + 3 * n + c, recurrent);
  }
}

template <typename T, bool first> INLINE void step_lstm(const LocalRnnWork<T> &work, const Step<T> &step) {
  const int64_t n = work.columns;
  for (int64_t c = 0; c < n; c += width<T>) {
    auto sum = [&](int64_t gate) {
      return load<T>(step.input + gate * n + c) + (first ? Vector<T>{} : load<T>(step.product + gate * n + c));
    };
    const auto i = logistic<T>(sum(0)), f = logistic<T>(sum(1)), g = hyperbolic_tangent(sum(2)), o = logistic<T>(sum(3));
    const auto memory = i * g + (first ? Vector<T>{} : f * load<T>(step.gates_before + 4 * n + c));
    store<T>(step.gates + c, i);
    store<T>(step.gates + n + c, f);
    store<T>(step.gates + 2 * n + c, g);
    store<T>(step.gates + 3 * n + c, o);
    store<T>(step.gates + 4 * n + c, memory);
    store<T>(step.after + c, o * hyperbolic_tangent(memory));
  }
}

template <typename T, bool first> INLINE void step_plain(const LocalRnnWork<T> &work, const Step<T> &step) {
  for (int64_t c = 0; c < work.columns; c += width<T>)
    store<T>(step.after + c,
             hyperbolic_tangent(load<T>(step.input + c) + (first ? Vector<T>{} : load<T>(step.product + c))));
}

template <typename T, bool first> INLINE void take_step(const LocalRnnWork<T> &work, const Step<T> &step) {
  switch (work.cell) {
  case RecurrentCell::gru: return step_gru<T, first>(work, step);
  case RecurrentCell::lstm: return step_lstm<T, first>(work, step);
  case RecurrentCell::plain: return step_plain<T, first>(work, step);
  }
}

/// The inputs of a block, with zeros in the surplus columns.
template <typename T> void read_inputs(const LocalRnnWork<T> &work, const BlockPlace &place, T *inputs) {
  for (int64_t i = 0; i < place.inputs(); ++i) {
    T *row = inputs + i * work.row_stride();
    std::copy_n(work.x + place.sequence * work.x_batch + (place.first + i) * work.x_row, work.dim, row);
    std::fill(row + work.dim, row + work.columns, T(0));
  }
}

/// All steps of a block's windows. `projected` and `products` are memory for [inputs, gates] and [rows, gates].
template <typename T>
void take_steps(const LocalRnnWork<T> &work, const BlockPlace &place, const T *inputs, T *projected, T *products,
                const Trace<T> &trace) {
  const int64_t stride = work.gates_stride();
  for (int64_t i = 0; i < place.inputs(); ++i) std::copy_n(work.bias, work.all_columns(), projected + i * stride);
  multiply_strips<T>(place.inputs(), work.all_columns(), work.columns, inputs, work.row_stride(), work.input_up, projected, stride,
                     true);
  for (int64_t step = 0; step < work.window; ++step) {
    if (step > 0)
      multiply_strips<T>(place.rows, work.all_columns(), work.columns, trace.hidden_at(step - 1, 0), trace.hidden_row,
                         work.hidden_up, products, stride, false);
    for (int64_t row = 0; row < place.rows; ++row) {
      const int64_t token = place.start + row - (work.window - 1) + step; // before 0, a zero vector: the projection is the bias
      Step<T> one{token < 0 ? work.bias : projected + (token - place.first) * stride, products + row * stride,
                  trace.hidden_at(step - 1, row), trace.gates_at(step - 1, row), trace.hidden_at(step, row),
                  trace.gates_at(step, row)};
      if (step == 0) take_step<T, true>(work, one);
      else take_step<T, false>(work, one);
    }
  }
}

template <typename T> void local_rnn_forward(const LocalRnnWork<T> &work, int64_t index) {
  const BlockPlace place(work, index);
  const int64_t inputs = place.inputs(), rows = place.rows, trace_row = work.trace_stride() + work.row_stride();
  Scratch scratch(sizeof(T) * static_cast<size_t>(inputs * (work.row_stride() + work.gates_stride()) +
                                                  rows * (work.gates_stride() + trace_row)) + 512);
  T *x = scratch.take<T>(inputs * work.row_stride());
  T *projected = scratch.take<T>(inputs * work.gates_stride()), *products = scratch.take<T>(rows * work.gates_stride());
  T *gates = scratch.take<T>(rows * work.trace_stride()), *hidden = scratch.take<T>(rows * work.row_stride());
  Trace<T> trace{gates, hidden, work.trace_stride(), work.row_stride(), 0, 0};
  if (work.kept) trace = work.trace(work.kept + index * work.kept_size());
  read_inputs(work, place, x);
  take_steps(work, place, x, projected, products, trace);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(trace.hidden_at(work.window - 1, row), work.dim,
                work.out + (place.sequence * work.length + place.start + row) * work.dim);
}

/// The gradients of one token's step. `hidden` comes in as that of h after the step and leaves as the part of the one before
/// that does not pass through U; `memory` likewise for an LSTM's c. `product` and `input` are those of U h and of W x.
template <typename T> struct StepBack {
  const T *gates, *before, *gates_before, *after;
  T *hidden, *memory, *product, *input, *late;
};

template <typename T, bool first> INLINE void step_back_gru(const LocalRnnWork<T> &work, const StepBack<T> &step) {
  const int64_t n = work.columns;
  for (int64_t c = 0; c < n; c += width<T>) {
    const auto r = load<T>(step.gates + c), z = load<T>(step.gates + n + c), fresh = load<T>(step.gates + 2 * n + c);
    const auto recurrent = load<T>(step.gates + 3 * n + c), h = first ? Vector<T>{} : load<T>(step.before + c);
    const auto g = load<T>(step.hidden + c);
    const auto d_fresh = g * (T(1) - z) * (T(1) - fresh * fresh);
    const auto d_r = d_fresh * recurrent * r * (T(1) - r);
    const auto d_z = g * (h - fresh) * z * (T(1) - z);
    store<T>(step.hidden + c, g * z);
    store<T>(step.product + c, d_r);
    store<T>(step.product + n + c, d_z);
    store<T>(step.product + 2 * n + c, d_fresh * r);
    store<T>(step.input + c, load<T>(step.input + c) + d_r);
    store<T>(step.input + n + c, load<T>(step.input + n + c) + d_z);
    store<T>(step.input + 2 * n + c, load<T>(step.input + 2 * n + c) + d_fresh);
    store<T>(step.late + c, load<T>(step.late + c) + d_fresh * r);
  }
}

template <typename T, bool first> INLINE void step_back_lstm(const LocalRnnWork<T> &work, const StepBack<T> &step) {
  const int64_t n = work.columns;
  for (int64_t c = 0; c < n; c += width<T>) {
    const auto i = load<T>(step.gates + c), f = load<T>(step.gates + n + c), g = load<T>(step.gates + 2 * n + c);
    const auto o = load<T>(step.gates + 3 * n + c), bounded = hyperbolic_tangent(load<T>(step.gates + 4 * n + c));
    const auto d_h = load<T>(step.hidden + c);
    const auto d_c = load<T>(step.memory + c) + d_h * o * (T(1) - bounded * bounded);
    const auto c_before = first ? Vector<T>{} : load<T>(step.gates_before + 4 * n + c);
    const Vector<T> d[4] = {d_c * g * i * (T(1) - i), d_c * c_before * f * (T(1) - f), d_c * i * (T(1) - g * g),
                            d_h * bounded * o * (T(1) - o)};
    store<T>(step.memory + c, d_c * f);
    for (int64_t gate = 0; gate < 4; ++gate) {
      store<T>(step.product + gate * n + c, d[gate]);
      store<T>(step.input + gate * n + c, load<T>(step.input + gate * n + c) + d[gate]);
    }
  }
}

template <typename T> INLINE void step_back_plain(const LocalRnnWork<T> &work, const StepBack<T> &step) {
  for (int64_t c = 0; c < work.columns; c += width<T>) {
    const auto h = load<T>(step.after + c), d = load<T>(step.hidden + c) * (T(1) - h * h);
    store<T>(step.product + c, d);
    store<T>(step.input + c, load<T>(step.input + c) + d);
  }
}

template <typename T, bool first> INLINE void take_step_back(const LocalRnnWork<T> &work, const StepBack<T> &step) {
  switch (work.cell) {
  case RecurrentCell::gru: return step_back_gru<T, first>(work, step);
  case RecurrentCell::lstm: return step_back_lstm<T, first>(work, step);
  case RecurrentCell::plain: return step_back_plain<T>(work, step);
  }
}

/// Memory of a backward task, and the sums that it adds to.
template <typename T> struct BackwardMemory {
  T *x, *projected, *products, *hidden, *memory, *nothing, *trace;
  T *input_weight, *hidden_weight, *input_bias, *late;
};

/// All steps of a block's windows from the last to the first. Leaves the gradients of the projected inputs in `projected`.
template <typename T>
void take_steps_back(const LocalRnnWork<T> &work, const BlockPlace &place, const Trace<T> &trace, const BackwardMemory<T> &use) {
  const int64_t stride = work.gates_stride(), row_stride = work.row_stride();
  for (int64_t row = 0; row < place.rows; ++row) {
    const T *g = work.cotangent + place.sequence * work.cotangent_batch + (place.start + row) * work.cotangent_row;
    std::copy_n(g, work.dim, use.hidden + row * row_stride);
    std::fill_n(use.hidden + row * row_stride + work.dim, work.columns - work.dim, T(0));
  }
  std::fill_n(use.memory, work.cell == RecurrentCell::lstm ? place.rows * row_stride : 0, T(0));
  std::fill_n(use.projected, place.inputs() * stride, T(0));
  for (int64_t step = work.window - 1; step >= 0; --step) {
    for (int64_t row = 0; row < place.rows; ++row) {
      const int64_t token = place.start + row - (work.window - 1) + step;
      StepBack<T> one{trace.gates_at(step, row), trace.hidden_at(step - 1, row), trace.gates_at(step - 1, row),
                      trace.hidden_at(step, row), use.hidden + row * row_stride, use.memory + row * row_stride,
                      use.products + row * stride, token < 0 ? use.nothing : use.projected + (token - place.first) * stride,
                      use.late};
      if (step == 0) take_step_back<T, true>(work, one);
      else take_step_back<T, false>(work, one);
    }
    if (step == 0) continue;
    multiply<T>(work.all_columns(), work.columns, place.rows, use.products, 1, stride, trace.hidden_at(step - 1, 0),
                trace.hidden_row, use.hidden_weight, work.columns, true);
    multiply_strips<T>(place.rows, work.columns, work.all_columns(), use.products, stride, work.hidden_down, use.hidden, row_stride,
                       work.cell == RecurrentCell::gru);
  }
}

/// What the gradients of the projected inputs are for W, its bias and x; the rows of x become their gradients.
template <typename T>
void leave_block(const LocalRnnWork<T> &work, const BlockPlace &place, const BackwardMemory<T> &use, int64_t own_from, T *early) {
  const int64_t stride = work.gates_stride(), row_stride = work.row_stride(), inputs = place.inputs();
  for (int64_t i = 0; i < inputs; ++i)
    for (int64_t c = 0; c < work.all_columns(); c += width<T>)
      store<T>(use.input_bias + c, load<T>(use.input_bias + c) + load<T>(use.projected + i * stride + c));
  multiply<T>(work.all_columns(), work.columns, inputs, use.projected, 1, stride, use.x, row_stride, use.input_weight, work.columns,
              true);
  multiply_strips<T>(inputs, work.columns, work.all_columns(), use.projected, stride, work.input_down, use.x, row_stride, false);
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t token = place.first + i;
    const T *from = use.x + i * row_stride;
    T *to = token >= own_from ? work.dx + (place.sequence * work.length + token) * work.dim
                              : early + (work.reach() - own_from + token) * work.dim;
    if (token >= place.start) std::copy_n(from, work.dim, to);
    else
      for (int64_t c = 0; c < work.dim; ++c) to[c] += from[c];
  }
}

template <typename T> void local_rnn_backward(const LocalRnnWork<T> &work, int64_t task) {
  const int64_t most = work.block + work.reach(), rows = work.block, stride = work.gates_stride(), row_stride = work.row_stride();
  const int64_t again = work.kept ? 0 : work.kept_size();
  Scratch scratch(
      sizeof(T) * static_cast<size_t>(most * (row_stride + stride) + rows * (stride + 2 * row_stride) + stride + again) + 512);
  BackwardMemory<T> use{};
  use.x = scratch.take<T>(most * row_stride);
  use.projected = scratch.take<T>(most * stride), use.products = scratch.take<T>(rows * stride);
  use.hidden = scratch.take<T>(rows * row_stride), use.memory = scratch.take<T>(rows * row_stride);
  use.nothing = scratch.zeros<T>(stride), use.trace = scratch.take<T>(again);
  use.input_weight = work.input_weight_sum + task * work.matrix();
  use.hidden_weight = work.hidden_weight_sum + task * work.matrix();
  use.input_bias = work.input_bias_sum + task * work.all_columns();
  use.late = work.hidden_bias_sum + task * work.all_columns() + (work.gates() - 1) * work.columns;
  std::fill_n(use.input_weight, work.matrix(), T(0));
  std::fill_n(use.hidden_weight, work.matrix(), T(0));
  std::fill_n(use.input_bias, work.all_columns(), T(0));
  std::fill_n(work.hidden_bias_sum + task * work.all_columns(), work.all_columns(), T(0));
  T *early = work.early + task * work.reach() * work.dim;
  std::fill_n(early, work.reach() * work.dim, T(0));
  const int64_t first = work.first_block(task);
  const BlockPlace beginning(work, first);
  for (int64_t index = first; index < work.first_block(task + 1); ++index) {
    const BlockPlace place(work, index);
    const auto trace = work.trace(work.kept ? work.kept + index * work.kept_size() : use.trace);
    read_inputs(work, place, use.x);
    if (!work.kept) take_steps(work, place, use.x, use.projected, use.products, trace);
    take_steps_back(work, place, trace, use);
    leave_block(work, place, use, place.sequence == beginning.sequence ? beginning.start : 0, early);
  }
  for (int64_t c = 0; c < work.all_columns(); ++c) use.input_bias[c] += use.nothing[c];
  // Where both biases are added to the same sum, their gradients are the same.
  const int64_t shared = work.cell == RecurrentCell::gru ? 2 * work.columns : work.all_columns();
  std::copy_n(use.input_bias, shared, work.hidden_bias_sum + task * work.all_columns());
}
