// Gates for one instruction set; see gates.cpp for the equations.
#include "nonlinearity.kernels.hpp"

/// Calls body(place, numbers) for a block's vectors, of which the last may be shorter.
template <typename T, typename Body> INLINE void gate_vectors(int64_t count, int64_t task, Body body) {
  const int64_t end = std::min(count, (task + 1) * gate_block);
  int64_t i = task * gate_block;
  for (; i + width<T> <= end; i += width<T>) body(i, static_cast<int64_t>(width<T>));
  if (i < end) body(i, end - i);
}

template <typename T> void gated_product_block(const GatedProductWork<T> &work, int64_t task) {
  gate_vectors<T>(work.count, task, [&](int64_t i, int64_t n) {
    Vector<T> slope;
    const auto open = nonlinear<false, T>(work.nonlinearity, load_first<T>(work.gate + i, n), slope);
    store_first<T>(work.out + i, open * load_first<T>(work.value + i, n), n);
  });
}

template <typename T> void gated_product_block_back(const GatedProductWork<T> &work, int64_t task) {
  gate_vectors<T>(work.count, task, [&](int64_t i, int64_t n) {
    Vector<T> slope;
    const auto open = nonlinear<true, T>(work.nonlinearity, load_first<T>(work.gate + i, n), slope);
    const auto given = load_first<T>(work.cotangent + i, n), value = load_first<T>(work.value + i, n);
    store_first<T>(work.of_gate + i, given * value * slope, n);
    store_first<T>(work.of_value + i, given * open, n);
    if (work.out) store_first<T>(work.out + i, open * value, n);
  });
}

template <typename T> void gated_residual(const GatedResidualWork<T> &work, int64_t task) {
  gate_vectors<T>(work.count, task, [&](int64_t i, int64_t n) {
    const auto x = load_first<T>(work.x + i, n), sum = load_first<T>(work.first + i, n) + load_first<T>(work.second + i, n);
    const auto open = logistic<T>(load_first<T>(work.gate + i, n));
    store_first<T>(work.out + i, x + open * (sum * logistic<T>(sum) - x), n);
  });
}

template <typename T> void gated_residual_back(const GatedResidualWork<T> &work, int64_t task) {
  gate_vectors<T>(work.count, task, [&](int64_t i, int64_t n) {
    const auto x = load_first<T>(work.x + i, n), sum = load_first<T>(work.first + i, n) + load_first<T>(work.second + i, n);
    const auto open = logistic<T>(load_first<T>(work.gate + i, n)), inner = logistic<T>(sum), silu = sum * inner;
    const auto given = load_first<T>(work.cotangent + i, n);
    store_first<T>(work.of_x + i, given * (T(1) - open), n);
    store_first<T>(work.of_gate + i, given * (silu - x) * open * (T(1) - open), n);
    store_first<T>(work.of_sum + i, given * open * (inner + silu * (T(1) - inner)), n);
  });
}
