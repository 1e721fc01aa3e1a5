// What the rotation of pairs of channels works on; see rotation.cpp for the equations.
#pragma once

#include "feature_maps.hpp"
#include "team.hpp"

#include <algorithm>

namespace ctorch {

/// A task takes `block` positions, of all heads and of all sequences that are turned by the same angles.
template <typename T> struct RotationWork {
  static constexpr int64_t block = 32;

  FeatureMap map;
  bool neighbours;
  int64_t batch, heads, length, columns, pairs;
  int64_t sets; // of angles: 1, or one for each sequence
  Rows<const T> x; // data may be null in the backward pass, where neither the map nor the angles need it
  Rows<const T> cotangent;
  Rows<T> out;                     // y, or dx
  const T *mirror;                 // null for none
  const T *cosines, *sines;        // [sets, length, pairs]
  T *of_cosines, *of_sines;        // their gradients, null if not wanted

  int64_t blocks() const { return (length + block - 1) / block; }
  int64_t tasks() const { return sets * blocks(); }
};

/// The positions and the rows of a task.
template <typename T> struct RotationTask {
  int64_t first, last, first_head, last_head, angles;

  RotationTask(const RotationWork<T> &work, int64_t task) {
    const int64_t set = task / work.blocks(), sequences = work.batch / work.sets;
    first = task % work.blocks() * work.block, last = std::min(work.length, first + work.block);
    first_head = set * sequences * work.heads, last_head = first_head + sequences * work.heads;
    angles = set * work.length * work.pairs;
  }
};

} // namespace ctorch
