// One token through a model costs about as much as reading its weights once, if nothing else costs anything: no allocation, no
// dispatch, no waking of threads in between. So a step is a list of operations, made once, that a team of threads works off
// together. Each operation is cut into pieces; a worker goes on to the next operation when there is no piece left to take, and
// waits only where that one reads what another worker has not finished.
#include "step_program.hpp"

#define KERNELS "step_program.kernels.hpp"
#include "for_each_isa.hpp"
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

struct ctorch_step_program_s {
  std::vector<StepOperation> operations;
  std::vector<StepCache> caches;
  std::vector<StepPast> pasts;
  std::vector<at::Tensor> weights; // which the operations point into
  at::Tensor memory = at::zeros({0}, at::kFloat);
  int64_t token = 0, position = 0;

  int64_t slot(int64_t count) {
    const int64_t place = memory.numel();
    memory = at::cat({memory, at::zeros({(count + 31) / 16 * 16}, at::kFloat)});
    return place;
  }

  template <typename T = float> const T *keep(ctorch_tensor handle, at::IntArrayRef shape) {
    if (!handle) return nullptr;
    const auto &t = get(handle);
    TORCH_CHECK(t.is_cpu() && t.scalar_type() == c10::CppTypeToScalarType<T>::value && t.is_contiguous() && t.sizes() == shape,
                "a step program takes contiguous ", c10::CppTypeToScalarType<T>::value, " weights on the CPU of shape ", shape,
                ", not ", t.toString(), " ", t.sizes());
    weights.push_back(t);
    return t.const_data_ptr<T>();
  }

  /// Adds an operation. A product takes over the norm of its x, if that is what x is.
  void append(StepOperation operation) {
    for (auto &earlier : operations) {
      const auto read = operation.reads();
      if (earlier.kind != StepKind::norm || std::count(read.begin(), read.end(), earlier.y) == 0) continue;
      if (operation.kind == StepKind::linear && operation.vectors == 1 && operation.x == earlier.y) {
        operation.norm = earlier.norm, operation.x = earlier.x;
        earlier.is_folded = true;
      } else {
        earlier.is_read = true;
      }
    }
    operations.push_back(operation);
    schedule = {};
  }

  void run() {
    for (const auto &operation : operations) check(operation);
    for (const auto &past : pasts)
      TORCH_CHECK(past.most == 0 || past.count < past.most, "position ", past.count, " is not one of ", past.most);
    if (schedule.workers() != at::get_num_threads()) plan();
    for (auto &cache : caches) cache.make_room();
    for (auto &past : pasts) past.make_room();
    schedule.begin();
    float *data = memory.mutable_data_ptr<float>();
    for_each_task(schedule.workers(), [&](int64_t worker) { take_part(worker, data); });
  }

private:
  StepSchedule schedule;

  int64_t index(const StepOperation &operation) const { return operation.choice == 0 ? token : position; }

  /// Whether the token, or the position, is one that the operation's table has.
  void check(const StepOperation &o) const {
    if (o.kind == StepKind::lookup)
      TORCH_CHECK(index(o) >= 0 && index(o) < o.rows, o.choice == 0 ? "token " : "position ", index(o), " is not one of ", o.rows);
    const int64_t places = o.table_rows - o.rows + 1;
    if (o.moves) TORCH_CHECK(position >= 0 && position < places, "position ", position, " is not one of ", places);
  }

  /// Finds out which operations each one has to wait for.
  void plan() {
    auto meet = [](const std::vector<int64_t> &a, const std::vector<int64_t> &b) {
      return std::any_of(a.begin(), a.end(),
                         [&](int64_t place) { return place >= 0 && std::count(b.begin(), b.end(), place) > 0; });
    };
    for (size_t i = 0; i < operations.size(); ++i)
      for (size_t j = 0; j < i; ++j) {
        const auto &earlier = operations[j], &later = operations[i];
        const bool waits = meet(earlier.writes(), later.reads()) || meet(earlier.writes(), later.writes()) ||
                           meet(earlier.reads(), later.writes());
        if (waits) operations[i].needs = static_cast<int64_t>(j) + 1;
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
      if (operation.kind == StepKind::linear && operation.norm.kind >= 0) {
        // Every worker for itself: that is quicker than to wait for another.
        scratch.emplace(sizeof(float) * static_cast<size_t>(operation.columns));
        float *own = scratch->take<float>(operation.columns);
        DISPATCH(step_norm, operation.norm, operation.columns, x, own);
        x = own;
      }
      for (; piece >= 0; piece = schedule.take(i, worker, turn), ++count) perform(operation, data, x, piece);
      schedule.finish(i, count);
    }
  }

  /// The weights that a worker reads first of all that it will read from operation i on: as many as one piece has.
  c10::ArrayRef<float> next_weights(size_t i, int64_t worker) const {
    while (i < operations.size() && operations[i].kind != StepKind::linear) ++i;
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
      const double angle = static_cast<double>(position) * o.frequencies[i];
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

size_t ctorch::hold(ctorch_step_program program, StepPast past) {
  program->pasts.push_back(std::move(past));
  return program->pasts.size() - 1;
}
const float *ctorch::keep(ctorch_step_program program, ctorch_tensor weight, at::IntArrayRef shape) {
  return program->keep(weight, shape);
}
const double *ctorch::keep_doubles(ctorch_step_program program, ctorch_tensor weight, at::IntArrayRef shape) {
  return program->keep<double>(weight, shape);
}
void ctorch::append(ctorch_step_program program, StepOperation operation) { program->append(operation); }

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

extern "C" void ctorch_step_linear(ctorch_step_program program, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                                   int32_t activation, ctorch_slot residual, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    const auto shape = get(weight).sizes();
    TORCH_CHECK(shape.size() == 2, "a product takes a matrix, not ", shape);
    StepOperation o{StepKind::linear};
    o.x = x, o.y = y, o.residual = residual, o.choice = activation, o.rows = shape[0], o.columns = shape[1];
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
                                   ctorch_slot x, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    const auto pairs = get(frequencies).numel();
    StepOperation o{StepKind::rotate};
    o.x = x, o.y = y, o.rows = heads, o.columns = 2 * pairs, o.choice = neighbours;
    o.frequencies = program->keep<double>(frequencies, {pairs});
    program->append(o);
  });
}

extern "C" void ctorch_step_attend(ctorch_step_program program, int64_t heads, int64_t head_dim, double scale, ctorch_tensor keys,
                                   ctorch_tensor values, int64_t room, ctorch_slot q, ctorch_slot k, ctorch_slot v, ctorch_slot y,
                                   ctorch_error *error) {
  guarded(error, [&] {
    StepCache cache{heads * head_dim, room};
    cache.count = get(keys).size(0);
    TORCH_CHECK(get(keys).sizes() == at::IntArrayRef({cache.count, cache.width}) && get(values).sizes() == get(keys).sizes() &&
                    (room == 0 || cache.count <= room),
                "a step program takes keys and values of shape ", at::IntArrayRef({cache.count, cache.width}), ", not ",
                get(keys).sizes(), " and ", get(values).sizes());
    auto read = [](const at::Tensor &t, std::vector<float> &to) {
      const auto numbers = t.detach().to(at::kFloat).contiguous();
      to.assign(numbers.const_data_ptr<float>(), numbers.const_data_ptr<float>() + numbers.numel());
    };
    read(get(keys), cache.keys);
    read(get(values), cache.values);
    StepOperation o{StepKind::attend};
    o.rows = heads, o.columns = head_dim, o.a = static_cast<float>(scale), o.cache = program->caches.size();
    o.x = q, o.k = k, o.v = v, o.y = y;
    program->caches.push_back(std::move(cache));
    program->append(o);
  });
}

extern "C" void ctorch_step_causal_linear(ctorch_step_program program, int64_t heads, int64_t head_dim, int32_t feature_map,
                                          double momentum, double step_size, double epsilon, ctorch_slot q, ctorch_slot k,
                                          ctorch_slot v, ctorch_slot s, ctorch_slot p, ctorch_slot z, ctorch_slot y) {
  StepOperation o{StepKind::causal_linear};
  o.rows = heads, o.columns = head_dim, o.map = static_cast<FeatureMap>(feature_map);
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
