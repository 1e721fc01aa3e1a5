// The hash of LSH attention for one instruction set; see lsh_attention_hash.cpp.
namespace lsh {

/// Which of the directions y [count, lsh_hash_tokens], and of their opposites after them, is the largest for each of a vector of
/// tokens: the first one, if several are.
template <typename T> INLINE Vector<T> nearest(int64_t count, const T *y) {
  auto most = load<T>(y), least = most, at_most = Vector<T>{}, at_least = Vector<T>{};
  for (int64_t s = 1; s < count; ++s) {
    const auto next = load<T>(y + s * lsh_hash_tokens), number = splat<T>(static_cast<T>(s));
    at_most = next > most ? number : at_most;
    most = larger<T>(next, most);
    at_least = next < least ? number : at_least;
    least = smaller<T>(next, least);
  }
  return -least > most ? at_least + static_cast<T>(count) : at_most;
}

/// Hashes the tokens from `start`: tokens lie side by side in the vectors, so that their largest products are found at once.
template <typename T> void hash(const LSHHashWork<T> &work, int64_t group, int64_t start) {
  constexpr int64_t n = lsh_hash_tokens;
  const int64_t count = std::min(n, work.length - start), features = work.features, rows = work.rounds * work.directions;
  Scratch scratch(sizeof(T) * static_cast<size_t>(n * (features + rows + 1)) + 4096);
  T *turned = scratch.zeros<T>(n * features), *y = scratch.take<T>(n * rows), *numbers = scratch.take<T>(n);
  transpose<T>(count, features, work.x.head(group) + start * work.x.row, work.x.row, turned, n);
  multiply<T>(rows, n, features, work.rotation(group), 1, work.row, turned, n, y, n, false);
  for (int64_t round = 0; round < work.rounds; ++round) {
    int32_t *to = work.bucket(group, round) + start, unit = 1;
    const T *piece = y + round * work.directions * n;
    for (int64_t digit = 0; digit < work.digits; ++digit) {
      const int64_t half = work.factors[digit] / 2;
      for (int64_t i = 0; i < n; i += width<T>) store<T>(numbers + i, nearest<T>(half, piece + i));
      for (int64_t i = 0; i < count; ++i) to[i] = (digit > 0 ? to[i] : 0) + unit * static_cast<int32_t>(numbers[i]);
      piece += half * n;
      unit *= static_cast<int32_t>(work.factors[digit]);
    }
  }
}

} // namespace lsh
