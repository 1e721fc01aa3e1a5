// The operations of step programs that go on from a state channel by channel; see step_program.cpp.

/// s = input x + decay s,  y = silu(Σ output s + ω x), with `rows` numbers s for each channel.
inline void step_moving_average(const StepOperation &o, float *memory, int64_t first, int64_t last) {
  const float *input = o.weight, *decay = input + o.rows * o.columns, *output = decay + o.rows * o.columns;
  const float *omega = output + o.rows * o.columns;
  for (int64_t c = first; c < last; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - c);
    const auto x = load_first<float>(memory + o.x + c, n);
    auto sum = load_first<float>(omega + c, n) * x;
    for (int64_t at = c; at < o.rows * o.columns; at += o.columns) {
      auto s = load_first<float>(memory + o.s + at, n) * load_first<float>(decay + at, n);
      s += load_first<float>(input + at, n) * x;
      store_first<float>(memory + o.s + at, s, n);
      sum += load_first<float>(output + at, n) * s;
    }
    store_first<float>(memory + o.y + c, activated(CTORCH_STEP_SILU, sum), n);
  }
}

/// What a recurrent cell holds.
struct CellState {
  Floats h, c;
};

/// One step of a cell from what its gates get from the input and from h; `gate` gives these two.
template <typename Gate> INLINE CellState next_state(int32_t cell, CellState before, Gate gate) {
  auto logistic_of = [&](int i) __attribute__((always_inline)) { return logistic<float>(gate(i).input + gate(i).hidden); };
  auto tangent_of = [&](int i) __attribute__((always_inline)) { return hyperbolic_tangent(gate(i).input + gate(i).hidden); };
  if (cell == CTORCH_STEP_GRU) {
    const auto candidate = hyperbolic_tangent(gate(2).input + logistic_of(0) * gate(2).hidden);
    return {candidate + logistic_of(1) * (before.h - candidate), {}};
  }
  if (cell == CTORCH_STEP_LSTM) {
    const auto c = logistic_of(1) * before.c + logistic_of(0) * tangent_of(2);
    return {logistic_of(3) * hyperbolic_tangent(c), c};
  }
  return {tangent_of(0), {}};
}

/// All windows go a token further: the state after i + 1 tokens comes from that after i tokens, the oldest window's is y. From
/// the oldest on, since each takes the place of the next.
inline void step_cell(const StepOperation &o, float *memory, int64_t first, int64_t last) {
  struct Parts {
    Floats input, hidden;
  };
  for (int64_t c = first; c < last; c += width<float>) {
    const int64_t n = std::min<int64_t>(width<float>, last - c);
    for (int64_t age = o.rows - 1; age >= 0; --age) {
      const float *hidden = age == 0 ? o.bias : memory + o.k + (age - 1) * o.channels;
      const int64_t from = (age - 1) * o.columns + c, to = age * o.columns + c;
      CellState state{};
      if (age > 0) state.h = load_first<float>(memory + o.s + from, n);
      if (age > 0 && o.p >= 0) state.c = load_first<float>(memory + o.p + from, n);
      state = next_state(o.choice, state, [&](int i) __attribute__((always_inline)) {
        const int64_t at = i * o.columns + c;
        return Parts{load_first<float>(memory + o.x + at, n), load_first<float>(hidden + at, n)};
      });
      const bool is_complete = age == o.rows - 1;
      store_first<float>(is_complete ? memory + o.y + c : memory + o.s + to, state.h, n);
      if (!is_complete && o.p >= 0) store_first<float>(memory + o.p + to, state.c, n);
    }
  }
}

inline void step_recurrence(const StepOperation &o, float *memory, int64_t piece) {
  const int64_t first = piece * o.channels_at_once, last = std::min(o.columns, first + o.channels_at_once);
  if (o.kind == StepKind::cell) return step_cell(o, memory, first, last);
  step_moving_average(o, memory, first, last);
}
