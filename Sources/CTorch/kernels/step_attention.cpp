// The C entries of step programs' operations that look at the tokens before; step_program.cpp does them.
#include "step_program.hpp"
#include "CTorch.h"

using namespace ctorch;

extern "C" ctorch_step_cache ctorch_step_new_cache(ctorch_step_program program, int64_t width, int64_t first, int64_t room,
                                                   bool takes_tokens, int64_t count, ctorch_tensor keys, ctorch_tensor values,
                                                   ctorch_error *error) {
  return guarded(error, [&] {
    auto &list = list_of(program);
    StepCache cache{width, first, room, takes_tokens, values != nullptr, count};
    auto read = [&](ctorch_tensor from, std::vector<float> &to) {
      if (!from) return;
      TORCH_CHECK(get(from).dim() == 2 && get(from).size(0) >= cache.rows() && get(from).size(1) == width, "a cache of ", count,
                  " tokens takes rows of shape ", at::IntArrayRef({cache.rows(), width}), ", not ", get(from).sizes());
      const auto numbers = get(from).detach().to(at::kFloat).narrow(0, 0, cache.rows()).contiguous();
      to.assign(numbers.const_data_ptr<float>(), numbers.const_data_ptr<float>() + numbers.numel());
    };
    read(keys, cache.keys);
    read(values, cache.values);
    list.caches.push_back(std::move(cache));
    return static_cast<int64_t>(list.caches.size()) - 1;
  });
}

extern "C" ctorch_step_look ctorch_step_new_look(ctorch_step_program program, ctorch_step_cache cache) {
  auto &looks = list_of(program).caches[static_cast<size_t>(cache)].looks;
  looks.emplace_back();
  return static_cast<ctorch_step_look>(looks.size()) - 1;
}

extern "C" void ctorch_step_see(ctorch_step_program program, ctorch_step_cache cache, ctorch_step_look look, int64_t choice,
                                int32_t kind, int64_t size, int64_t count) {
  auto &sights = list_of(program).caches[static_cast<size_t>(cache)].looks[static_cast<size_t>(look)].sights;
  sights.resize(std::max(sights.size(), static_cast<size_t>(choice) + 1));
  sights[static_cast<size_t>(choice)].push_back({kind, size, count});
}

extern "C" void ctorch_step_attend(ctorch_step_program program, int64_t heads, int64_t head_dim, double scale, int32_t weights,
                                   const ctorch_step_view *views, int64_t view_count, ctorch_slot k, ctorch_slot v,
                                   ctorch_slot y) {
  StepOperation o{StepKind::attend};
  o.rows = heads, o.columns = head_dim, o.a = static_cast<float>(scale), o.choice = weights, o.k = k, o.v = v, o.y = y;
  for (int64_t i = 0; i < std::min<int64_t>(view_count, CTORCH_STEP_MOST_VIEWS); ++i)
    o.views[static_cast<size_t>(i)] = {views[i].cache, views[i].look, views[i].distances, views[i].q, views[i].distance_q};
  list_of(program).append(o);
}

extern "C" void ctorch_step_set_period(ctorch_step_program program, ctorch_step_cache cache, int64_t period) {
  list_of(program).due_clock = cache, list_of(program).due = period;
}

extern "C" void ctorch_step_remember(ctorch_step_program program, ctorch_step_cache cache, ctorch_slot k, ctorch_slot v) {
  StepOperation o{StepKind::remember};
  o.views[0].cache = cache, o.k = k, o.v = v;
  list_of(program).append(o);
}

extern "C" void ctorch_step_replace(ctorch_step_program program, ctorch_step_cache cache, ctorch_slot k, ctorch_slot v) {
  StepOperation o{StepKind::replace};
  o.views[0].cache = cache, o.k = k, o.v = v;
  list_of(program).append(o);
}

extern "C" void ctorch_step_pool(ctorch_step_program program, int32_t pool, ctorch_step_cache cache, ctorch_step_look look,
                                 ctorch_slot keys, ctorch_slot values) {
  StepOperation o{StepKind::pool};
  o.columns = list_of(program).caches[static_cast<size_t>(cache)].width, o.choice = pool;
  o.views[0].cache = cache, o.views[0].look = look, o.y = keys, o.s = values;
  list_of(program).append(o);
}

extern "C" void ctorch_step_mix(ctorch_step_program program, ctorch_step_cache cache, int64_t period, int64_t heads,
                                int64_t head_dim, int64_t stride, int64_t offset, ctorch_slot x, ctorch_slot k, ctorch_slot v,
                                ctorch_slot s, ctorch_slot p, ctorch_slot z) {
  StepOperation o{StepKind::mix};
  o.rows = heads, o.columns = head_dim, o.width = stride, o.choice = static_cast<int32_t>(offset);
  o.clock = cache, o.period = period, o.x = x, o.k = k, o.v = v, o.s = s, o.p = p, o.z = z;
  list_of(program).append(o);
}

extern "C" void ctorch_step_distance_waves(ctorch_step_program program, ctorch_tensor frequencies, ctorch_step_cache cache,
                                           int64_t period, int64_t stride, int64_t offset, int64_t count, ctorch_slot y,
                                           ctorch_error *error) {
  guarded(error, [&] {
    StepOperation o{StepKind::distance_waves};
    o.clock = cache, o.period = period, o.width = stride, o.choice = static_cast<int32_t>(offset), o.columns = count, o.y = y;
    o.frequencies = list_of(program).keep<double>(frequencies, {(count + 1) / 2});
    list_of(program).append(o);
  });
}

extern "C" void ctorch_step_expand(ctorch_step_program program, int32_t kind, int64_t heads, int64_t width, int64_t columns,
                                   double a, double b, int64_t limit, ctorch_slot x, ctorch_slot u, ctorch_slot y) {
  StepOperation o{StepKind::expand};
  o.choice = kind, o.rows = heads, o.width = width, o.columns = columns, o.period = limit, o.factor = a;
  o.a = static_cast<float>(a), o.b = static_cast<float>(b), o.x = x, o.v = u, o.y = y;
  list_of(program).append(o);
}

extern "C" void ctorch_step_adaptive_momentum(ctorch_step_program program, int64_t heads, int64_t head_dim, double step_size,
                                              double maximum, double epsilon, ctorch_slot q, ctorch_slot k, ctorch_slot v,
                                              ctorch_slot s, ctorch_slot p, ctorch_slot u, ctorch_slot z, ctorch_slot begun,
                                              ctorch_slot y) {
  StepOperation o{StepKind::adaptive_momentum};
  o.rows = heads, o.columns = o.width = head_dim, o.map = FeatureMap::elu_plus_one;
  o.step_size = static_cast<float>(step_size), o.a = static_cast<float>(maximum), o.epsilon = static_cast<float>(epsilon);
  o.x = q, o.k = k, o.v = v, o.s = s, o.p = p, o.u = u, o.z = z, o.begun = begun, o.y = y;
  list_of(program).append(o);
}

extern "C" void ctorch_step_weighted_means(ctorch_step_program program, int64_t heads, int64_t features, int64_t values,
                                           ctorch_slot q, ctorch_slot k, ctorch_slot v, ctorch_slot s, ctorch_slot largest,
                                           ctorch_slot total, ctorch_slot y) {
  StepOperation o{StepKind::weighted_means};
  o.rows = heads, o.columns = values, o.width = features;
  o.x = q, o.k = k, o.v = v, o.s = s, o.z = largest, o.u = total, o.y = y;
  list_of(program).append(o);
}
