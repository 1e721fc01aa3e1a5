// Tiles of queries and keys of LSH attention, for one instruction set.
namespace lsh {

/// Queries, and keys, that are worked on together.
constexpr int64_t tile = 64;
/// Rows whose products share a limit, where a row has one.
constexpr int64_t strip = 12;
/// Tiles of keys that stay at hand: a chunk sees much of what the one before it saw.
constexpr int64_t kept = 4;

/// v with its lanes moved round by n places.
template <typename T, int n, size_t... i> INLINE Vector<T> rotated(Vector<T> v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, ((i + n) % width<T>)...);
}
template <typename T, int n = width<T> / 2> INLINE T total(Vector<T> v) {
  if constexpr (n == 0) return v[0];
  else return total<T, n / 2>(v + rotated<T, n>(v, std::make_index_sequence<width<T>>()));
}
template <typename T, int n = width<T> / 2> INLINE T highest(Vector<T> v) {
  if constexpr (n == 0) return v[0];
  else return highest<T, n / 2>(larger<T>(v, rotated<T, n>(v, std::make_index_sequence<width<T>>())));
}
template <typename T> INLINE T product(int64_t n, const T *x, const T *y) {
  Vector<T> sum{};
  for (int64_t i = 0; i < n; i += width<T>) sum += load<T>(x + i) * load<T>(y + i);
  return total<T>(sum);
}

/// Rows of any length from and to such that are padded with zeros.
template <typename T> INLINE void read_row(int64_t n, T scale, const T *from, T *to) {
  const int64_t whole = n / width<T> * width<T>;
  for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, load<T>(from + c) * splat<T>(scale));
  if (whole < n) store<T>(to + whole, load_first<T>(from + whole, n - whole) * splat<T>(scale));
}
template <typename T> INLINE void write_row(int64_t n, const T *from, T *to) {
  const int64_t whole = n / width<T> * width<T>;
  for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, load<T>(from + c));
  if (whole < n) store_first<T>(to + whole, load<T>(from + whole), n - whole);
}
template <typename T> INLINE void add_to_row(int64_t n, const T *from, T *to) {
  const int64_t whole = n / width<T> * width<T>;
  for (int64_t c = 0; c < whole; c += width<T>) store<T>(to + c, load<T>(to + c) + load<T>(from + c));
  if (whole < n) store_first<T>(to + whole, load_first<T>(to + whole, n - whole) + load<T>(from + whole), n - whole);
}
/// -∞ from place `from` to place `to`, a multiple of the width.
template <typename T, size_t... i> INLINE void hide(int64_t from, int64_t to, T *row, std::index_sequence<i...>) {
  const Vector<T> lanes{static_cast<T>(i)...}, none = splat<T>(-static_cast<T>(INFINITY));
  for (int64_t c = from / width<T> * width<T>; c < to; c += width<T>)
    store<T>(row + c, lanes < splat<T>(static_cast<T>(from - c)) ? load<T>(row + c) : none);
}
template <typename T> INLINE void clear(int64_t count, T *x) {
  std::memset(static_cast<void *>(x), 0, sizeof(T) * static_cast<size_t>(count));
}

/// The rows of tokens lie anywhere: asked for some rows ahead, they are there when it is their turn.
constexpr int64_t ahead = 6;
template <typename T> INLINE void ask_for(int64_t columns, const T *row) {
  for (int64_t c = 0; c < columns; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c, 1);
}

/// Rows of the tokens of a stretch, padded with zeros to a whole number of vectors both ways.
template <typename T> void gather(const LSHStretch &at, int64_t columns, const T *rows, int64_t row, T *to) {
  const int64_t room = padded<T>(columns);
  for (int64_t r = 0; r < at.count; ++r) {
    if (r + ahead < at.count) ask_for<T>(columns, rows + at.tokens[r + ahead] * row);
    read_row<T>(columns, T(1), rows + at.tokens[r] * row, to + r * room);
  }
  clear((padded<T>(at.count) - at.count) * room, to + at.count * room);
}

/// A tile of keys: normalized and scaled, their values, and the sums of their cotangents.
template <typename T> struct Keys {
  LSHStretch at;
  /// Whom a query must have the mark of; -1 where a key is hidden. Not compared unless `restricted`.
  bool restricted = false;
  int32_t marks[tile];
  T *k, *k_turned, *v, *dk, *dv; // v turned, backward
  int32_t *place, *bucket;       // [rounds, tile], for unique pairs
};

/// A tile of queries with what belongs to their tokens.
template <typename T> struct Queries {
  LSHStretch at;
  int32_t tokens[tile], marks[tile];
  T *q, *out;                     // forward
  T *cotangent, *dq;              // backward
  T largest[tile], sum[tile], drift[tile];
};

/// How many of a tile's keys each query may see, the first ones, and which of them is the query itself, or -1.
struct View {
  int32_t visible[tile], self[tile];
};

} // namespace lsh
