// Adaptive momentum attention for one instruction set; see adaptive_momentum.cpp.

/// A row of the state's width from `count` numbers.
template <typename T> INLINE void widen(int64_t count, int64_t row, const T *from, T *to) {
  std::memcpy(to, from, sizeof(T) * static_cast<size_t>(count));
  std::memset(static_cast<void *>(to + count), 0, sizeof(T) * static_cast<size_t>(row - count));
}

/// u becomes k vᵀ; returns |k vᵀ - u|².
template <typename T> INLINE T replace_outer(const AdaptiveLayout &l, const T *k, const T *v, T *u) {
  Vector<T> sum{};
  for (int64_t f = 0; f < l.features; ++f)
    for (int64_t c = 0; c < l.row(); c += width<T>) {
      const auto now = load<T>(v + c) * k[f], change = now - load<T>(u + f * l.row() + c);
      store<T>(u + f * l.row() + c, now);
      sum += change * change;
    }
  return sum_of<T>(sum);
}

template <typename T> INLINE T squares(int64_t count, const T *x) {
  Vector<T> sum{};
  for (int64_t c = 0; c < count; c += width<T>) sum += load<T>(x + c) * load<T>(x + c);
  return sum_of<T>(sum);
}

/// One step of a state; y = φq s of it. `squared_p` is |p|², kept up to date.
template <typename T>
INLINE AdaptiveMomentum<T> adaptive_advance(const AdaptiveWork<T> &work, const T *q, const T *k, const T *v, T *state,
                                            T &squared_p, T *y) {
  const auto &l = work.layout;
  const T change = replace_outer<T>(l, k, v, l.u(state));
  const AdaptiveMomentum<T> momentum(change, squared_p, work.step_size, work.maximum, l.begun(state) != 0);
  std::memset(static_cast<void *>(y), 0, sizeof(T) * static_cast<size_t>(l.row()));
  Vector<T> sum{};
  for (int64_t f = 0; f < l.features; ++f) {
    T *s = l.s(state) + f * l.row(), *p = l.p(state) + f * l.row();
    const T *u = l.u(state) + f * l.row();
    for (int64_t c = 0; c < l.row(); c += width<T>) {
      const auto next = load<T>(p + c) * momentum.beta - load<T>(u + c) * momentum.step_size;
      const auto total = load<T>(s + c) - next;
      store<T>(p + c, next);
      store<T>(s + c, total);
      store<T>(y + c, load<T>(y + c) + total * q[f]);
      sum += next * next;
    }
    l.z(state)[f] += k[f];
  }
  l.begun(state) = 1;
  squared_p = sum_of<T>(sum);
  return momentum;
}

template <typename T> void adaptive_forward(const AdaptiveWork<T> &work, int64_t head) {
  const auto &l = work.layout;
  Scratch scratch(sizeof(T) * static_cast<size_t>(2 * l.row()) + 256);
  T *v = scratch.take<T>(l.row()), *y = scratch.take<T>(l.row());
  T *state = work.state + head * l.size();
  T squared_p = squares<T>(l.matrix(), l.p(state));
  for (int64_t i = 0; i < work.length; ++i) {
    if (work.keep && i % work.chunk == 0)
      std::memcpy(work.kept + (head * work.chunks() + i / work.chunk) * l.size(), state, sizeof(T) * static_cast<size_t>(l.size()));
    T *out = work.out.head(head) + i * work.out.row;
    if (!work.real(head, i)) {
      std::memset(static_cast<void *>(out), 0, sizeof(T) * static_cast<size_t>(l.values));
      continue;
    }
    const T *q = work.q.head(head) + i * work.q.row;
    widen<T>(l.values, l.row(), work.v.head(head) + i * work.v.row, v);
    adaptive_advance<T>(work, q, work.k.head(head) + i * work.k.row, v, state, squared_p, y);
    T norm = work.epsilon;
    for (int64_t f = 0; f < l.features; ++f) norm += q[f] * l.z(state)[f];
    work.norm[head * work.length + i] = norm;
    for (int64_t c = 0; c < l.values; ++c) out[c] = y[c] / norm;
  }
}

/// What the backward pass carries from later tokens: cotangents of s, p, u and z.
template <typename T> struct AdaptiveCotangents {
  T *s, *p, *u, *z;
};

/// The backward pass of one step, given p before it, u before it, and the cotangents g of its numerator and e of its
/// denominator.
template <typename T>
INLINE void adaptive_retreat(const AdaptiveLayout &l, const AdaptiveMomentum<T> &momentum, const T *q, const T *k, const T *v,
                             const T *g, T e, const T *p, const T *u, AdaptiveCotangents<T> &later, T *dk, T *dv) {
  Vector<T> product{};
  for (int64_t f = 0; f < l.features; ++f)
    for (int64_t c = 0; c < l.row(); c += width<T>) {
      const int64_t at = f * l.row() + c;
      const auto of_s = load<T>(later.s + at) + load<T>(g + c) * q[f], of_p = load<T>(later.p + at) - of_s;
      store<T>(later.s + at, of_s);
      store<T>(later.p + at, of_p);
      product += of_p * load<T>(p + at);
    }
  // β̄ = ⟨p̄, p before⟩; through a into u_i and u_{i-1}, through b into p before.
  const T of_beta = sum_of<T>(product) * momentum.slope;
  const bool moves = momentum.b > 0 && momentum.a > 0;
  const T by_change = moves ? of_beta * momentum.step_size_of_ratio / (momentum.b * momentum.a) : T(0);
  const T by_distance =
      momentum.b > 0 ? -of_beta * momentum.step_size_of_ratio * momentum.a / (momentum.b * momentum.b * momentum.b) : T(0);
  std::memset(static_cast<void *>(dv), 0, sizeof(T) * static_cast<size_t>(l.row()));
  for (int64_t f = 0; f < l.features; ++f) {
    Vector<T> sum{};
    for (int64_t c = 0; c < l.row(); c += width<T>) {
      const int64_t at = f * l.row() + c;
      const auto of_p = load<T>(later.p + at), values = load<T>(v + c);
      const auto of_change = (values * k[f] - load<T>(u + at)) * by_change;
      const auto of_u = load<T>(later.u + at) + of_change - of_p * momentum.step_size;
      sum += of_u * values;
      store<T>(dv + c, load<T>(dv + c) + of_u * k[f]);
      store<T>(later.u + at, -of_change);
      store<T>(later.p + at, of_p * momentum.beta + load<T>(p + at) * by_distance);
    }
    later.z[f] += e * q[f];
    dk[f] = sum_of<T>(sum) + later.z[f];
  }
}

template <typename T> void adaptive_backward(const AdaptiveWork<T> &work, int64_t head) {
  const auto &l = work.layout;
  const int64_t matrix = l.matrix(), row = l.row(), chunk = work.chunk;
  Scratch scratch(sizeof(T) * static_cast<size_t>((chunk + 4) * matrix + l.size() + l.features + (chunk + 4) * row) + 2048);
  T *before = scratch.take<T>(chunk * matrix), *state = scratch.take<T>(l.size()), *u = scratch.take<T>(matrix);
  T *v = scratch.take<T>(chunk * row), *g = scratch.take<T>(row), *y = scratch.take<T>(row), *dv = scratch.take<T>(row);
  AdaptiveCotangents<T> later{scratch.zeros<T>(matrix), scratch.zeros<T>(matrix), scratch.zeros<T>(matrix),
                              scratch.zeros<T>(l.features)};
  std::vector<AdaptiveMomentum<T>> momenta;
  std::vector<int64_t> tokens;
  std::vector<T> e;
  for (int64_t index = work.chunks() - 1; index >= 0; --index) {
    const int64_t start = index * chunk, end = std::min(work.length, start + chunk);
    const T *kept = work.kept + (head * work.chunks() + index) * l.size();
    std::memcpy(state, kept, sizeof(T) * static_cast<size_t>(l.size()));
    T squared_p = squares<T>(matrix, l.p(state));
    momenta.clear(), tokens.clear(), e.clear();
    for (int64_t i = start; i < end; ++i) {
      const T *q = work.q.head(head) + i * work.q.row, *k = work.k.head(head) + i * work.k.row;
      T *dq = work.dq.head(head) + i * work.dq.row;
      if (!work.real(head, i)) {
        std::memset(static_cast<void *>(dq), 0, sizeof(T) * static_cast<size_t>(l.features));
        std::memset(static_cast<void *>(work.dk.head(head) + i * work.dk.row), 0, sizeof(T) * static_cast<size_t>(l.features));
        std::memset(static_cast<void *>(work.dv.head(head) + i * work.dv.row), 0, sizeof(T) * static_cast<size_t>(l.values));
        continue;
      }
      const int64_t place = static_cast<int64_t>(tokens.size());
      std::memcpy(before + place * matrix, l.p(state), sizeof(T) * static_cast<size_t>(matrix));
      widen<T>(l.values, row, work.v.head(head) + i * work.v.row, v + place * row);
      momenta.push_back(adaptive_advance<T>(work, q, k, v + place * row, state, squared_p, y));
      tokens.push_back(i);
      const T *cotangent = work.cotangent.head(head) + i * work.cotangent.row, *out = work.out.head(head) + i * work.out.row;
      const T norm = work.norm[head * work.length + i];
      widen<T>(l.values, row, cotangent, g);
      T product = 0;
      for (int64_t c = 0; c < l.values; ++c) product += cotangent[c] * out[c];
      e.push_back(-product / norm);
      for (int64_t f = 0; f < l.features; ++f) {
        Vector<T> sum{};
        for (int64_t c = 0; c < row; c += width<T>) sum += load<T>(g + c) * load<T>(l.s(state) + f * row + c);
        dq[f] = sum_of<T>(sum) / norm + e.back() * l.z(state)[f];
      }
    }
    for (int64_t place = static_cast<int64_t>(tokens.size()) - 1; place >= 0; --place) {
      const int64_t i = tokens[place];
      const T *previous_u = l.u(kept);
      if (place > 0) {
        replace_outer<T>(l, work.k.head(head) + tokens[place - 1] * work.k.row, v + (place - 1) * row, u);
        previous_u = u;
      }
      const T norm = work.norm[head * work.length + i];
      widen<T>(l.values, row, work.cotangent.head(head) + i * work.cotangent.row, g);
      for (int64_t c = 0; c < row; c += width<T>) store<T>(g + c, load<T>(g + c) / norm);
      adaptive_retreat<T>(l, momenta[place], work.q.head(head) + i * work.q.row, work.k.head(head) + i * work.k.row,
                          v + place * row, g, e[place], before + place * matrix, previous_u, later,
                          work.dk.head(head) + i * work.dk.row, dv);
      std::memcpy(work.dv.head(head) + i * work.dv.row, dv, sizeof(T) * static_cast<size_t>(l.values));
    }
  }
}
