// Mega's moving average for one instruction set, forward; see moving_average.cpp for the equations and the names, and
// moving_average_backward.kernels.hpp for the gradients.
//
// The lanes of a vector are channels, and so is a task: some vectors of neighboring channels of one sequence. A chunk of
// its tokens is copied to a tile; some hidden dimensions at a time then run over the tile with their states in registers.

/// The numbers of a hidden dimension that the loops read, in this order in the table.
enum AverageKind { average_decay, average_drift, average_gain, average_input, average_output, average_kinds };

/// Hidden dimensions that the registers hold at once.
constexpr int average_forward_group = vector_bytes == 64 ? 8 : 4;

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
template <typename T>
INLINE T *average_partial(const MovingAverageWork<T> &work, int64_t sequence, int64_t direction, int64_t vector) {
  const int64_t vectors = moving_average_tables<T>(work.channels);
  return work.partial + ((sequence * work.directions + direction) * vectors + vector) * 4 * work.padded_hidden() * width<T>;
}
template <typename T>
INLINE T *average_kept(const MovingAverageWork<T> &work, int64_t sequence, int64_t direction, int64_t chunk, int64_t vector) {
  const int64_t vectors = moving_average_tables<T>(work.channels);
  const int64_t index = ((sequence * work.directions + direction) * work.chunks() + chunk) * vectors + vector;
  return work.states + index * work.padded_hidden() * width<T>;
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
      store<T>(to + tile.at(v, r), real && !real[token] ? Vector<T>{} : load_first<T>(row + v * width<T>, tile.lanes(work, v)));
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
      if (is_last && work.directions == 2) sum += load_first<T>(out + column, lanes);
      if (is_last && work.parameters.omega) {
        const T *row = work.x.head(sequence) + token * work.x.row + tile.first;
        sum += load_first<T>(work.parameters.omega + tile.first + column, lanes) * load_first<T>(row + column, lanes);
        if (work.keep) store_first<T>(work.sums.head(sequence) + token * work.sums.row + tile.first + column, sum, lanes);
        sum *= logistic<T>(sum);
      }
      store_first<T>(out + column, sum, lanes);
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
          std::memcpy(average_kept(work, sequence, direction, chunk, first_vector + v), state,
                      sizeof(T) * static_cast<size_t>(size));
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
