// The local RNN in plain loops: each window by itself.
#pragma once

#include "local_rnn.hpp"

#include <cmath>
#include <vector>

namespace ctorch::reference {

/// One window: its inputs, and h, c and the gates after each step; index 0 is before the first.
template <typename T> struct Window {
  using Row = std::vector<T>;
  const LocalRnnWork<T> &work;
  int64_t sequence, token;
  std::vector<Row> x, h, c, gates, recurrent;

  Window(const LocalRnnWork<T> &work, int64_t sequence, int64_t token) : work(work), sequence(sequence), token(token) {
    const auto dim = static_cast<size_t>(work.dim);
    h.assign(1, Row(dim)), c.assign(1, Row(dim)), x.assign(1, Row()), gates.assign(1, Row()), recurrent.assign(1, Row());
    for (int64_t place = token - work.window + 1; place <= token; ++place) take(place);
  }

  /// weight x + bias, gate after gate
  Row product(const T *weight, const T *bias, const Row &of) const {
    Row out(static_cast<size_t>(work.gates() * work.dim));
    for (int64_t row = 0; row < work.gates() * work.dim; ++row) {
      out[row] = bias[row];
      for (int64_t k = 0; k < work.dim; ++k) out[row] += weight[row * work.dim + k] * of[k];
    }
    return out;
  }

  void take(int64_t place) {
    const int64_t n = work.dim;
    Row input(static_cast<size_t>(n));
    if (place >= 0) std::copy_n(work.x + sequence * work.x_batch + place * work.x_row, n, input.begin());
    auto from_x = product(work.input_weight, work.input_bias, input);
    auto from_h = product(work.hidden_weight, work.hidden_bias, h.back());
    auto logistic = [](T value) { return 1 / (1 + std::exp(-value)); };
    Row next(static_cast<size_t>(n)), memory(static_cast<size_t>(n)), gate(from_x.size());
    for (int64_t i = 0; i < n; ++i) {
      auto sum = [&](int64_t g) { return from_x[g * n + i] + from_h[g * n + i]; };
      switch (work.cell) {
      case RecurrentCell::gru:
        gate[i] = logistic(sum(0)), gate[n + i] = logistic(sum(1));
        gate[2 * n + i] = std::tanh(from_x[2 * n + i] + gate[i] * from_h[2 * n + i]);
        next[i] = (1 - gate[n + i]) * gate[2 * n + i] + gate[n + i] * h.back()[i];
        break;
      case RecurrentCell::lstm:
        gate[i] = logistic(sum(0)), gate[n + i] = logistic(sum(1));
        gate[2 * n + i] = std::tanh(sum(2)), gate[3 * n + i] = logistic(sum(3));
        memory[i] = gate[n + i] * c.back()[i] + gate[i] * gate[2 * n + i];
        next[i] = gate[3 * n + i] * std::tanh(memory[i]);
        break;
      case RecurrentCell::plain:
        gate[i] = next[i] = std::tanh(sum(0));
        break;
      }
    }
    x.push_back(input), h.push_back(next), c.push_back(memory), gates.push_back(gate), recurrent.push_back(from_h);
  }

  /// The gradients of W x and U h at a step, of those of h and c after it, which become those before it.
  void step_back(size_t step, Row &dh, Row &dc, Row &d_input, Row &d_recurrent) const {
    const int64_t n = work.dim;
    const auto &gate = gates[step];
    Row before(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      if (work.cell == RecurrentCell::gru) {
        const T r = gate[i], z = gate[n + i], fresh = gate[2 * n + i], d_fresh = dh[i] * (1 - z) * (1 - fresh * fresh);
        d_input[i] = d_recurrent[i] = d_fresh * recurrent[step][2 * n + i] * r * (1 - r);
        d_input[n + i] = d_recurrent[n + i] = dh[i] * (h[step - 1][i] - fresh) * z * (1 - z);
        d_input[2 * n + i] = d_fresh, d_recurrent[2 * n + i] = d_fresh * r;
        before[i] = dh[i] * z;
      } else if (work.cell == RecurrentCell::lstm) {
        const T in = gate[i], forget = gate[n + i], g = gate[2 * n + i], o = gate[3 * n + i], bounded = std::tanh(c[step][i]);
        const T d_memory = dc[i] + dh[i] * o * (1 - bounded * bounded);
        d_input[i] = d_memory * g * in * (1 - in), d_input[n + i] = d_memory * c[step - 1][i] * forget * (1 - forget);
        d_input[2 * n + i] = d_memory * in * (1 - g * g), d_input[3 * n + i] = dh[i] * bounded * o * (1 - o);
        for (int64_t g = 0; g < 4; ++g) d_recurrent[g * n + i] = d_input[g * n + i];
        dc[i] = d_memory * forget;
      } else {
        d_input[i] = d_recurrent[i] = dh[i] * (1 - h[step][i] * h[step][i]);
      }
    }
    for (int64_t row = 0; row < work.gates() * n; ++row)
      for (int64_t k = 0; k < n; ++k) before[k] += d_recurrent[row] * work.hidden_weight[row * n + k];
    dh = before;
  }
};

template <typename T> void local_rnn_forward(const LocalRnnWork<T> &work, int64_t index) {
  const BlockPlace place(work, index);
  for (int64_t token = place.start; token < place.start + place.rows; ++token) {
    Window<T> window(work, place.sequence, token);
    std::copy_n(window.h.back().begin(), work.dim, work.out + (place.sequence * work.length + token) * work.dim);
  }
}

template <typename T> void local_rnn_backward(const LocalRnnWork<T> &work, int64_t task) {
  const int64_t n = work.dim, first = work.first_block(task), last = work.first_block(task + 1);
  T *input_weight = work.input_weight_sum + task * work.matrix(), *hidden_weight = work.hidden_weight_sum + task * work.matrix();
  T *input_bias = work.input_bias_sum + task * work.all_columns(), *hidden_bias = work.hidden_bias_sum + task * work.all_columns();
  std::fill_n(input_weight, work.matrix(), T(0)), std::fill_n(hidden_weight, work.matrix(), T(0));
  std::fill_n(input_bias, work.all_columns(), T(0)), std::fill_n(hidden_bias, work.all_columns(), T(0));
  std::fill_n(work.early + task * work.reach() * n, work.reach() * n, T(0));
  for (int64_t index = first; index < last; ++index) {
    const BlockPlace place(work, index);
    std::fill_n(work.dx + (place.sequence * work.length + place.start) * n, place.rows * n, T(0));
  }
  const BlockPlace beginning(work, first);
  for (int64_t index = first; index < last; ++index) {
    const BlockPlace place(work, index);
    const int64_t own_from = place.sequence == beginning.sequence ? beginning.start : 0;
    for (int64_t token = place.start; token < place.start + place.rows; ++token) {
      Window<T> window(work, place.sequence, token);
      const T *g = work.cotangent + place.sequence * work.cotangent_batch + token * work.cotangent_row;
      std::vector<T> dh(g, g + n), dc(static_cast<size_t>(n)), d_input(static_cast<size_t>(work.gates() * n)), d_recurrent(d_input);
      for (int64_t step = work.window; step > 0; --step) {
        window.step_back(static_cast<size_t>(step), dh, dc, d_input, d_recurrent);
        const int64_t from = token - work.window + step;
        T *dx = from >= own_from ? work.dx + (place.sequence * work.length + from) * n
                                 : work.early + (task * work.reach() + work.reach() - own_from + from) * n;
        for (int64_t row = 0; row < work.gates() * n; ++row) {
          const int64_t to = row / n * work.columns + row % n;
          input_bias[to] += d_input[row], hidden_bias[to] += d_recurrent[row];
          for (int64_t k = 0; k < n; ++k) {
            input_weight[to * work.columns + k] += d_input[row] * window.x[step][k];
            hidden_weight[to * work.columns + k] += d_recurrent[row] * window.h[step - 1][k];
            if (from >= 0) dx[k] += d_input[row] * work.input_weight[row * n + k];
          }
        }
      }
    }
  }
}

} // namespace ctorch::reference
