// Which tiles of keys each block of queries meets, found once for a call and shared by batch and heads.
#include "interval_attention.hpp"

namespace ctorch {

IntervalPlan::IntervalPlan(const Intervals &intervals, int64_t segments) : intervals(intervals) {
  for (int64_t block = 0; block < blocks(); ++block) {
    first_visit.push_back(static_cast<int64_t>(visits.size()));
    walk(block);
  }
  first_visit.push_back(static_cast<int64_t>(visits.size()));
  cut(std::max<int64_t>(1, std::min(segments, blocks())));
  share();
}

void IntervalPlan::walk(int64_t block) {
  const int64_t begin = block * interval_tile, end = begin + rows_of(block);
  // Tiles that all rows see whole by one range, in [from, to), and those that some row may see.
  struct Hull {
    int64_t first = INT64_MAX, last = 0, whole_from = 0, whole_to = INT64_MAX;
  };
  std::vector<Hull> hulls;
  std::vector<int32_t> met;
  for (int64_t range = 0; range < intervals.ranges; ++range) {
    Hull hull;
    for (int64_t query = begin; query < end; ++query) {
      const int64_t from = intervals.start(range, query), to = intervals.end(range, query);
      hull.whole_from = std::max(hull.whole_from, from);
      hull.whole_to = std::min(hull.whole_to, to);
      if (from >= to) continue;
      hull.first = std::min(hull.first, from);
      hull.last = std::max(hull.last, to);
    }
    hulls.push_back(hull);
    for (int64_t tile = hull.first / interval_tile; tile * interval_tile < hull.last; ++tile)
      met.push_back(static_cast<int32_t>(tile));
  }
  std::sort(met.begin(), met.end());
  met.erase(std::unique(met.begin(), met.end()), met.end());
  for (int32_t tile : met) {
    const int64_t from = tile * interval_tile, to = from + keys_of(tile);
    IntervalVisit visit;
    visit.tile = tile;
    visit.first_range = static_cast<int32_t>(met_ranges.size());
    const auto shows_all = [&](const Hull &hull) { return hull.whole_from <= from && hull.whole_to >= to; };
    const auto whole = std::find_if(hulls.begin(), hulls.end(), shows_all);
    if (whole != hulls.end()) met_ranges.push_back(static_cast<int32_t>(whole - hulls.begin()));
    const bool seen = whole != hulls.end() || describe(block, tile, visit);
    visit.end_range = static_cast<int32_t>(met_ranges.size());
    if (seen) visits.push_back(visit);
  }
}

/// False when no query sees anything of the tile.
bool IntervalPlan::describe(int64_t block, int64_t tile, IntervalVisit &visit) {
  const int64_t begin = block * interval_tile, rows = rows_of(block), first = tile * interval_tile, keys = keys_of(tile);
  IntervalPart part{};
  for (int64_t i = 0; i < interval_strips; ++i) {
    const auto from = static_cast<int16_t>(i * interval_strip);
    auto empty = [&](int64_t count) {
      return IntervalSpan{from, static_cast<int16_t>(std::clamp<int64_t>(count, from, from + interval_strip)), INT16_MAX, 0};
    };
    part.keys[i] = empty(keys), part.queries[i] = empty(rows);
  }
  auto widen = [](IntervalSpan &span, int64_t from, int64_t to) {
    span.from = std::min(span.from, static_cast<int16_t>(from));
    span.to = std::max(span.to, static_cast<int16_t>(to));
  };
  int64_t seen = 0;
  for (int64_t range = 0; range < intervals.ranges; ++range) {
    const int64_t before = seen;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = std::max<int64_t>(intervals.start(range, begin + row) - first, 0);
      const int64_t to = std::min(intervals.end(range, begin + row) - first, keys);
      if (from >= to) continue;
      seen += to - from;
      widen(part.queries[row / interval_strip], from, to);
      for (int64_t i = from / interval_strip; i * interval_strip < to; ++i) widen(part.keys[i], row, row + 1);
    }
    if (seen > before) met_ranges.push_back(static_cast<int32_t>(range));
  }
  if (seen == 0) return false;
  if (seen < rows * keys) {
    visit.part = static_cast<int32_t>(parts.size());
    parts.push_back(part);
  }
  return true;
}

void IntervalPlan::cut(int64_t segments) {
  const auto total = static_cast<int64_t>(visits.size());
  segment_begin.push_back(0);
  int64_t block = 0;
  for (int64_t segment = 1; segment < segments; ++segment) {
    while (block < blocks() && first_visit[block] < total * segment / segments) ++block;
    segment_begin.push_back(block);
  }
  segment_begin.push_back(blocks());
}

/// Gives every tile that a segment is summing up a slot, and tiles that several segments meet a partial sum for each.
void IntervalPlan::share() {
  const auto count = static_cast<size_t>(tiles());
  std::vector<int32_t> last(count, -1), slot(count, -1), segments_of(count, 0), next(count, 0), open;
  auto for_each_segment = [&](auto body) {
    for (size_t s = 0; s + 1 < segment_begin.size(); ++s) body(first_visit[segment_begin[s]], first_visit[segment_begin[s + 1]]);
  };
  for_each_segment([&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      if (last[visits[i].tile] < from) ++segments_of[visits[i].tile];
      last[visits[i].tile] = static_cast<int32_t>(i);
    }
  });
  for (size_t tile = 0; tile < count; ++tile) {
    next[tile] = static_cast<int32_t>(partials);
    if (segments_of[tile] == 0) unseen.push_back(static_cast<int32_t>(tile));
    if (segments_of[tile] < 2) continue;
    partials += segments_of[tile];
    shared.push_back({static_cast<int32_t>(tile), next[tile], static_cast<int32_t>(partials)});
  }
  for_each_segment([&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) last[visits[i].tile] = static_cast<int32_t>(i);
    int32_t used = 0;
    open.clear();
    for (int64_t i = from; i < to; ++i) {
      auto &visit = visits[i];
      visit.first = slot[visit.tile] < 0;
      if (visit.first && open.empty()) open.push_back(used++);
      if (visit.first) slot[visit.tile] = open.back(), open.pop_back();
      visit.slot = slot[visit.tile];
      if (last[visit.tile] != i) continue;
      visit.finish = segments_of[visit.tile] > 1 ? next[visit.tile]++ : IntervalVisit::direct;
      open.push_back(visit.slot);
      slot[visit.tile] = -1;
    }
    slots = std::max<int64_t>(slots, used);
  });
}

} // namespace ctorch
