// One token through a model costs about as much as reading its weights once, if nothing else costs anything: no allocation, no
// dispatch, no waking of threads in between. So a step is a list of operations, made once, that a team of threads works off
// together. Each operation is cut into pieces; a worker goes on to the next operation when there is no piece left to take, and
// waits only where that one reads what another worker has not finished.
#include "step_program.hpp"

#define KERNELS "step_program.kernels.hpp"
#include "for_each_isa.hpp"
#include "step_elements.hpp"
#include "step_program_reference.hpp"
#include "step_past_reference.hpp"

#include <thread>

using namespace ctorch;

StepSchedule::StepSchedule(const std::vector<StepOperation> &operations, int64_t workers)
    : workers_(workers), next_(operations.size() * static_cast<size_t>(workers)), done_(operations.size()) {
  for (const auto &operation : operations) pieces_.push_back(operation.pieces());
}

int64_t StepSchedule::take(size_t operation, int64_t worker, int64_t &turn) {
  for (; turn < workers_; ++turn) {
    const int64_t share = (worker + turn) % workers_, pieces = pieces_[operation];
    const int64_t first = pieces * share / workers_, last = pieces * (share + 1) / workers_, run = run_ << piece_bits;
    auto &next = next_[operation * static_cast<size_t>(workers_) + static_cast<size_t>(share)].value;
    int64_t seen = next.load(std::memory_order_relaxed);
    while (true) {
      const int64_t piece = seen >> piece_bits == run_ ? seen - run : first;
      if (piece >= last) break;
      if (next.compare_exchange_weak(seen, run + piece + 1, std::memory_order_relaxed)) return piece;
    }
  }
  return -1;
}

struct ctorch_step_program_s : StepList {
  int64_t token = 0, position = 0;

  void run() {
    for (const auto &operation : operations) check(operation);
    for (const auto &past : pasts)
      TORCH_CHECK(past.most == 0 || past.count < past.most, "position ", past.count, " is not one of ", past.most);
    if (schedule.workers() != at::get_num_threads()) plan();
    for (auto &cache : caches)
      if (cache.takes_tokens) cache.make_room();
    for (auto &past : pasts) past.make_room();
    schedule.begin();
    float *data = memory.mutable_data_ptr<float>();
    for_each_task(schedule.workers(), [&](int64_t worker) { take_part(worker, data); });
  }

private:
  int64_t index(const StepOperation &operation) const { return operation.choice == 0 ? token : position; }
  StepCache &cache_of(const StepOperation &operation) { return caches[static_cast<size_t>(operation.views[0].cache)]; }

  /// Whether the token, or the position, is one that the operation's table has.
  void check(const StepOperation &o) const {
    if (o.kind == StepKind::lookup)
      TORCH_CHECK(index(o) >= 0 && index(o) < o.rows, o.choice == 0 ? "token " : "position ", index(o), " is not one of ", o.rows);
    const int64_t places = o.table_rows - o.rows + 1;
    if (o.moves) TORCH_CHECK(position >= 0 && position < places, "position ", position, " is not one of ", places);
    if (o.kind == StepKind::expand && o.period > 0)
      TORCH_CHECK(position < o.period, "position ", position, " is not one of ", o.period);
  }

  /// Finds out which operations each one has to wait for.
  void plan() {
    auto meet = [](const std::vector<int64_t> &a, const std::vector<int64_t> &b) {
      return std::any_of(a.begin(), a.end(),
                         [&](int64_t place) { return place != -1 && std::count(b.begin(), b.end(), place) > 0; });
    };
    std::vector<std::vector<int64_t>> reads, writes;
    for (const auto &operation : operations) reads.push_back(operation.reads()), writes.push_back(operation.writes());
    for (size_t later = 0; later < operations.size(); ++later)
      for (size_t earlier = later; earlier > 0 && operations[later].needs < static_cast<int64_t>(earlier); --earlier) {
        const auto &read = reads[earlier - 1], &written = writes[earlier - 1];
        if (meet(written, reads[later]) || meet(written, writes[later]) || meet(read, writes[later]))
          operations[later].needs = static_cast<int64_t>(earlier);
      }
    schedule = StepSchedule(operations, at::get_num_threads());
  }

  void take_part(int64_t worker, float *data) {
    size_t settled = 0;
    for (size_t i = 0; i < operations.size(); ++i) {
      const auto &operation = operations[i];
      if (settled < static_cast<size_t>(operation.needs)) {
        auto weights = next_weights(i, worker);
        for (; settled < static_cast<size_t>(operation.needs); ++settled) wait_for(settled, weights);
      }
      int64_t turn = 0, piece = schedule.take(i, worker, turn), count = 0;
      if (piece < 0) continue;
      const float *x = operation.x < 0 ? nullptr : data + operation.x;
      std::optional<Scratch> scratch;
      const bool is_due = operation.due == 0 || caches[static_cast<size_t>(operation.due_clock)].count % operation.due == 0;
      if (is_due && operation.kind == StepKind::linear && operation.norm.kind >= 0) {
        // Every worker for itself: that is quicker than to wait for another.
        scratch.emplace(sizeof(float) * static_cast<size_t>(operation.columns));
        float *own = scratch->take<float>(operation.columns);
        DISPATCH(step_norm, operation.norm, operation.columns, x, own);
        x = own;
      }
      for (; piece >= 0; piece = schedule.take(i, worker, turn), ++count)
        if (is_due) perform(operation, data, x, piece);
      schedule.finish(i, count);
    }
  }

  /// The weights that a worker reads first of all that it will read from operation i on: as many as one piece has.
  c10::ArrayRef<float> next_weights(size_t i, int64_t worker) const {
    auto is_usual = [](const StepOperation &o) { return o.kind == StepKind::linear && o.heads == 1 && o.due == 0; };
    while (i < operations.size() && !is_usual(operations[i])) ++i;
    if (i == operations.size()) return {};
    const auto &o = operations[i];
    const int64_t first = o.pieces() * worker / schedule.workers() * o.rows_at_once();
    const int64_t rows = std::min(o.rows_at_once(), o.rows - first);
    return {o.weight + first * o.columns, static_cast<size_t>(std::max<int64_t>(rows, 0) * o.columns)};
  }

  /// Waits until an operation is done, and meanwhile brings weights into the cache.
  void wait_for(size_t i, c10::ArrayRef<float> &weights) const {
    constexpr int patience = 4096;
    constexpr size_t at_once = 128, line = 16;
    for (int waited = 0; !schedule.is_done(i); ++waited) {
      const size_t count = std::min(at_once, weights.size());
      for (size_t c = 0; c < count; c += line) __builtin_prefetch(weights.data() + c, 0, 2);
      weights = weights.slice(count);
      if (waited >= patience) std::this_thread::yield();
    }
  }

  void perform(const StepOperation &o, float *data, const float *x, int64_t piece) {
    float *y = data + o.y;
    switch (o.kind) {
    case StepKind::combine:
      for (int64_t c = 0; c < o.columns; ++c) y[c] = o.a * x[c] + o.b * data[o.z + c];
      return;
    case StepKind::lookup:
      for (int64_t c = 0; c < o.columns; ++c) y[c] = o.weight[index(o) * o.columns + c] + (x ? x[c] : 0);
      return;
    case StepKind::waves:
      for (int64_t c = piece * o.waves_at_once; c < std::min(o.columns, (piece + 1) * o.waves_at_once); ++c) {
        const double angle = static_cast<double>(position) * o.frequencies[c / 2];
        y[c] = x[c] + static_cast<float>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
      return;
    case StepKind::rotate: return rotate(o, data, x);
    case StepKind::expand: return step_expand(o, data, position, piece);
    case StepKind::remember: return cache_of(o).append(data + o.k, o.v < 0 ? nullptr : data + o.v);
    case StepKind::replace: return cache_of(o).set(0, cache_of(o).width, data + o.k, o.v < 0 ? nullptr : data + o.v);
    case StepKind::mix: return step_mix(o, data, caches[static_cast<size_t>(o.clock)].count);
    case StepKind::distance_waves: return step_distance_waves(o, data, caches[static_cast<size_t>(o.clock)].count);
    case StepKind::average:
    case StepKind::taps:
    case StepKind::score:
    case StepKind::sum: return DISPATCH(step_past, o, data, pasts[o.past], piece);
    case StepKind::moving_average:
    case StepKind::cell: return DISPATCH(step_recurrence, o, data, piece);
    case StepKind::linear:
      if (o.moves) {
        auto here = o;
        here.weight += position * o.columns;
        return DISPATCH(step, here, data, caches.data(), x, piece);
      }
      [[fallthrough]];
    default: DISPATCH(step, o, data, caches.data(), x, piece);
    }
  }

  /// Turns the pairs of each head's channels: c and c + columns / 2, or with `choice` neighbours.
  void rotate(const StepOperation &o, float *data, const float *x) {
    const int64_t half = o.columns / 2, apart = o.choice ? 1 : half;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(o.period > 0 ? position % o.period : position) * o.frequencies[i];
      const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
      for (int64_t head = 0; head < o.rows; ++head) {
        const int64_t at = head * o.columns + (o.choice ? 2 * i : i);
        const float a = x[at], b = x[at + apart];
        data[o.y + at] = a * cosine - b * sine;
        data[o.y + at + apart] = b * cosine + a * sine;
      }
    }
  }
};

StepList &ctorch::list_of(ctorch_step_program program) { return *program; }

extern "C" ctorch_step_program ctorch_step_program_new(void) { return new ctorch_step_program_s(); }

extern "C" ctorch_step_program ctorch_step_program_copy(ctorch_step_program program) {
  auto *copy = new ctorch_step_program_s();
  copy->operations = program->operations;
  copy->caches = program->caches;
  copy->pasts = program->pasts;
  copy->weights = program->weights;
  copy->memory = program->memory.clone();
  return copy;
}

extern "C" void ctorch_step_program_free(ctorch_step_program program) { delete program; }

extern "C" ctorch_slot ctorch_step_slot(ctorch_step_program program, int64_t count, ctorch_tensor initial, ctorch_error *error) {
  return guarded(error, [&] {
    const auto place = program->slot(count);
    if (initial) {
      const auto &numbers = get(initial);
      TORCH_CHECK(numbers.numel() == count, "a vector of ", count, " numbers cannot hold ", numbers.sizes());
      program->memory.narrow(0, place, count).copy_(numbers.detach().reshape({count}));
    }
    return place;
  });
}

extern "C" void ctorch_step_linear(ctorch_step_program program, int64_t heads, ctorch_slot x, ctorch_tensor weight,
                                   ctorch_tensor bias, int32_t activation, ctorch_slot residual, ctorch_slot y,
                                   ctorch_error *error) {
  guarded(error, [&] {
    const auto shape = get(weight).sizes();
    TORCH_CHECK(shape.size() == 2, "a product takes a matrix, not ", shape);
    StepOperation o{StepKind::linear};
    o.x = x, o.y = y, o.residual = residual, o.choice = activation, o.rows = shape[0], o.columns = shape[1], o.heads = heads;
    o.weight = program->keep(weight, {o.rows, o.columns});
    o.bias = program->keep(bias, {o.rows});
    program->append(o);
  });
}

extern "C" void ctorch_step_norm(ctorch_step_program program, int32_t kind, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                                 int64_t count, double epsilon, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    StepOperation o{StepKind::norm};
    o.x = x, o.y = y, o.columns = count;
    o.norm = {kind, program->keep(weight, {count}), program->keep(bias, {count}), static_cast<float>(epsilon)};
    program->append(o);
  });
}

extern "C" void ctorch_step_combine(ctorch_step_program program, int64_t count, double a, ctorch_slot x, double b, ctorch_slot z,
                                    ctorch_slot y) {
  StepOperation o{StepKind::combine};
  o.x = x, o.z = z, o.y = y, o.columns = count, o.a = static_cast<float>(a), o.b = static_cast<float>(b);
  program->append(o);
}

extern "C" void ctorch_step_gate(ctorch_step_program program, int64_t count, int32_t activation, ctorch_slot x, ctorch_slot z,
                                 ctorch_slot y) {
  StepOperation o{StepKind::gate};
  o.x = x, o.z = z, o.y = y, o.columns = count, o.choice = activation;
  program->append(o);
}

extern "C" void ctorch_step_lookup(ctorch_step_program program, ctorch_tensor table, bool by_position, ctorch_slot x, ctorch_slot y,
                                   ctorch_error *error) {
  guarded(error, [&] {
    const auto shape = get(table).sizes();
    TORCH_CHECK(shape.size() == 2, "vectors are looked up in a matrix, not ", shape);
    StepOperation o{StepKind::lookup};
    o.x = x, o.y = y, o.choice = by_position, o.rows = shape[0], o.columns = shape[1];
    o.weight = program->keep(table, {o.rows, o.columns});
    program->append(o);
  });
}

extern "C" void ctorch_step_waves(ctorch_step_program program, ctorch_tensor frequencies, int64_t count, ctorch_slot x,
                                  ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    StepOperation o{StepKind::waves};
    o.x = x, o.y = y, o.columns = count;
    o.frequencies = program->keep<double>(frequencies, {(count + 1) / 2});
    program->append(o);
  });
}

extern "C" void ctorch_step_rotate(ctorch_step_program program, ctorch_tensor frequencies, int64_t heads, bool neighbours,
                                   int64_t period, ctorch_slot x, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    const auto pairs = get(frequencies).numel();
    StepOperation o{StepKind::rotate};
    o.x = x, o.y = y, o.rows = heads, o.columns = 2 * pairs, o.choice = neighbours, o.period = period;
    o.frequencies = program->keep<double>(frequencies, {pairs});
    program->append(o);
  });
}

extern "C" void ctorch_step_causal_linear(ctorch_step_program program, int64_t heads, int64_t features, int64_t values,
                                          int32_t feature_map, double momentum, double step_size, double epsilon, ctorch_slot q,
                                          ctorch_slot k, ctorch_slot v, ctorch_slot s, ctorch_slot p, ctorch_slot z,
                                          ctorch_slot y) {
  StepOperation o{StepKind::causal_linear};
  o.rows = heads, o.columns = values, o.width = features, o.map = static_cast<FeatureMap>(feature_map);
  o.momentum = static_cast<float>(momentum), o.step_size = static_cast<float>(step_size), o.epsilon = static_cast<float>(epsilon);
  o.x = q, o.k = k, o.v = v, o.s = s, o.p = p, o.z = z, o.y = y;
  program->append(o);
}

extern "C" void ctorch_step_set(ctorch_step_program program, ctorch_slot x, ctorch_tensor numbers, ctorch_error *error) {
  guarded(error, [&] {
    const auto &from = get(numbers);
    TORCH_CHECK(from.is_cpu() && from.scalar_type() == at::kFloat && from.is_contiguous(),
                "a step takes contiguous float32 numbers on the CPU");
    std::memcpy(program->memory.mutable_data_ptr<float>() + x, from.const_data_ptr<float>(),
                sizeof(float) * static_cast<size_t>(from.numel()));
  });
}

extern "C" void ctorch_step_run(ctorch_step_program program, int64_t token, int64_t position, ctorch_error *error) {
  guarded(error, [&] {
    program->token = token, program->position = position;
    program->run();
  });
}

extern "C" void ctorch_step_get(ctorch_step_program program, ctorch_slot y, int64_t count, float *numbers) {
  std::memcpy(numbers, program->memory.const_data_ptr<float>() + y, sizeof(float) * static_cast<size_t>(count));
}
