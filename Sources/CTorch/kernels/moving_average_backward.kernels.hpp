// The gradients of Mega's moving average for one instruction set, after its forward pass.
#include "moving_average.kernels.hpp"

/// Hidden dimensions that the registers hold at once.
constexpr int average_backward_group = 4;

/// The cotangent of y + ω x to a tile.
template <typename T>
void average_pack_cotangent(const MovingAverageWork<T> &work, int64_t sequence, const AverageTile<T> &tile, T *to) {
  for (int64_t r = 0; r < tile.n; ++r) {
    const int64_t token = work.token(tile.direction, tile.start + r);
    const T *given = work.cotangent.head(sequence) + token * work.cotangent.row + tile.first;
    const T *sums = work.parameters.omega ? work.sums.head(sequence) + token * work.sums.row + tile.first : nullptr;
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t column = v * width<T>, lanes = tile.lanes(work, v);
      auto value = load_first<T>(given + column, lanes);
      if (sums) {
        const auto sum = load_first<T>(sums + column, lanes), gate = logistic<T>(sum);
        value *= gate + sum * gate * (T(1) - gate);
      }
      store<T>(to + tile.at(v, r), value);
    }
  }
}

/// The states before each token of a tile, for a group of hidden dimensions: before[token, group].
template <typename T>
INLINE void average_states(int64_t n, const T *x, const T *table, int64_t hidden, int64_t h, const T *state, T *before) {
  constexpr int group = average_backward_group, lanes = width<T>;
  Vector<T> s[group], decay[group];
#pragma clang loop unroll(full)
  for (int i = 0; i < group; ++i) {
    s[i] = load<T>(state + (h + i) * lanes);
    decay[i] = load<T>(table + (average_decay * hidden + h + i) * lanes);
  }
  for (int64_t r = 0; r < n; ++r) {
    const auto now = load<T>(x + r * lanes);
#pragma clang loop unroll(full)
    for (int i = 0; i < group; ++i) {
      store<T>(before + (r * group + i) * lanes, s[i]);
      s[i] = s[i] * decay[i] + now;
    }
  }
}

/// From the last token to the first: q = g + decay q, dx (+)= Σ gain q, and the sums of g s and q s over the tokens, s being
/// the state before each.
template <typename T>
INLINE void average_scan_back(int64_t n, const T *g, const T *table, int64_t hidden, int64_t h, const T *before, T *q, T *sums,
                              T *dx) {
  constexpr int group = average_backward_group, lanes = width<T>;
  Vector<T> now[group], decay[group], gain[group], of_g[group], of_q[group];
#pragma clang loop unroll(full)
  for (int i = 0; i < group; ++i) {
    now[i] = load<T>(q + (h + i) * lanes);
    decay[i] = load<T>(table + (average_decay * hidden + h + i) * lanes);
    gain[i] = load<T>(table + (average_gain * hidden + h + i) * lanes);
    of_g[i] = load<T>(sums + (h + i) * lanes);
    of_q[i] = load<T>(sums + (hidden + h + i) * lanes);
  }
  for (int64_t r = n - 1; r >= 0; --r) {
    const auto given = load<T>(g + r * lanes);
    Vector<T> to_x[2] = {h == 0 ? Vector<T>{} : load<T>(dx + r * lanes), Vector<T>{}};
#pragma clang loop unroll(full)
    for (int i = 0; i < group; ++i) {
      const auto s = load<T>(before + (r * group + i) * lanes);
      now[i] = now[i] * decay[i] + given;
      to_x[i % 2] += now[i] * gain[i];
      of_g[i] += given * s;
      of_q[i] += now[i] * s;
    }
    store<T>(dx + r * lanes, to_x[0] + to_x[1]);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < group; ++i) {
    store<T>(q + (h + i) * lanes, now[i]);
    store<T>(sums + (h + i) * lanes, of_g[i]);
    store<T>(sums + (hidden + h + i) * lanes, of_q[i]);
  }
}

/// The tile's dx, with the other direction's and ω g, to where it belongs; also takes up what ω gets.
template <typename T>
void average_write_gradient(const MovingAverageWork<T> &work, int64_t sequence, const AverageTile<T> &tile, const T *g, const T *dx,
                            T *to_omega) {
  const bool *real = work.real(sequence), is_last = tile.direction == 0;
  for (int64_t r = 0; r < tile.n; ++r) {
    const int64_t token = work.token(tile.direction, tile.start + r);
    T *to = work.dx.head(sequence) + token * work.dx.row + tile.first;
    const T *row = work.x.head(sequence) + token * work.x.row + tile.first;
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t column = v * width<T>, lanes = tile.lanes(work, v);
      auto sum = real && !real[token] ? Vector<T>{} : load<T>(dx + tile.at(v, r));
      if (is_last && work.directions == 2) sum += load_first<T>(to + column, lanes);
      if (is_last && work.parameters.omega) {
        const auto given = load<T>(g + tile.at(v, r));
        sum += given * load_first<T>(work.parameters.omega + tile.first + column, lanes);
        store<T>(to_omega + column, load<T>(to_omega + column) + given * load_first<T>(row + column, lanes));
      }
      store_first<T>(to + column, sum, lanes);
    }
  }
}

/// g x summed over a tile's tokens.
template <typename T> INLINE Vector<T> average_products(int64_t n, const T *g, const T *x) {
  Vector<T> sum{};
  for (int64_t r = 0; r < n; ++r) sum += load<T>(g + r * width<T>) * load<T>(x + r * width<T>);
  return sum;
}

template <typename T> void moving_average_backward(const MovingAverageWork<T> &work, int64_t task) {
  constexpr int lanes = width<T>, group = average_backward_group;
  const int64_t at_once = moving_average_vectors<T>(work.batch, work.channels), all = moving_average_tables<T>(work.channels);
  const int64_t blocks = (all + at_once - 1) / at_once, sequence = task / blocks, first_vector = task % blocks * at_once;
  const int64_t hidden = work.padded_hidden(), vectors = std::min(at_once, all - first_vector), size = hidden * lanes;
  const int64_t room = at_once * average_chunk * lanes;
  Scratch scratch(sizeof(T) * static_cast<size_t>(3 * room + at_once * (size + 2 * lanes) + average_chunk * group * lanes) + 1024);
  T *x = scratch.take<T>(room), *g = scratch.take<T>(room), *dx = scratch.take<T>(room);
  T *before = scratch.take<T>(average_chunk * group * lanes);
  T *later = scratch.take<T>(at_once * size), *products = scratch.take<T>(at_once * lanes);
  T *to_omega = scratch.zeros<T>(at_once * lanes);
  for (int64_t direction = work.directions - 1; direction >= 0; --direction) {
    AverageTile<T> tile{direction, 0, 0, first_vector * lanes, vectors};
    std::memset(static_cast<void *>(later), 0, sizeof(T) * static_cast<size_t>(at_once * size));
    std::memset(static_cast<void *>(products), 0, sizeof(T) * static_cast<size_t>(at_once * lanes));
    for (int64_t v = 0; v < vectors; ++v)
      std::memset(static_cast<void *>(average_partial(work, sequence, direction, first_vector + v)), 0,
                  sizeof(T) * static_cast<size_t>(2 * size));
    for (int64_t chunk = work.chunks() - 1; chunk >= 0; --chunk) {
      tile.start = chunk * average_chunk;
      tile.n = std::min(average_chunk, work.length - tile.start);
      average_pack(work, sequence, tile, x);
      average_pack_cotangent(work, sequence, tile, g);
      for (int64_t v = 0; v < vectors; ++v) {
        const T *table = average_table(work, direction, first_vector + v);
        const T *kept = average_kept(work, sequence, direction, chunk, first_vector + v);
        const T *tile_x = x + tile.at(v, 0), *tile_g = g + tile.at(v, 0);
        T *sums = average_partial(work, sequence, direction, first_vector + v), *q = later + v * size;
        if (tile.n == average_chunk) average_restore(table, hidden, q);
        for (int64_t h = 0; h < hidden; h += group) {
          average_states(tile.n, tile_x, table, hidden, h, kept, before);
          average_scan_back(tile.n, tile_g, table, hidden, h, before, q, sums, dx + tile.at(v, 0));
        }
        store<T>(products + v * lanes, load<T>(products + v * lanes) + average_products<T>(tile.n, tile_g, tile_x));
      }
      average_write_gradient(work, sequence, tile, g, dx, to_omega);
    }
    // g s with the state after the token: its state before, decayed, and x.
    for (int64_t v = 0; v < vectors; ++v) {
      const T *decay = average_table(work, direction, first_vector + v) + average_decay * size;
      T *sums = average_partial(work, sequence, direction, first_vector + v);
      for (int64_t i = 0; i < size; i += lanes)
        store<T>(sums + i, load<T>(sums + i) * load<T>(decay + i) + load<T>(products + v * lanes));
    }
  }
  if (!work.parameters.omega) return;
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t column = (first_vector + v) * lanes;
    store_first<T>(work.omega_partial + sequence * work.channels + column, load<T>(to_omega + v * lanes),
                   std::min<int64_t>(lanes, work.channels - column));
  }
}

/// From the sums of all sequences the gradients of the parameters of a vector of channels.
template <typename T> void moving_average_gradients(const MovingAverageWork<T> &work, int64_t direction, int64_t vector) {
  const int64_t first = vector * width<T>, lanes = std::min<int64_t>(width<T>, work.channels - first);
  const int64_t hidden = work.padded_hidden();
  for (int64_t h = 0; h < work.hidden; ++h) {
    Vector<T> of_gain{}, of_decay{};
    const AverageRaw<T> raw(work, direction, vector, h);
    for (int64_t sequence = 0; sequence < work.batch; ++sequence) {
      const T *sums = average_partial(work, sequence, direction, vector);
      of_gain += load<T>(sums + h * width<T>);
      of_decay += load<T>(sums + (hidden + h) * width<T>);
    }
    // decay = 1 - αδ, gain = αβη / √h; the sums of the decay were taken for a gain of 1.
    of_decay *= raw.alpha * raw.beta * raw.eta;
    const auto of_alpha = raw.beta * raw.eta * of_gain - raw.delta * of_decay;
    T found[4][width<T>];
    store<T>(found[0], of_alpha * raw.alpha * (T(1) - raw.alpha));
    store<T>(found[1], -raw.alpha * of_decay * raw.delta * (T(1) - raw.delta));
    store<T>(found[2], raw.alpha * raw.eta * of_gain);
    store<T>(found[3], raw.alpha * raw.beta * of_gain / std::sqrt(static_cast<T>(work.hidden)));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t place = (direction * work.channels + first + lane) * work.hidden + h;
      work.gradients.alpha[place] = found[0][lane];
      work.gradients.delta[place] = found[1][lane];
      work.gradients.beta[place] = found[2][lane];
      work.gradients.eta[place] = found[3][lane];
    }
  }
  if (direction > 0 || !work.parameters.omega) return;
  Vector<T> sum{};
  for (int64_t sequence = 0; sequence < work.batch; ++sequence)
    sum += load_first<T>(work.omega_partial + sequence * work.channels + first, lanes);
  store_first<T>(work.gradients.omega + first, sum, lanes);
}
