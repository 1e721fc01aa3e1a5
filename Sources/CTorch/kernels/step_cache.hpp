// Keys and values that a step program remembers, and which of them a token sees.
#pragma once

#include "CTorch.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ctorch {

/// The lowest binary digit that is set.
inline int64_t lowest_digit(int64_t n) { return n & -n; }

/// Earlier positions that a query sees; `kind` is one of CTORCH_STEP_BAND and so on, see ctorch_step_see.
struct StepSight {
  int32_t kind;
  int64_t size, count;

  /// Whether position i sees j, which is not later.
  bool contains(int64_t i, int64_t j) const {
    switch (kind) {
    case CTORCH_STEP_BAND: return (i - j) % size == 0 && (i - j) / size < count;
    case CTORCH_STEP_BLOCK: return j / size >= i / size - count;
    case CTORCH_STEP_COLUMNS: return j % size >= size - count;
    case CTORCH_STEP_TOKEN: return i == size || j == size;
    case CTORCH_STEP_LOWEST_DIGIT: return j > i - lowest_digit(i + 1);
    default: return j < i && i - j <= lowest_digit(j + 1);
    }
  }

  template <typename Body> void for_each(int64_t i, Body body) const {
    switch (kind) {
    case CTORCH_STEP_BAND:
      for (int64_t n = 0; n < count && n <= i / size; ++n) body(i - n * size);
      return;
    case CTORCH_STEP_BLOCK:
      for (int64_t j = std::max<int64_t>(0, (i / size - count) * size); j <= i; ++j) body(j);
      return;
    case CTORCH_STEP_COLUMNS:
      for (int64_t start = 0; start <= i; start += size)
        for (int64_t j = start + size - count; j < std::min(start + size, i + 1); ++j) body(j);
      return;
    case CTORCH_STEP_DIGITS:
      for (int64_t end = i; end > 0; end -= lowest_digit(end)) body(end - 1);
      return;
    case CTORCH_STEP_LOWEST_DIGIT:
      for (int64_t j = i + 1 - lowest_digit(i + 1); j <= i; ++j) body(j);
      return;
    default:
      for (int64_t j = i == size ? 0 : size; j <= (i == size ? i : std::min(i, size)); ++j) body(j);
    }
  }
};

/// Keys and values, a row each: of the tokens so far, all of them or the `first` and as many of the last as there is `room` for;
/// or of what operations put there.
struct StepCache {
  int64_t width, first, room; // numbers in a row; rows that stay; rows of a ring, 0 for rows without end
  bool takes_tokens;
  int64_t count = 0; // rows that there ever were, the present token's included
  std::vector<float> keys, values;
  std::vector<std::vector<StepSight>> sights;  // head h has number h mod their count; none: everything is seen
  std::vector<std::vector<int64_t>> seen_rows; // of the present token, for each of the sights

  /// Before a token: a row for it, and what it sees.
  void make_room() {
    ++count;
    const auto needed = static_cast<size_t>(rows() * width);
    if (keys.size() < needed) keys.resize(needed), values.resize(needed);
    seen_rows.resize(sights.size());
    for (size_t i = 0; i < sights.size(); ++i) look(sights[i], seen_rows[i]);
  }

  /// Some numbers of the present token's row.
  void set(int64_t from, int64_t numbers, const float *key, const float *value) {
    std::copy_n(key, numbers, keys.data() + row() * width + from);
    std::copy_n(value, numbers, values.data() + row() * width + from);
  }

  /// One more row; without values, of keys only.
  void append(const float *key, const float *value) {
    ++count;
    keys.insert(keys.end(), key, key + width);
    if (value) values.insert(values.end(), value, value + width);
  }

  int64_t rows() const { return room == 0 ? count : std::min(count, first + room); }
  /// The present token's: in a ring, that of the token that is the first to be forgotten.
  int64_t row() const { return row_of(count - 1); }
  int64_t row_of(int64_t position) const { return room == 0 || position < first ? position : first + (position - first) % room; }
  /// How many rows are younger; where none stay for ever.
  int64_t age(int64_t of) const { return room == 0 ? count - 1 - of : (row() - of + room) % room; }
  /// The rows that a head sees; null for all.
  const std::vector<int64_t> *seen(int64_t head) const {
    return seen_rows.empty() ? nullptr : &seen_rows[static_cast<size_t>(head) % seen_rows.size()];
  }

private:
  /// Every position once, its own always.
  void look(const std::vector<StepSight> &atoms, std::vector<int64_t> &rows) const {
    const int64_t i = count - 1;
    rows.assign(1, row());
    for (auto atom = atoms.begin(); atom != atoms.end(); ++atom)
      atom->for_each(i, [&](int64_t j) {
        auto sees = [&](const StepSight &earlier) { return earlier.contains(i, j); };
        if (j != i && std::none_of(atoms.begin(), atom, sees)) rows.push_back(row_of(j));
      });
  }
};

} // namespace ctorch
