// Plain loops of LSH attention, a token at a time, and a round at a time; see lsh_attention.cpp for the equations.
#pragma once

#include "lsh_attention.hpp"

#include <cmath>
#include <map>

namespace ctorch::reference::lsh {

/// Who is in which chunk.
template <typename T> struct Chunks {
  const LSHWork<T> &work;
  int64_t group;
  LSHRounds all;
  std::vector<std::vector<int64_t>> members; // of each chunk of all rounds
  std::vector<std::vector<int64_t>> own;     // [rounds][token]: its chunk

  Chunks(const LSHWork<T> &work, int64_t group) : work(work), group(group), all(work.rounds_of(group)), members(all.all()) {
    for (int64_t round = 0; round < all.rounds; ++round) {
      std::vector<int64_t> tokens;
      for (int64_t i = 0; i < work.length; ++i)
        if (takes_part(i)) tokens.push_back(i);
      std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t i, int64_t j) { return bucket(round, i) < bucket(round, j); });
      own.emplace_back(work.length, -1);
      for (size_t slot = 0; slot < tokens.size(); ++slot) {
        own[round][tokens[slot]] = round * all.chunks + static_cast<int64_t>(slot) / work.settings.chunk;
        members[own[round][tokens[slot]]].push_back(tokens[slot]);
      }
    }
  }

  bool hidden(int64_t i) const { return work.mask && !work.real(group)[i]; }
  bool takes_part(int64_t i) const { return !work.settings.real_length || !hidden(i); }
  int64_t bucket(int64_t round, int64_t i) const {
    if (all.single()) return 0;
    return hidden(i) ? work.settings.bucket_count : work.buckets[work.row(group, round) + i];
  }

  /// The tokens that i meets in a round, as often as it does.
  std::vector<int64_t> met(int64_t round, int64_t i) const {
    std::vector<int64_t> found;
    for (int64_t offset = -all.before; offset <= all.after; ++offset) {
      const int64_t c = all.around(own[round][i], offset);
      for (int64_t j : members[c]) // buckets of two rounds are never the same
        if (!work.settings.within_bucket || (c / all.chunks == round && bucket(round, i) == bucket(round, j))) found.push_back(j);
    }
    return found;
  }
};

/// A token's scores in one round.
template <typename T> struct Scores {
  std::vector<int64_t> tokens;
  std::vector<T> s;
  T z;
};

template <typename T> T key_size(const LSHWork<T> &work, const T *x) {
  T squares = 0;
  for (int64_t f = 0; f < work.features; ++f) squares += x[f] * x[f];
  return std::sqrt(squares + static_cast<T>(work.settings.epsilon) * static_cast<T>(work.features));
}

/// For each round the scores of token i.
template <typename T> std::vector<Scores<T>> scores(const Chunks<T> &chunks, int64_t i) {
  const auto &work = chunks.work;
  const auto &settings = work.settings;
  std::map<int64_t, int64_t> times;
  for (int64_t round = 0; round < chunks.all.rounds; ++round)
    for (int64_t j : chunks.met(round, i)) ++times[j];
  std::vector<Scores<T>> found;
  const T *x = work.x.head(chunks.group), *q = x + i * work.x.row;
  for (int64_t round = 0; round < chunks.all.rounds; ++round) {
    Scores<T> one;
    T largest = -static_cast<T>(INFINITY), sum = 0;
    for (int64_t j : chunks.met(round, i)) {
      if (j != i && (chunks.hidden(j) || (settings.causal && j > i))) continue;
      const T *k = x + j * work.x.row;
      T s = 0;
      for (int64_t f = 0; f < work.features; ++f) s += q[f] * k[f];
      s *= static_cast<T>(settings.scale) / key_size(work, k);
      if (settings.unique_pairs && !chunks.all.single()) s -= static_cast<T>(work.discounts[std::max<int64_t>(times[j], 1)]);
      if (j == i) s = static_cast<T>(settings.self_logit);
      one.tokens.push_back(j);
      one.s.push_back(s);
      largest = std::max(largest, s);
    }
    for (T s : one.s) sum += std::exp(s - largest);
    one.z = largest + std::log(sum);
    found.push_back(one);
  }
  return found;
}

/// softmax_r(z_r)
template <typename T> std::vector<T> shares(const std::vector<Scores<T>> &rounds) {
  T largest = -static_cast<T>(INFINITY), sum = 0;
  for (const auto &one : rounds) largest = std::max(largest, one.z);
  std::vector<T> share;
  for (const auto &one : rounds) share.push_back(std::exp(one.z - largest)), sum += share.back();
  for (T &one : share) one /= sum;
  return share;
}

template <typename T> void normalize(const LSHWork<T> &, int64_t) {}
template <typename T> void forward(const LSHWork<T> &, int64_t, int64_t) {}

/// All of the forward pass.
template <typename T> void merge(const LSHWork<T> &work, int64_t group) {
  const Chunks<T> chunks(work, group);
  for (int64_t i = 0; i < work.length; ++i) {
    T *out = work.out.head(group) + i * work.out.row;
    for (int64_t e = 0; e < work.values; ++e) out[e] = 0;
    if (!chunks.takes_part(i)) continue;
    const auto rounds = scores(chunks, i);
    const auto share = shares(rounds);
    for (size_t r = 0; r < rounds.size(); ++r)
      for (size_t c = 0; c < rounds[r].tokens.size(); ++c) {
        const T p = share[r] * std::exp(rounds[r].s[c] - rounds[r].z);
        const T *v = work.v.head(group) + rounds[r].tokens[c] * work.v.row;
        for (int64_t e = 0; e < work.values; ++e) out[e] += p * v[e];
      }
  }
}

template <typename T> void find_drift(const LSHWork<T> &, int64_t) {}
template <typename T> void backward(const LSHWork<T> &, int64_t, int64_t) {}

/// All of the backward pass.
template <typename T> void collect(const LSHWork<T> &work, int64_t group) {
  const Chunks<T> chunks(work, group);
  const int64_t d = work.features;
  const T *x = work.x.head(group), tau = static_cast<T>(work.settings.scale);
  for (int64_t i = 0; i < work.length; ++i) {
    std::fill_n(work.dx.head(group) + i * work.dx.row, d, T(0));
    std::fill_n(work.dv.head(group) + i * work.dv.row, work.values, T(0));
  }
  std::vector<T> dk(static_cast<size_t>(work.length * d)); // of the normalized keys
  for (int64_t i = 0; i < work.length; ++i) {
    if (!chunks.takes_part(i)) continue;
    const T *g = work.cotangent.head(group) + i * work.cotangent.row, *out = work.out.head(group) + i * work.out.row;
    const auto rounds = scores(chunks, i);
    const auto share = shares(rounds);
    for (size_t r = 0; r < rounds.size(); ++r)
      for (size_t c = 0; c < rounds[r].tokens.size(); ++c) {
        const int64_t j = rounds[r].tokens[c];
        const T p = share[r] * std::exp(rounds[r].s[c] - rounds[r].z), *v = work.v.head(group) + j * work.v.row;
        T *dv = work.dv.head(group) + j * work.dv.row, moved = 0;
        for (int64_t e = 0; e < work.values; ++e) {
          moved += g[e] * (v[e] - out[e]);
          dv[e] += p * g[e];
        }
        if (j == i) continue;
        const T ds = p * moved * tau, size = key_size(work, x + j * work.x.row);
        for (int64_t f = 0; f < d; ++f) {
          work.dx.head(group)[i * work.dx.row + f] += ds * x[j * work.x.row + f] / size;
          dk[j * d + f] += ds * x[i * work.x.row + f];
        }
      }
  }
  for (int64_t j = 0; j < work.length; ++j) {
    const T *k = x + j * work.x.row, size = key_size(work, k);
    T along = 0;
    for (int64_t f = 0; f < d; ++f) along += k[f] * dk[j * d + f];
    for (int64_t f = 0; f < d; ++f)
      work.dx.head(group)[j * work.dx.row + f] += (dk[j * d + f] - k[f] * along / (size * size)) / size;
  }
}

} // namespace ctorch::reference::lsh
