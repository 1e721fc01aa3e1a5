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
    case CTORCH_STEP_DIGITS: return j < i && i - j <= lowest_digit(j + 1);
    default: {
      bool is_seen = false;
      for_each(i, [&](int64_t other) { is_seen |= other == j; });
      return is_seen;
    }
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
    case CTORCH_STEP_TOKEN:
      for (int64_t j = i == size ? 0 : size; j <= (i == size ? i : std::min(i, size)); ++j) body(j);
      return;
    default: return for_each_in_rows(i, body);
    }
  }

private:
  template <typename Body> void for_each_in_rows(int64_t i, Body body) const {
    const int64_t column = i % size, above = i - column - size;
    switch (kind) {
    case CTORCH_STEP_COLUMN_BELOW_FIRST:
      if (column < size - count)
        for (int64_t j = i; j >= size; j -= size) body(j);
      return;
    case CTORCH_STEP_COLUMN_LEFT:
      if (column > 0)
        for (int64_t j = i - size - 1; j >= 0; j -= size) body(j);
      return;
    default:
      if (above < 0) return;
      for (int64_t other = 0; other < size; ++other)
        if (kind == CTORCH_STEP_ROW_ABOVE || (kind == CTORCH_STEP_OWN_ABOVE && other == column) ||
            (kind == CTORCH_STEP_OTHERS_ABOVE && other != column) || (kind == CTORCH_STEP_RIGHT_ABOVE && other > column))
          body(above + other);
    }
  }
};

/// What the present token sees of a cache: by heads, head h has number h mod their count.
struct StepLook {
  std::vector<std::vector<StepSight>> sights;
  std::vector<std::vector<int64_t>> rows;

  const std::vector<int64_t> &seen(int64_t head) const { return rows[static_cast<size_t>(head) % rows.size()]; }
};

/// Keys and values, a row each: of the tokens so far, all of them or the `first` and as many of the last as there is `room` for;
/// or of what operations put there.
struct StepCache {
  int64_t width, first, room; // numbers in a row; rows that stay; rows of a ring, 0 for rows without end
  bool takes_tokens, has_values;
  int64_t count = 0; // rows that there ever were, the present token's included
  std::vector<float> keys, values;
  std::vector<StepLook> looks;

  /// Before a token: a row for it, and what it sees.
  void make_room() {
    ++count;
    const auto needed = static_cast<size_t>(rows() * width);
    if (keys.size() < needed) keys.resize(needed), values.resize(has_values ? needed : 0);
    for (auto &look : looks) {
      look.rows.resize(look.sights.size());
      for (size_t i = 0; i < look.sights.size(); ++i) choose(look.sights[i], look.rows[i]);
    }
  }

  /// Some numbers of the present token's row; without values, of keys only.
  void set(int64_t from, int64_t numbers, const float *key, const float *value) {
    std::copy_n(key, numbers, keys.data() + row() * width + from);
    if (value) std::copy_n(value, numbers, values.data() + row() * width + from);
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

private:
  /// Every position once.
  void choose(const std::vector<StepSight> &sights, std::vector<int64_t> &seen) const {
    const int64_t i = count - 1;
    seen.clear();
    for (auto sight = sights.begin(); sight != sights.end(); ++sight)
      sight->for_each(i, [&](int64_t j) {
        auto sees = [&](const StepSight &earlier) { return earlier.contains(i, j); };
        if (std::none_of(sights.begin(), sight, sees)) seen.push_back(row_of(j));
      });
  }
};

/// The rows of a cache that some head sees.
struct SeenRows {
  const int64_t *chosen = nullptr; // none: all
  int64_t count;

  SeenRows(const StepCache &cache, int64_t look, int64_t head) : count(cache.rows()) {
    if (look < 0) return;
    const auto &seen = cache.looks[static_cast<size_t>(look)].seen(head);
    chosen = seen.data(), count = static_cast<int64_t>(seen.size());
  }
  int64_t operator[](int64_t i) const { return chosen ? chosen[i] : i; }
};

} // namespace ctorch
