// Segment mixtures for one instruction set; see segment_mixtures.cpp for the equations and the names.

template <typename T> struct Moments {
  T mean, inverse_deviation;
};

template <typename T> INLINE Moments<T> moments(int64_t columns, const T *x, T epsilon) {
  Vector<T> sums{}, squares{};
  for (int64_t c = 0; c < columns; c += width<T>) sums += load_up_to<T>(x + c, columns - c);
  const T mean = sum_of<T>(sums) / static_cast<T>(columns);
  const int64_t whole = columns / width<T> * width<T>;
  for (int64_t c = 0; c < whole; c += width<T>) {
    const auto d = load<T>(x + c) - mean;
    squares += d * d;
  }
  T square = sum_of<T>(squares);
  for (int64_t c = whole; c < columns; ++c) square += (x[c] - mean) * (x[c] - mean);
  return {mean, T(1) / std::sqrt(square / static_cast<T>(columns) + epsilon)};
}

template <typename T> void normalize(int64_t columns, const T *x, MixtureNorm<const T> norm, T epsilon, T *to) {
  const auto [mean, inverse] = moments<T>(columns, x, epsilon);
  for (int64_t c = 0; c < columns; c += width<T>) {
    const int64_t n = columns - c;
    const auto hat = (load_up_to<T>(x + c, n) - mean) * inverse;
    store_up_to<T>(to + c, hat * load_up_to<T>(norm.gain + c, n) + load_up_to<T>(norm.bias + c, n), n);
  }
}

/// The gradient of a row before its norm; those of gain and bias are added up.
template <typename T>
void normalize_backward(int64_t columns, const T *x, const T *cotangent, const T *gain, T epsilon, MixtureNorm<T> sums, T *to) {
  const auto [mean, inverse] = moments<T>(columns, x, epsilon);
  Vector<T> first{}, second{};
  for (int64_t c = 0; c < columns; c += width<T>) {
    const int64_t n = columns - c;
    const auto g = load_up_to<T>(cotangent + c, n);
    const auto hat = (load_up_to<T>(x + c, n) - mean) * inverse, slope = g * load_up_to<T>(gain + c, n);
    first += slope;
    second += slope * hat;
    store_up_to<T>(sums.gain + c, load_up_to<T>(sums.gain + c, n) + g * hat, n);
    store_up_to<T>(sums.bias + c, load_up_to<T>(sums.bias + c, n) + g, n);
  }
  const T a = sum_of<T>(first) / static_cast<T>(columns), b = sum_of<T>(second) / static_cast<T>(columns);
  for (int64_t c = 0; c < columns; c += width<T>) {
    const int64_t n = columns - c;
    const auto hat = (load_up_to<T>(x + c, n) - mean) * inverse;
    const auto slope = load_up_to<T>(cotangent + c, n) * load_up_to<T>(gain + c, n);
    store_up_to<T>(to + c, inverse * (slope - a - hat * b), n);
  }
}

/// One segment's tokens.
template <typename T> struct Segment {
  const MixtureWork<T> &work;
  int64_t batch, start, index;

  Segment(const MixtureWork<T> &work, int64_t batch, int64_t index)
      : work(work), batch(batch), start(index * work.segment), index(index) {}

  const T *row(const Rows<const T> &rows, int64_t t) const { return rows.head(batch) + (start + t) * rows.row; }
  T *row(const Rows<T> &rows, int64_t t) const { return rows.head(batch) + (start + t) * rows.row; }
  /// Where a mixture stands among the rows that come out.
  int64_t place(int64_t mixture) const { return work.length + index * work.rank + mixture; }

  /// P [segment, heads · rank], zero where nothing is real; rows padded to `stride`.
  void weights(T *p, int64_t stride) const {
    const bool *real = work.real(batch, start);
    const int64_t count = work.weights();
    const auto none = splat<T>(-INFINITY), zero = Vector<T>{};
    for (int64_t c = 0; c < count; c += width<T>) {
      auto peak = none;
      for (int64_t t = 0; t < work.segment; ++t)
        if (!real || real[t]) peak = larger<T>(peak, load_up_to<T>(row(work.logits, t) + c, count - c));
      auto sum = zero;
      for (int64_t t = 0; t < work.segment; ++t) {
        auto x = zero;
        if (!real || real[t]) x = exponential(load_up_to<T>(row(work.logits, t) + c, count - c) - peak);
        store<T>(p + t * stride + c, x);
        sum += x;
      }
      const auto inverse = sum > 0 ? T(1) / sum : zero;
      for (int64_t t = 0; t < work.segment; ++t) store<T>(p + t * stride + c, load<T>(p + t * stride + c) * inverse);
    }
  }

  /// Σ_t P_t rows_t of one mixture, head by head.
  void mix(const Rows<const T> &rows, const T *p, int64_t stride, int64_t mixture, T *to) const {
    for (int64_t h = 0; h < work.heads; ++h)
      for (int64_t c = 0; c < work.width; c += width<T>) {
        Vector<T> sum{};
        for (int64_t t = 0; t < work.segment; ++t)
          sum += p[t * stride + h * work.rank + mixture] * load_up_to<T>(row(rows, t) + h * work.width + c, work.width - c);
        store_up_to<T>(to + h * work.width + c, sum, work.width - c);
      }
  }

  /// Hands the gradient of a mixture on to its tokens, and to the weights: dp += d·rows_t.
  void unmix(const MixedRows<T> &side, const T *p, int64_t stride, int64_t mixture, const T *d, T *dp) const {
    for (int64_t t = 0; t < work.segment; ++t) {
      const T *x = row(side.from, t);
      T *dx = row(side.gradient, t);
      for (int64_t h = 0; h < work.heads; ++h) {
        const int64_t place = t * stride + h * work.rank + mixture;
        Vector<T> product{};
        for (int64_t c = h * work.width, n = work.width; n > 0; c += width<T>, n -= width<T>) {
          const auto own = load_up_to<T>(d + c, n);
          product += own * load_up_to<T>(x + c, n);
          store_up_to<T>(dx + c, load_up_to<T>(dx + c, n) + p[place] * own, n);
        }
        dp[place] += sum_of<T>(product);
      }
    }
  }
};

/// The segments from `from` to `to` of one sequence; those from `work.segments` on have no mixtures.
template <typename T> void mixture_forward(const MixtureWork<T> &work, int64_t batch, int64_t from, int64_t to) {
  const int64_t stride = padded<T>(work.weights()), columns = work.columns();
  Scratch scratch(sizeof(T) * static_cast<size_t>(work.segment * stride + columns) + 256);
  T *p = scratch.take<T>(work.segment * stride), *mixed = scratch.take<T>(columns);
  for (int64_t index = from; index < to; ++index) {
    const Segment<T> segment(work, batch, index);
    const int64_t count = std::min(work.segment, work.length - segment.start);
    const bool closed = index < work.segments;
    if (closed) segment.weights(p, stride);
    for (const auto &side : work.sides) {
      for (int64_t t = 0; t < count; ++t)
        normalize<T>(columns, segment.row(side.from, t), work.token, work.epsilon, segment.row(side.to, t));
      for (int64_t a = 0; closed && a < work.rank; ++a) {
        segment.mix(side.from, p, stride, a, mixed);
        normalize<T>(columns, mixed, work.mixture, work.epsilon, side.to.head(batch) + segment.place(a) * side.to.row);
      }
    }
  }
}

/// Writes the gradient of the logits: P ∘ (dP - Σ_t P dP).
template <typename T> void logits_backward(const Segment<T> &segment, const T *p, const T *dp, int64_t stride) {
  const int64_t count = segment.work.weights();
  for (int64_t c = 0; c < count; c += width<T>) {
    Vector<T> mean{};
    for (int64_t t = 0; t < segment.work.segment; ++t) mean += load<T>(p + t * stride + c) * load<T>(dp + t * stride + c);
    for (int64_t t = 0; t < segment.work.segment; ++t) {
      const auto slope = load<T>(p + t * stride + c) * (load<T>(dp + t * stride + c) - mean);
      store_up_to<T>(segment.row(segment.work.logits_gradient, t) + c, slope, count - c);
    }
  }
}

template <typename T>
void mixture_backward(const MixtureWork<T> &work, int64_t batch, int64_t from, int64_t to, MixtureNormGradients<T> sums) {
  const int64_t stride = padded<T>(work.weights()), columns = work.columns();
  Scratch scratch(sizeof(T) * static_cast<size_t>(2 * (work.segment * stride + columns)) + 512);
  T *p = scratch.take<T>(work.segment * stride), *dp = scratch.take<T>(work.segment * stride);
  T *mixed = scratch.take<T>(columns), *dmixed = scratch.take<T>(columns);
  for (int64_t index = from; index < to; ++index) {
    const Segment<T> segment(work, batch, index);
    const int64_t count = std::min(work.segment, work.length - segment.start);
    const bool closed = index < work.segments;
    if (closed) {
      segment.weights(p, stride);
      std::memset(static_cast<void *>(dp), 0, sizeof(T) * static_cast<size_t>(work.segment * stride));
    }
    for (const auto &side : work.sides) {
      for (int64_t t = 0; t < count; ++t)
        normalize_backward<T>(columns, segment.row(side.from, t), segment.row(side.cotangent, t), work.token.gain, work.epsilon,
                              sums.token, segment.row(side.gradient, t));
      for (int64_t a = 0; closed && a < work.rank; ++a) {
        segment.mix(side.from, p, stride, a, mixed);
        normalize_backward<T>(columns, mixed, side.cotangent.head(batch) + segment.place(a) * side.cotangent.row, work.mixture.gain,
                              work.epsilon, sums.mixture, dmixed);
        segment.unmix(side, p, stride, a, dmixed, dp);
      }
    }
    if (closed) logits_backward<T>(segment, p, dp, stride);
    else
      for (int64_t t = 0; t < count; ++t) std::fill_n(segment.row(work.logits_gradient, t), work.weights(), T(0));
  }
}
