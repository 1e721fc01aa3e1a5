// Positions as rotations of pairs of channels (Su et al. 2021, arXiv 2104.09864, eq. 34), after a feature map and a reflection if
// there are any, as in TransNormer (Qin et al. 2022, arXiv 2210.10340):
//
//   z = φ(x),   w = z - 2 (z·u) u,   (y_a, y_b) = (w_a cos - w_b sin, w_b cos + w_a sin)
//
// One pass over memory. The gradient is turned back, reflected, and multiplied by φ'; those of cos and sin are sums over the heads,
// and over the sequences that share them.
#include "rotation.hpp"
#include "empty_result.hpp"

#define KERNELS "rotation.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Plain loops.
namespace ctorch::reference {

template <typename T> std::vector<T> before_turning(const RotationWork<T> &work, const T *x) {
  std::vector<T> z(static_cast<size_t>(work.columns));
  for (int64_t c = 0; c < work.columns; ++c) z[c] = feature(work.map, x[c]);
  return z;
}

template <typename T> void reflect(const RotationWork<T> &work, std::vector<T> &z) {
  if (!work.mirror) return;
  T product = 0;
  for (int64_t c = 0; c < work.columns; ++c) product += z[c] * work.mirror[c];
  for (int64_t c = 0; c < work.columns; ++c) z[c] -= 2 * product * work.mirror[c];
}

template <typename T> struct Pair {
  int64_t a, b;
  Pair(const RotationWork<T> &work, int64_t i) : a(work.neighbours ? 2 * i : i), b(work.neighbours ? a + 1 : i + work.pairs) {}
};

template <typename T> void rotation_forward(const RotationWork<T> &work, int64_t number) {
  const RotationTask<T> task(work, number);
  for (int64_t head = task.first_head; head < task.last_head; ++head)
    for (int64_t i = task.first; i < task.last; ++i) {
      auto w = before_turning(work, work.x.head(head) + i * work.x.row);
      reflect(work, w);
      T *y = work.out.head(head) + i * work.out.row;
      std::copy(w.begin(), w.end(), y);
      for (int64_t pair = 0; pair < work.pairs; ++pair) {
        const Pair<T> at(work, pair);
        const T cosine = work.cosines[task.angles + i * work.pairs + pair], sine = work.sines[task.angles + i * work.pairs + pair];
        y[at.a] = w[at.a] * cosine - w[at.b] * sine;
        y[at.b] = w[at.b] * cosine + w[at.a] * sine;
      }
    }
}

template <typename T> void rotation_backward(const RotationWork<T> &work, int64_t number) {
  const RotationTask<T> task(work, number);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t angles = task.angles + i * work.pairs;
    for (T *sums : {work.of_cosines, work.of_sines})
      if (sums) std::fill_n(sums + angles, work.pairs, T(0));
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      const T *x = work.x.data ? work.x.head(head) + i * work.x.row : nullptr;
      const T *g = work.cotangent.head(head) + i * work.cotangent.row;
      std::vector<T> w, d(g, g + work.columns);
      if (work.of_cosines) w = before_turning(work, x), reflect(work, w);
      for (int64_t pair = 0; pair < work.pairs; ++pair) {
        const Pair<T> at(work, pair);
        const T cosine = work.cosines[angles + pair], sine = work.sines[angles + pair];
        d[at.a] = g[at.a] * cosine + g[at.b] * sine;
        d[at.b] = g[at.b] * cosine - g[at.a] * sine;
        if (!work.of_cosines) continue;
        work.of_cosines[angles + pair] += g[at.a] * w[at.a] + g[at.b] * w[at.b];
        work.of_sines[angles + pair] += g[at.b] * w[at.a] - g[at.a] * w[at.b];
      }
      reflect(work, d);
      for (int64_t c = 0; c < work.columns; ++c)
        work.out.head(head)[i * work.out.row + c] = work.map == FeatureMap::identity ? d[c] : d[c] * feature_slope(work.map, x[c]);
    }
  }
}

} // namespace ctorch::reference

namespace {

/// cosines, sines and mirror, which may be undefined.
template <typename T>
RotationWork<T> work_of(FeatureMap map, bool neighbours, const Tensor &like, const Tensor &cosines, const Tensor &sines,
                        const Tensor &mirror) {
  RotationWork<T> work{};
  work.map = map, work.neighbours = neighbours;
  work.batch = like.size(0), work.heads = like.size(1), work.length = like.size(2), work.columns = like.size(3);
  work.sets = cosines.size(0), work.pairs = cosines.size(2);
  work.cosines = cosines.const_data_ptr<T>(), work.sines = sines.const_data_ptr<T>();
  work.mirror = mirror.defined() ? mirror.const_data_ptr<T>() : nullptr;
  return work;
}

struct Rotation : torch::autograd::Function<Rotation> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &cosines, const Tensor &sines,
                        const std::optional<Tensor> &mirror, int64_t map, bool neighbours) {
    auto y = heads_side_by_side(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rotation", [&] {
      auto work = work_of<scalar_t>(static_cast<FeatureMap>(map), neighbours, x, cosines, sines, mirror.value_or(Tensor()));
      work.x = rows<scalar_t>(x), work.out = mutable_rows<scalar_t>(y);
      for_each_task(work.tasks(), [&](int64_t task) { DISPATCH(rotation_forward<scalar_t>, work, task); });
    });
    const bool wants_angles = cosines.requires_grad() || sines.requires_grad();
    const bool reads_x = wants_angles || static_cast<FeatureMap>(map) != FeatureMap::identity;
    context->save_for_backward({reads_x ? x : Tensor(), cosines, sines, mirror.value_or(Tensor())});
    context->saved_data["map"] = map;
    context->saved_data["neighbours"] = neighbours;
    context->saved_data["angles"] = wants_angles;
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the rotation cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    auto &data = context->saved_data;
    const auto &x = saved[0], &cosines = saved[1];
    const auto cotangent = with_rows(grads[0]);
    auto dx = heads_side_by_side(cotangent);
    Tensor of_cosines, of_sines;
    if (data["angles"].toBool()) of_cosines = at::empty_like(cosines), of_sines = at::empty_like(cosines);
    AT_DISPATCH_FLOATING_TYPES(cotangent.scalar_type(), "rotation", [&] {
      const auto map = static_cast<FeatureMap>(data["map"].toInt());
      auto work = work_of<scalar_t>(map, data["neighbours"].toBool(), cotangent, cosines, saved[2], saved[3]);
      if (x.defined()) work.x = rows<scalar_t>(x);
      work.cotangent = rows<scalar_t>(cotangent), work.out = mutable_rows<scalar_t>(dx);
      if (of_cosines.defined())
        work.of_cosines = of_cosines.mutable_data_ptr<scalar_t>(), work.of_sines = of_sines.mutable_data_ptr<scalar_t>();
      for_each_task(work.tasks(), [&](int64_t task) { DISPATCH(rotation_backward<scalar_t>, work, task); });
    });
    return {dx, of_cosines, of_sines, Tensor(), Tensor(), Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_rotate(ctorch_tensor x, ctorch_tensor cosines, ctorch_tensor sines, ctorch_tensor mirror,
                                       int32_t feature_map, bool neighbours, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &given = get(x), &cosine = get(cosines), &sine = get(sines);
    const auto direction = optional(mirror);
    TORCH_CHECK(given.dim() == 4 && given.is_cpu(), "a rotation takes x [batch, heads, length, columns] on the CPU, not ",
                given.sizes());
    TORCH_CHECK(cosine.dim() == 3 && sine.sizes() == cosine.sizes() && (cosine.size(0) == 1 || cosine.size(0) == given.size(0)) &&
                    cosine.size(1) == given.size(2) && 2 * cosine.size(2) <= given.size(3),
                "a rotation of ", given.sizes(), " takes cosines and sines [1 or batch, length, at most half of the columns], not ",
                cosine.sizes(), " and ", sine.sizes());
    TORCH_CHECK(!direction.defined() || direction.sizes() == given.sizes().slice(3), "a reflection of ", given.sizes(),
                " takes a vector of its columns, not ", direction.sizes());
    const auto type = at::promote_types(given.scalar_type(), at::kFloat);
    if (given.numel() == 0) return empty_result(given.sizes(), {given, cosine, sine});
    auto ready = [&](const Tensor &t) { return t.to(type).contiguous(); };
    const auto unit = direction.defined() ? std::optional<Tensor>(ready(direction.detach())) : std::nullopt;
    return Rotation::apply(with_rows(given.to(type)), ready(cosine), ready(sine), unit, static_cast<int64_t>(feature_map),
                           neighbours)
        .to(given.scalar_type());
  });
}
