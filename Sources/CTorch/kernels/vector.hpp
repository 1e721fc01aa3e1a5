// Vectors of one instruction set; included by for_each_isa.hpp inside that set's namespace, which has set `vector_bytes`.
// No include guard: it is read once for every set.

#define INLINE inline __attribute__((always_inline))

/// How many numbers of type T a vector holds.
template <typename T> constexpr int width = vector_bytes / static_cast<int>(sizeof(T));

template <typename T> struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
  typedef T unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(T)), may_alias));
};
template <typename T> using Vector = typename VectorOf<T>::type;

/// The next multiple of the vector's width.
template <typename T> constexpr int64_t padded(int64_t n) { return (n + width<T> - 1) / width<T> * width<T>; }

template <typename T> INLINE Vector<T> load(const T *p) { return *reinterpret_cast<const typename VectorOf<T>::unaligned *>(p); }
template <typename T> INLINE void store(T *p, Vector<T> v) { *reinterpret_cast<typename VectorOf<T>::unaligned *>(p) = v; }
template <typename T> INLINE Vector<T> splat(T value) { return Vector<T>{} + value; }

/// The first n lanes, the others zero; n from 0 to the width.
template <typename T> INLINE Vector<T> load_first(const T *p, int64_t n) {
  if (n == width<T>) return load<T>(p);
  T lanes[width<T>] = {};
  std::memcpy(lanes, p, sizeof(T) * static_cast<size_t>(n));
  return load<T>(lanes);
}
template <typename T> INLINE void store_first(T *p, Vector<T> v, int64_t n) {
  if (n == width<T>) return store<T>(p, v);
  T lanes[width<T>];
  store<T>(lanes, v);
  std::memcpy(p, lanes, sizeof(T) * static_cast<size_t>(n));
}

/// The first n lanes, or all if n is larger than that.
template <typename T> INLINE Vector<T> load_up_to(const T *p, int64_t n) {
  return n >= width<T> ? load<T>(p) : load_first<T>(p, n);
}
template <typename T> INLINE void store_up_to(T *p, Vector<T> x, int64_t n) {
  if (n >= width<T>) return store<T>(p, x);
  store_first<T>(p, x, n);
}

/// Calls body(place, numbers) for the vectors of some numbers, of which the last may be shorter.
template <typename T, typename Body> INLINE void for_each_part(int64_t count, Body body) {
  for (int64_t c = 0; c < count; c += width<T>) body(c, std::min<int64_t>(width<T>, count - c));
}

/// x where the comparison `mask` (all bits of a lane) holds, otherwise y.
template <typename V, typename M> INLINE V select(M mask, V x, V y) { return mask ? x : y; }
template <typename T> INLINE Vector<T> larger(Vector<T> x, Vector<T> y) { return x > y ? x : y; }
template <typename T> INLINE Vector<T> smaller(Vector<T> x, Vector<T> y) { return x < y ? x : y; }

/// The vector with every number moved by some places, those at its end to the beginning.
template <int places, typename T, size_t... i> INLINE Vector<T> turned(Vector<T> v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, ((i + places) % width<T>)...);
}
/// All numbers together: halves, then quarters, and so on. `both` joins two vectors.
template <typename T, typename Both> INLINE T folded(Vector<T> v, Both both) {
  constexpr auto lanes = std::make_index_sequence<width<T>>();
  if constexpr (width<T> > 8) v = both(v, turned<8, T>(v, lanes));
  if constexpr (width<T> > 4) v = both(v, turned<4, T>(v, lanes));
  if constexpr (width<T> > 2) v = both(v, turned<2, T>(v, lanes));
  if constexpr (width<T> > 1) v = both(v, turned<1, T>(v, lanes));
  return v[0];
}
template <typename T> INLINE T sum_of(Vector<T> v) {
  return folded<T>(v, [](Vector<T> x, Vector<T> y) __attribute__((always_inline)) { return x + y; });
}
template <typename T> INLINE T largest_of(Vector<T> v) {
  return folded<T>(v, [](Vector<T> x, Vector<T> y) __attribute__((always_inline)) { return larger<T>(x, y); });
}

/// e^r for |r| ≤ ln 2 / 2.
INLINE Vector<float> exponential_series(Vector<float> r) {
  auto p = splat<float>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

/// p 2^n for whole n up to 128; 512-bit vectors have an instruction for it.
template <typename V> INLINE V scaled(V p, V n) {
  if constexpr (vector_bytes == 64) {
    return _mm512_scalef_ps(p, n);
  } else {
    typedef int32_t Whole __attribute__((vector_size(vector_bytes)));
    const auto whole = __builtin_convertvector(n, Whole), half = whole >> 1; // in two halves, for 2^128 is no number
    return p * reinterpret_cast<V>((half + 127) << 23) * reinterpret_cast<V>((whole - half + 127) << 23);
  }
}

/// e^x to within 2 units in the last place of float32, 0 far below and infinity far above; NaN stays NaN.
INLINE Vector<float> exponential(Vector<float> x) {
  const auto low = splat<float>(-87.3365f), high = splat<float>(89);
  auto bounded = low > x ? low : x; // not `larger`: NaN has to come through
  bounded = high < bounded ? high : bounded;
  // x = n ln 2 + r, |r| ≤ ln 2 / 2: adding 1.5 · 2²³ rounds to a whole number.
  const float magic = 12582912.0f;
  auto shifted = bounded * 1.44269504088896341f + magic;
  auto n = shifted - magic;
  auto r = bounded - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  return x < low ? splat<float>(0) : scaled(exponential_series(r), n);
}
INLINE Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
INLINE float exponential(float x) { return std::exp(x); }
INLINE double exponential(double x) { return std::exp(x); }

/// 1 / (1 + e^-x)
template <typename T> INLINE Vector<T> logistic(Vector<T> x) { return T(1) / (T(1) + exponential(-x)); }

/// tanh x = 1 - 2 / (e^2x + 1): to within 1e-7 of float32's 1.
INLINE Vector<float> hyperbolic_tangent(Vector<float> x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }
INLINE Vector<double> hyperbolic_tangent(Vector<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

/// erf x as a quotient of polynomials on [-4, 4], beyond which float32 knows 1 only.
INLINE Vector<float> error_function(Vector<float> x) {
  x = smaller<float>(larger<float>(x, splat<float>(-4)), splat<float>(4));
  const auto square = x * x;
  auto p = square * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * square - 2.10102402082508e-06f;
  p = p * square - 5.69250639462346e-05f;
  p = p * square - 7.34990630326855e-04f;
  p = p * square - 2.95459980854025e-03f;
  p = p * square - 1.60960333262415e-02f;
  auto q = square * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * square - 1.68282697438203e-03f;
  q = q * square - 7.37332916720468e-03f;
  q = q * square - 1.42647390514189e-02f;
  return x * p / q;
}
INLINE Vector<double> error_function(Vector<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::erf(x[i]);
  return x;
}
