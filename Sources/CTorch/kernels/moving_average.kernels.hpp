// Mega's moving average for one instruction set; see moving_average.cpp for the equations and the names.
//
// The lanes of a vector are channels, and so is a task: some vectors of neighboring channels of one sequence. A chunk of
// its tokens is copied to a tile; some hidden dimensions at a time then run over the tile with their states in registers.

/// The numbers of a hidden dimension that the loops read, in this order in the table.
enum AverageKind { average_decay, average_drift, average_gain, average_input, average_output, average_kinds };

/// Hidden dimensions that the registers hold at once, forward and backward.
constexpr int average_forward_group = vector_bytes == 64 ? 8 : 4;
constexpr int average_backward_group = 4;

/// Vectors of channels that a task takes: rows of a few cache lines, as long as there are tasks enough.
template <typename T> int64_t moving_average_vectors(int64_t batch, int64_t channels) {
  for (int64_t vectors : {4, 2})
    if (batch * (channels / (vectors * width<T>)) >= 8) return vectors;
  return 1;
}
template <typename T> int64_t moving_average_tasks(int64_t batch, int64_t channels) {
  const int64_t block = moving_average_vectors<T>(batch, channels) * width<T>;
  return batch * ((channels + block - 1) / block);
}
template <typename T> int64_t moving_average_tables(int64_t channels) { return (channels + width<T> - 1) / width<T>; }

template <typename T> INLINE T *average_table(const MovingAverageWork<T> &work, int64_t direction, int64_t vector) {
  const int64_t vectors = moving_average_tables<T>(work.channels);
  return work.coefficients + (direction * vectors + vector) * average_kinds * work.padded_hidden() * width<T>;
}
/// Gradients of the gains and then of the decays.
template <typename T> INLINE T *average_partial(const MovingAverageWork<T> &work, int64_t sequence, int64_t direction, int64_t vector) {
  const int64_t vectors = moving_average_tables<T>(work.channels);
  return work.partial + ((sequence * work.directions + direction) * vectors + vector) * 4 * work.padded_hidden() * width<T>;
}
template <typename T>
INLINE T *average_kept(const MovingAverageWork<T> &work, int64_t sequence, int64_t direction, int64_t chunk, int64_t vector) {
  const int64_t vectors = moving_average_tables<T>(work.channels);
  const int64_t index = ((sequence * work.directions + direction) * work.chunks() + chunk) * vectors + vector;
  return work.states + index * work.padded_hidden() * width<T>;
}

template <typename T> INLINE Vector<T> load_lanes(const T *p, int64_t n) { return n == width<T> ? load<T>(p) : load_first<T>(p, n); }
template <typename T> INLINE void store_lanes(T *p, Vector<T> v, int64_t n) {
  if (n == width<T>) return store<T>(p, v);
  store_first<T>(p, v, n);
}

/// The raw parameters of one hidden dimension of the channels of a vector, which lie `hidden` apart.
template <typename T> struct AverageRaw {
  Vector<T> alpha, delta, beta, eta;

  INLINE AverageRaw(const MovingAverageWork<T> &work, int64_t direction, int64_t vector, int64_t h)
      : alpha(), delta(), beta(), eta() {
    const int64_t first = vector * width<T>, lanes = std::min<int64_t>(width<T>, work.channels - first);
    T read[4][width<T>] = {};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t place = (direction * work.channels + first + lane) * work.hidden + h;
      read[0][lane] = work.parameters.alpha[place];
      read[1][lane] = work.parameters.delta[place];
      read[2][lane] = work.parameters.beta[place];
      read[3][lane] = work.parameters.eta[place];
    }
    alpha = logistic<T>(load<T>(read[0]));
    delta = logistic<T>(load<T>(read[1]));
    beta = load<T>(read[2]);
    eta = load<T>(read[3]) / std::sqrt(static_cast<T>(work.hidden));
  }
};

/// Fills the table of a vector of channels. 1 - αδ is rounded, which over thousands of tokens would show: `drift` is by how
/// much a chunk's power of it falls short.
template <typename T> void moving_average_coefficients(const MovingAverageWork<T> &work, int64_t direction, int64_t vector) {
  constexpr int lanes = width<T>;
  const int64_t hidden = work.padded_hidden();
  T *table = average_table(work, direction, vector);
  std::memset(static_cast<void *>(table), 0, sizeof(T) * static_cast<size_t>(average_kinds * hidden * lanes));
  for (int64_t h = 0; h < work.hidden; ++h) {
    const AverageRaw<T> raw(work, direction, vector, h);
    const auto loss = raw.alpha * raw.delta, decay = T(1) - loss;
    const auto drift = static_cast<T>(average_chunk) * ((T(1) - decay) - loss) / decay;
    auto put = [&](AverageKind kind, Vector<T> value) { store<T>(table + (kind * hidden + h) * lanes, value); };
    put(average_decay, decay);
    put(average_drift, decay > T(0.5) ? drift : Vector<T>{});
    put(average_gain, raw.alpha * raw.beta * raw.eta);
    put(average_input, raw.alpha * raw.beta);
    put(average_output, raw.eta);
  }
}

/// A stretch of places of one sequence and direction, and the channels of a task.
template <typename T> struct AverageTile {
  int64_t direction, start, n, first, vectors;

  INLINE int64_t lanes(const MovingAverageWork<T> &work, int64_t vector) const {
    return std::min<int64_t>(width<T>, work.channels - first - vector * width<T>);
  }
  /// Where a vector's numbers at a place lie.
  INLINE int64_t at(int64_t vector, int64_t place) const { return (vector * average_chunk + place) * width<T>; }
};

/// Copies x to a tile, zero where it is padding.
template <typename T>
void average_pack(const MovingAverageWork<T> &work, int64_t sequence, const AverageTile<T> &tile, T *to) {
  const bool *real = work.real(sequence);
  for (int64_t r = 0; r < tile.n; ++r) {
    const int64_t token = work.token(tile.direction, tile.start + r);
    const T *row = work.x.head(sequence) + token * work.x.row + tile.first;
    for (int64_t v = 0; v < tile.vectors; ++v)
      store<T>(to + tile.at(v, r), real && !real[token] ? Vector<T>{} : load_lanes<T>(row + v * width<T>, tile.lanes(work, v)));
  }
}

/// s_h = decay_h s_h + x, y (+)= Σ_h output_h s_h along a tile, for the group of hidden dimensions that begins at h. With
/// `scaled` x is multiplied by input_h, and s is the state of the equations.
template <typename T, bool scaled>
INLINE void average_scan(int64_t n, const T *x, const T *table, int64_t hidden, int64_t h, T *state, T *y) {
  constexpr int group = average_forward_group, lanes = width<T>;
  Vector<T> s[group], decay[group], output[group], input[group];
#pragma clang loop unroll(full)
  for (int i = 0; i < group; ++i) {
    s[i] = load<T>(state + (h + i) * lanes);
    decay[i] = load<T>(table + (average_decay * hidden + h + i) * lanes);
    output[i] = load<T>(table + ((scaled ? average_output : average_gain) * hidden + h + i) * lanes);
    if (scaled) input[i] = load<T>(table + (average_input * hidden + h + i) * lanes);
  }
  for (int64_t r = 0; r < n; ++r) {
    const auto now = load<T>(x + r * lanes);
    Vector<T> sums[2] = {h == 0 ? Vector<T>{} : load<T>(y + r * lanes), Vector<T>{}};
#pragma clang loop unroll(full)
    for (int i = 0; i < group; ++i) {
      s[i] = s[i] * decay[i] + (scaled ? input[i] * now : now);
      sums[i % 2] += s[i] * output[i];
    }
    store<T>(y + r * lanes, sums[0] + sums[1]);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < group; ++i) store<T>(state + (h + i) * lanes, s[i]);
}

/// What the rounding of the decays has taken from states that went through a whole chunk.
template <typename T> INLINE void average_restore(const T *table, int64_t hidden, T *state) {
  for (int64_t i = 0; i < hidden * width<T>; i += width<T>)
    store<T>(state + i, load<T>(state + i) + load<T>(state + i) * load<T>(table + average_drift * hidden * width<T> + i));
}

/// Copies [channels, hidden] to the lanes of states, or back.
template <typename T> void average_exchange(int64_t lanes, int64_t hidden, bool reads, T *rows, T *state) {
  for (int64_t lane = 0; lane < lanes; ++lane)
    for (int64_t h = 0; h < hidden; ++h) {
      if (reads) state[h * width<T> + lane] = rows[lane * hidden + h];
      else rows[lane * hidden + h] = state[h * width<T> + lane];
    }
}

/// The sums of a tile, with the other direction's and ω x, to where they belong.
template <typename T>
void average_write(const MovingAverageWork<T> &work, int64_t sequence, const AverageTile<T> &tile, const T *y) {
  const bool is_last = tile.direction == 0;
  for (int64_t r = 0; r < tile.n; ++r) {
    const int64_t token = work.token(tile.direction, tile.start + r);
    T *out = work.out.head(sequence) + token * work.out.row + tile.first;
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t column = v * width<T>, lanes = tile.lanes(work, v);
      auto sum = load<T>(y + tile.at(v, r));
      if (is_last && work.directions == 2) sum += load_lanes<T>(out + column, lanes);
      if (is_last && work.parameters.omega) {
        const T *row = work.x.head(sequence) + token * work.x.row + tile.first;
        sum += load_lanes<T>(work.parameters.omega + tile.first + column, lanes) * load_lanes<T>(row + column, lanes);
        if (work.keep) store_lanes<T>(work.sums.head(sequence) + token * work.sums.row + tile.first + column, sum, lanes);
        sum *= logistic<T>(sum);
      }
      store_lanes<T>(out + column, sum, lanes);
    }
  }
}

template <typename T> void moving_average_forward(const MovingAverageWork<T> &work, int64_t task) {
  constexpr int lanes = width<T>;
  const int64_t at_once = moving_average_vectors<T>(work.batch, work.channels), all = moving_average_tables<T>(work.channels);
  const int64_t blocks = (all + at_once - 1) / at_once, sequence = task / blocks, first_vector = task % blocks * at_once;
  const int64_t hidden = work.padded_hidden(), vectors = std::min(at_once, all - first_vector), size = hidden * lanes;
  Scratch scratch(sizeof(T) * static_cast<size_t>(at_once * (2 * average_chunk * lanes + size)) + 256);
  T *x = scratch.take<T>(at_once * average_chunk * lanes), *y = scratch.take<T>(at_once * average_chunk * lanes);
  T *states = scratch.take<T>(at_once * size);
  for (int64_t direction = work.directions - 1; direction >= 0; --direction) {
    AverageTile<T> tile{direction, 0, 0, first_vector * lanes, vectors};
    std::memset(static_cast<void *>(states), 0, sizeof(T) * static_cast<size_t>(at_once * size));
    auto exchange = [&](int64_t v, bool reads, T *with) {
      with += (sequence * work.channels + tile.first + v * lanes) * work.hidden;
      average_exchange<T>(tile.lanes(work, v), work.hidden, reads, with, states + v * size);
    };
    for (int64_t v = 0; v < vectors && work.initial; ++v) exchange(v, true, const_cast<T *>(work.initial));
    for (int64_t chunk = 0; chunk < work.chunks(); ++chunk) {
      tile.start = chunk * average_chunk;
      tile.n = std::min(average_chunk, work.length - tile.start);
      average_pack(work, sequence, tile, x);
      for (int64_t v = 0; v < vectors; ++v) {
        const T *table = average_table(work, direction, first_vector + v);
        T *state = states + v * size;
        if (work.keep)
          std::memcpy(average_kept(work, sequence, direction, chunk, first_vector + v), state, sizeof(T) * static_cast<size_t>(size));
        for (int64_t h = 0; h < hidden; h += average_forward_group) {
          if (work.initial) average_scan<T, true>(tile.n, x + tile.at(v, 0), table, hidden, h, state, y + tile.at(v, 0));
          else average_scan<T, false>(tile.n, x + tile.at(v, 0), table, hidden, h, state, y + tile.at(v, 0));
        }
        if (tile.n == average_chunk) average_restore(table, hidden, state);
      }
      average_write(work, sequence, tile, y);
    }
    for (int64_t v = 0; v < vectors && work.final; ++v) {
      const T *input = average_table(work, direction, first_vector + v) + average_input * size;
      T *state = states + v * size;
      for (int64_t i = 0; i < size && !work.initial; i += lanes) store<T>(state + i, load<T>(state + i) * load<T>(input + i));
      exchange(v, false, work.final);
    }
  }
}

/// The cotangent of y + ω x to a tile.
template <typename T>
void average_pack_cotangent(const MovingAverageWork<T> &work, int64_t sequence, const AverageTile<T> &tile, T *to) {
  for (int64_t r = 0; r < tile.n; ++r) {
    const int64_t token = work.token(tile.direction, tile.start + r);
    const T *given = work.cotangent.head(sequence) + token * work.cotangent.row + tile.first;
    const T *sums = work.parameters.omega ? work.sums.head(sequence) + token * work.sums.row + tile.first : nullptr;
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t column = v * width<T>, lanes = tile.lanes(work, v);
      auto value = load_lanes<T>(given + column, lanes);
      if (sums) {
        const auto sum = load_lanes<T>(sums + column, lanes), gate = logistic<T>(sum);
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
INLINE void average_scan_back(int64_t n, const T *g, const T *table, int64_t hidden, int64_t h, const T *before, T *q, T *sums, T *dx) {
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
      if (is_last && work.directions == 2) sum += load_lanes<T>(to + column, lanes);
      if (is_last && work.parameters.omega) {
        const auto given = load<T>(g + tile.at(v, r));
        sum += given * load_lanes<T>(work.parameters.omega + tile.first + column, lanes);
        store<T>(to_omega + column, load<T>(to_omega + column) + given * load_lanes<T>(row + column, lanes));
      }
      store_lanes<T>(to + column, sum, lanes);
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
    store_lanes<T>(work.omega_partial + sequence * work.channels + column, load<T>(to_omega + v * lanes),
                   std::min<int64_t>(lanes, work.channels - column));
  }
}

/// From the sums of all sequences the gradients of the parameters of a vector of channels.
template <typename T> void moving_average_gradients(const MovingAverageWork<T> &work, int64_t direction, int64_t vector) {
  const int64_t first = vector * width<T>, lanes = std::min<int64_t>(width<T>, work.channels - first), hidden = work.padded_hidden();
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
    sum += load_lanes<T>(work.omega_partial + sequence * work.channels + first, lanes);
  store_lanes<T>(work.gradients.omega + first, sum, lanes);
}
