// The rotation of pairs of channels for one instruction set; see rotation.cpp for the equations.
#include "feature_maps.kernels.hpp"

/// Every number in the place of its neighbour, 2 i and 2 i + 1.
template <typename T, size_t... i> INLINE Vector<T> exchanged(Vector<T> v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, (i ^ 1)...);
}
template <typename T> INLINE Vector<T> exchanged(Vector<T> v) { return exchanged<T>(v, std::make_index_sequence<width<T>>()); }

/// cos and sin of one position. With neighbours each stands twice, sin first with the other sign: what each channel and its
/// neighbour are multiplied by.
template <typename T> struct Angles {
  T *own, *other;

  Angles(const RotationWork<T> &work, Scratch &scratch)
      : own(scratch.take<T>(2 * work.pairs + width<T>)), other(scratch.take<T>(2 * work.pairs + width<T>)) {}

  void read(const RotationWork<T> &work, const T *cosines, const T *sines) {
    for (int64_t i = 0; i < work.pairs; ++i) {
      if (work.neighbours) {
        own[2 * i] = own[2 * i + 1] = cosines[i];
        other[2 * i] = -sines[i], other[2 * i + 1] = sines[i];
      } else {
        own[i] = cosines[i], other[i] = sines[i];
      }
    }
  }
};

/// y = x with pairs turned, or turned `back`; y may be x.
template <bool back, typename T> INLINE void turn(const RotationWork<T> &work, const Angles<T> &angles, const T *x, T *y) {
  const auto sign = splat<T>(back ? -1 : 1);
  const int64_t pairs = work.pairs;
  if (work.neighbours) {
    for_each_part<T>(2 * pairs, [&](int64_t c, int64_t n) {
      const auto v = load_first<T>(x + c, n);
      store_first<T>(y + c, v * load<T>(angles.own + c) + exchanged<T>(v) * load<T>(angles.other + c) * sign, n);
    });
  } else {
    for_each_part<T>(pairs, [&](int64_t c, int64_t n) {
      const auto a = load_first<T>(x + c, n), b = load_first<T>(x + pairs + c, n);
      const auto cosine = load<T>(angles.own + c), sine = load<T>(angles.other + c) * sign;
      store_first<T>(y + c, a * cosine - b * sine, n);
      store_first<T>(y + pairs + c, b * cosine + a * sine, n);
    });
  }
  for (int64_t c = 2 * pairs; c < work.columns; ++c) y[c] = x[c];
}

/// x - 2 (x · mirror) mirror
template <typename T> INLINE void reflect(const RotationWork<T> &work, T *x) {
  Vector<T> products{};
  for_each_part<T>(work.columns,
                   [&](int64_t c, int64_t n) { products += load_first<T>(x + c, n) * load_first<T>(work.mirror + c, n); });
  const T twice = 2 * sum_of<T>(products);
  for_each_part<T>(work.columns, [&](int64_t c, int64_t n) {
    store_first<T>(x + c, load_first<T>(x + c, n) - load_first<T>(work.mirror + c, n) * twice, n);
  });
}

/// What is turned of a row: itself, or `room` with what map and mirror make of it.
template <typename T> INLINE const T *before_turning(const RotationWork<T> &work, const T *x, T *room) {
  if (work.map == FeatureMap::identity && !work.mirror) return x;
  for_each_part<T>(work.columns,
                   [&](int64_t c, int64_t n) { store_first<T>(room + c, feature<T>(work.map, load_first<T>(x + c, n)), n); });
  if (work.mirror) reflect(work, room);
  return room;
}

template <typename T> size_t rotation_room(const RotationWork<T> &work) {
  return sizeof(T) * 6 * static_cast<size_t>(work.columns + 2 * width<T>) + 6 * 64;
}

template <typename T> void rotation_forward(const RotationWork<T> &work, int64_t number) {
  const RotationTask<T> task(work, number);
  Scratch scratch(rotation_room(work));
  Angles<T> angles(work, scratch);
  T *room = scratch.take<T>(work.columns);
  for (int64_t i = task.first; i < task.last; ++i) {
    angles.read(work, work.cosines + task.angles + i * work.pairs, work.sines + task.angles + i * work.pairs);
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      const T *x = before_turning(work, work.x.head(head) + i * work.x.row, room);
      turn<false>(work, angles, x, work.out.head(head) + i * work.out.row);
    }
  }
}

/// Adds to `own` the products of x and g, and to `other` those of a channel's g and what it was turned with.
template <typename T> INLINE void add_angles(const RotationWork<T> &work, const T *x, const T *g, T *own, T *other) {
  const int64_t pairs = work.pairs;
  for_each_part<T>(work.neighbours ? 2 * pairs : pairs, [&](int64_t c, int64_t n) {
    const auto a = load_first<T>(x + c, n), ga = load_first<T>(g + c, n);
    if (work.neighbours) {
      store<T>(own + c, load<T>(own + c) + a * ga);
      store<T>(other + c, load<T>(other + c) + exchanged<T>(a) * ga);
    } else {
      const auto b = load_first<T>(x + pairs + c, n), gb = load_first<T>(g + pairs + c, n);
      store<T>(own + c, load<T>(own + c) + a * ga + b * gb);
      store<T>(other + c, load<T>(other + c) + a * gb - b * ga);
    }
  });
}

template <typename T> void rotation_backward(const RotationWork<T> &work, int64_t number) {
  const RotationTask<T> task(work, number);
  const int64_t pairs = work.pairs, padding = 2 * pairs + width<T>;
  Scratch scratch(rotation_room(work));
  Angles<T> angles(work, scratch);
  T *room = scratch.take<T>(work.columns), *own = scratch.take<T>(padding), *other = scratch.take<T>(padding);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t at = task.angles + i * pairs;
    angles.read(work, work.cosines + at, work.sines + at);
    if (work.of_cosines) std::fill_n(own, padding, T(0)), std::fill_n(other, padding, T(0));
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      const T *x = work.x.data ? work.x.head(head) + i * work.x.row : nullptr;
      const T *g = work.cotangent.head(head) + i * work.cotangent.row;
      T *dx = work.out.head(head) + i * work.out.row;
      if (work.of_cosines) add_angles(work, before_turning(work, x, room), g, own, other);
      turn<true>(work, angles, g, dx);
      if (work.mirror) reflect(work, dx);
      if (work.map == FeatureMap::identity) continue;
      for_each_part<T>(work.columns, [&](int64_t c, int64_t n) {
        const auto v = load_first<T>(x + c, n);
        store_first<T>(dx + c, load_first<T>(dx + c, n) * feature_slope<T>(work.map, v, feature<T>(work.map, v)), n);
      });
    }
    if (!work.of_cosines) continue;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      work.of_cosines[at + pair] = work.neighbours ? own[2 * pair] + own[2 * pair + 1] : own[pair];
      work.of_sines[at + pair] = work.neighbours ? other[2 * pair + 1] - other[2 * pair] : other[pair];
    }
  }
}
