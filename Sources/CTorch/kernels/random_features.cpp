// The positive random features of softmax's kernel (Choromanski et al. 2020, arXiv 2009.14794, lemma 1),
//
//   φ(x) = [e^(u - o), e^(-u - o)],   u = √t x Ω,   o = t |x|² / 2 + offset
//
// in one pass: a block of rows is multiplied by Ω while it is in the cache. The backward pass reads φ, which attention keeps
// anyway: with p and m the halves of φ times their gradients, dx = √t (p - m) Ωᵀ - t Σ(p + m) x.
#include "random_features.hpp"
#include "empty_result.hpp"

#define KERNELS "random_features.kernels.hpp"
#include "for_each_isa.hpp"

using namespace ctorch;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Plain loops.
namespace ctorch::reference {

template <typename T> void positive_features(const PositiveFeaturesWork<T> &work, int64_t task) {
  const int64_t head = task / work.blocks(), first = task % work.blocks() * work.block;
  for (int64_t i = first; i < std::min(work.length, first + work.block); ++i) {
    const T *x = work.x.head(head) + i * work.x.row;
    T *out = work.out.head(head) + i * work.out.row, squares = 0;
    for (int64_t c = 0; c < work.dim; ++c) squares += x[c] * x[c];
    const T offset = work.temperature * squares / 2 + work.offset;
    for (int64_t f = 0; f < work.columns; ++f) {
      T u = 0;
      for (int64_t c = 0; c < work.dim; ++c) u += x[c] * work.directions[c * work.wide_columns + f];
      out[f] = std::exp(u - offset), out[work.columns + f] = std::exp(-u - offset);
    }
  }
}

template <typename T> void positive_features_back(const PositiveFeaturesWork<T> &work, int64_t task) {
  const int64_t head = task / work.blocks(), first = task % work.blocks() * work.block;
  for (int64_t i = first; i < std::min(work.length, first + work.block); ++i) {
    const T *g = work.cotangent.head(head) + i * work.cotangent.row, *phi = work.features.head(head) + i * work.features.row;
    for (int64_t c = 0; c < work.dim; ++c) {
      T dx = 0;
      for (int64_t f = 0; f < work.columns; ++f) {
        const T up = phi[f] * g[f], down = phi[work.columns + f] * g[work.columns + f];
        dx += (up - down) * work.turned[f * work.wide_dim + c];
        dx -= work.temperature * (up + down) * work.x.head(head)[i * work.x.row + c];
      }
      work.out.head(head)[i * work.out.row + c] = dx;
    }
  }
}

} // namespace ctorch::reference

namespace {

/// √t Ω, in rows that the widest vectors divide.
Tensor padded_directions(const Tensor &directions, double temperature, at::ScalarType type, bool turned) {
  auto scaled = directions.detach().to(type) * std::sqrt(temperature);
  if (turned) scaled = scaled.t();
  return at::constant_pad_nd(scaled, {0, (16 - scaled.size(1) % 16) % 16}).contiguous();
}

template <typename T> PositiveFeaturesWork<T> work_of(const Tensor &x, const Tensor &directions, double temperature, double offset) {
  PositiveFeaturesWork<T> work{};
  work.heads = x.size(0) * x.size(1), work.length = x.size(2), work.dim = x.size(3), work.columns = directions.size(1);
  work.wide_dim = (work.dim + 15) / 16 * 16, work.wide_columns = (work.columns + 15) / 16 * 16;
  work.temperature = static_cast<T>(temperature), work.offset = static_cast<T>(offset);
  work.x = rows<T>(x);
  return work;
}

struct PositiveFeatures : torch::autograd::Function<PositiveFeatures> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &directions, double temperature, double offset) {
    auto out = at::empty({x.size(0), x.size(2), x.size(1), 2 * directions.size(1)}, x.options()).transpose(1, 2);
    const auto padded = padded_directions(directions, temperature, x.scalar_type(), false);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "positive features", [&] {
      auto work = work_of<scalar_t>(x, directions, temperature, offset);
      work.directions = padded.const_data_ptr<scalar_t>();
      work.out = mutable_rows<scalar_t>(out);
      for_each_task(work.tasks(), [&](int64_t task) { DISPATCH(positive_features<scalar_t>, work, task); });
    });
    context->save_for_backward({x, directions, out});
    context->saved_data["temperature"] = temperature;
    return out;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "random features cannot be differentiated twice (createGraph)");
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &directions = saved[1];
    const double temperature = context->saved_data["temperature"].toDouble();
    const auto cotangent = with_rows(grads[0]);
    auto dx = heads_side_by_side(x);
    const auto turned = padded_directions(directions, temperature, x.scalar_type(), true);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "positive features", [&] {
      auto work = work_of<scalar_t>(x, directions, temperature, 0);
      work.turned = turned.const_data_ptr<scalar_t>();
      work.cotangent = rows<scalar_t>(cotangent), work.features = rows<scalar_t>(saved[2]);
      work.out = mutable_rows<scalar_t>(dx);
      for_each_task(work.tasks(), [&](int64_t task) { DISPATCH(positive_features_back<scalar_t>, work, task); });
    });
    return {dx, Tensor(), Tensor(), Tensor()};
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_positive_features(ctorch_tensor x, ctorch_tensor directions, double temperature, double offset,
                                                  ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const auto &given = get(x), &omega = get(directions);
    TORCH_CHECK(given.dim() == 4 && given.size(3) > 0 && given.is_cpu(),
                "random features take x [batch, heads, length, dim] of some dim on the CPU, not ", given.sizes());
    TORCH_CHECK(omega.dim() == 2 && omega.size(0) == given.size(3), "random features of ", given.sizes(),
                " take directions [dim, columns], not ", omega.sizes());
    TORCH_CHECK(temperature >= 0, "random features take a temperature of at least 0, not ", temperature);
    const auto type = at::promote_types(given.scalar_type(), at::kFloat);
    if (given.numel() == 0 || omega.numel() == 0)
      return empty_result({given.size(0), given.size(1), given.size(2), 2 * omega.size(1)}, {given});
    return PositiveFeatures::apply(with_rows(given.to(type)), omega, temperature, offset);
  });
}
