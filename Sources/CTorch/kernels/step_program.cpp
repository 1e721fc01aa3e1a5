// One token through a model costs about as much as reading its weights once, if nothing else costs anything: no allocation, no
// dispatch, no waking of threads in between. So a step is a list of operations, made once, that a team of threads works off
// together. Each operation is cut into pieces; a thread takes the next free piece, and goes on to the next operation when all
// pieces are done. Nobody waits for a thread that has not come: one thread alone does everything.
#include "step_program.hpp"
#include "CTorch.h"

#define KERNELS "step_program.kernels.hpp"
#include "for_each_isa.hpp"

#include <thread>

using namespace ctorch;

/// Plain loops.
namespace ctorch::reference {
namespace {

float activated(int32_t activation, float x) {
  switch (activation) {
  case CTORCH_STEP_RELU: return std::max(x, 0.0f);
  case CTORCH_STEP_GELU: return 0.5f * x * (1 + std::erf(x / std::sqrt(2.0f)));
  case CTORCH_STEP_GELU_TANH: return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
  case CTORCH_STEP_SILU: return x / (1 + std::exp(-x));
  case CTORCH_STEP_TANH: return std::tanh(x);
  case CTORCH_STEP_SIGMOID: return 1 / (1 + std::exp(-x));
  case CTORCH_STEP_ELU: return x > 0 ? x : std::expm1(x);
  case CTORCH_STEP_SOFTPLUS: return x > 20 ? x : std::log1p(std::exp(x));
  default: return x;
  }
}

float mapped(FeatureMap map, float x) {
  switch (map) {
  case FeatureMap::elu: return x > 0 ? x : std::expm1(x);
  case FeatureMap::elu_plus_one: return x > 0 ? x + 1 : std::exp(x);
  case FeatureMap::relu: return std::max(x, 0.0f);
  case FeatureMap::sigmoid: return 1 / (1 + std::exp(-x));
  case FeatureMap::silu: return x / (1 + std::exp(-x));
  case FeatureMap::exponential: return std::exp(x);
  default: return x;
  }
}

void linear(const StepOperation &o, float *memory, int64_t piece) {
  const int64_t first = piece * o.rows_at_once();
  for (int64_t r = first; r < std::min(o.rows, first + o.rows_at_once()); ++r) {
    float sum = o.bias ? o.bias[r] : 0;
    for (int64_t c = 0; c < o.columns; ++c) sum += o.weight[r * o.columns + c] * memory[o.x + c];
    memory[o.y + r] = activated(o.choice, sum) + (o.residual < 0 ? 0 : memory[o.residual + r]);
  }
}

void norm(const StepOperation &o, float *memory) {
  const float n = static_cast<float>(o.columns);
  float mean = 0, squares = 0;
  if (o.choice == CTORCH_STEP_LAYER_NORM)
    for (int64_t c = 0; c < o.columns; ++c) mean += memory[o.x + c] / n;
  for (int64_t c = 0; c < o.columns; ++c) squares += (memory[o.x + c] - mean) * (memory[o.x + c] - mean) / n;
  const float root = o.choice == CTORCH_STEP_SIMPLE_RMS_NORM ? std::sqrt(squares) + o.a : std::sqrt(squares + o.a);
  for (int64_t c = 0; c < o.columns; ++c)
    memory[o.y + c] = (memory[o.x + c] - mean) / root * (o.weight ? o.weight[c] : 1) + (o.bias ? o.bias[c] : 0);
}

void causal_linear(const StepOperation &o, float *memory, int64_t head) {
  const int64_t d = o.columns, from = head * d;
  float sum = o.epsilon;
  for (int64_t f = 0; f < d; ++f) {
    const float phi_k = mapped(o.map, memory[o.k + from + f]);
    memory[o.z + from + f] += phi_k;
    sum += mapped(o.map, memory[o.x + from + f]) * memory[o.z + from + f];
    for (int64_t m = 0; m < d; ++m) {
      float update = phi_k * memory[o.v + from + m];
      if (o.p >= 0) {
        float &p = memory[o.p + (from + f) * d + m];
        p = o.momentum * p - o.step_size * update;
        update = -p;
      }
      memory[o.s + (from + f) * d + m] += update;
    }
  }
  for (int64_t m = 0; m < d; ++m) {
    float y = 0;
    for (int64_t f = 0; f < d; ++f) y += mapped(o.map, memory[o.x + from + f]) * memory[o.s + (from + f) * d + m];
    memory[o.y + from + m] = y / sum;
  }
}

void step(const StepOperation &o, float *memory, int64_t piece) {
  switch (o.kind) {
  case StepKind::linear: return linear(o, memory, piece);
  case StepKind::norm: return norm(o, memory);
  case StepKind::combine:
    for (int64_t c = 0; c < o.columns; ++c) memory[o.y + c] = o.a * memory[o.x + c] + o.b * memory[o.z + c];
    return;
  case StepKind::gate:
    for (int64_t c = 0; c < o.columns; ++c) memory[o.y + c] = activated(o.choice, memory[o.x + c]) * memory[o.z + c];
    return;
  case StepKind::causal_linear: return causal_linear(o, memory, piece);
  }
}

} // namespace
} // namespace ctorch::reference

struct ctorch_step_program_s {
  std::vector<StepOperation> operations;
  std::vector<at::Tensor> weights; // which the operations point into
  at::Tensor memory = at::zeros({0}, at::kFloat);
  std::vector<StepProgress> progress;

  int64_t slot(int64_t count) {
    const int64_t place = memory.numel();
    memory = at::cat({memory, at::zeros({(count + 31) / 16 * 16}, at::kFloat)});
    return place;
  }

  const float *keep(ctorch_tensor handle, at::IntArrayRef shape) {
    if (!handle) return nullptr;
    const auto &t = get(handle);
    TORCH_CHECK(t.is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous() && t.sizes() == shape,
                "a step program takes contiguous float32 weights on the CPU of shape ", shape, ", not ", t.toString(), " ", t.sizes());
    weights.push_back(t);
    return t.const_data_ptr<float>();
  }

  void run() {
    float *data = memory.mutable_data_ptr<float>();
    if (progress.size() != operations.size()) progress = std::vector<StepProgress>(operations.size());
    for (auto &[next, done] : progress) next = 0, done = 0;
    for_each_task(at::get_num_threads(), [&](int64_t) { take_part(data); });
  }

private:
  void take_part(float *data) {
    constexpr int patience = 4096;
    for (size_t i = 0; i < operations.size(); ++i) {
      const auto &operation = operations[i];
      auto &[next, done] = progress[i];
      const int64_t pieces = operation.pieces();
      for (int64_t piece = next++; piece < pieces; piece = next++) {
        DISPATCH(step, operation, data, piece);
        done.fetch_add(1, std::memory_order_release);
      }
      for (int waited = 0; done.load(std::memory_order_acquire) < pieces; ++waited) {
        if (waited >= patience) std::this_thread::yield();
      }
    }
  }
};

extern "C" ctorch_step_program ctorch_step_program_new(void) { return new ctorch_step_program_s(); }

extern "C" ctorch_step_program ctorch_step_program_copy(ctorch_step_program program) {
  auto *copy = new ctorch_step_program_s();
  copy->operations = program->operations;
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
    program->operations.push_back(o);
  });
}

extern "C" void ctorch_step_norm(ctorch_step_program program, int32_t kind, ctorch_slot x, ctorch_tensor weight, ctorch_tensor bias,
                                 int64_t count, double epsilon, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    StepOperation o{StepKind::norm};
    o.x = x, o.y = y, o.choice = kind, o.columns = count, o.a = static_cast<float>(epsilon);
    o.weight = program->keep(weight, {count});
    o.bias = program->keep(bias, {count});
    program->operations.push_back(o);
  });
}

extern "C" void ctorch_step_combine(ctorch_step_program program, int64_t count, double a, ctorch_slot x, double b, ctorch_slot z,
                                    ctorch_slot y) {
  StepOperation o{StepKind::combine};
  o.x = x, o.z = z, o.y = y, o.columns = count, o.a = static_cast<float>(a), o.b = static_cast<float>(b);
  program->operations.push_back(o);
}

extern "C" void ctorch_step_gate(ctorch_step_program program, int64_t count, int32_t activation, ctorch_slot x, ctorch_slot z,
                                 ctorch_slot y) {
  StepOperation o{StepKind::gate};
  o.x = x, o.z = z, o.y = y, o.columns = count, o.choice = activation;
  program->operations.push_back(o);
}

extern "C" void ctorch_step_causal_linear(ctorch_step_program program, int64_t heads, int64_t head_dim, int32_t feature_map,
                                          double momentum, double step_size, double epsilon, ctorch_slot q, ctorch_slot k,
                                          ctorch_slot v, ctorch_slot s, ctorch_slot p, ctorch_slot z, ctorch_slot y) {
  StepOperation o{StepKind::causal_linear};
  o.rows = heads, o.columns = head_dim, o.map = static_cast<FeatureMap>(feature_map);
  o.momentum = static_cast<float>(momentum), o.step_size = static_cast<float>(step_size), o.epsilon = static_cast<float>(epsilon);
  o.x = q, o.k = k, o.v = v, o.s = s, o.p = p, o.z = z, o.y = y;
  program->operations.push_back(o);
}

extern "C" void ctorch_step_run(ctorch_step_program program, ctorch_tensor input, ctorch_slot x, ctorch_slot y, ctorch_tensor result,
                                ctorch_error *error) {
  guarded(error, [&] {
    const auto &from = get(input);
    const auto &to = get(result);
    TORCH_CHECK(from.is_cpu() && from.scalar_type() == at::kFloat && from.is_contiguous() && to.is_cpu() &&
                    to.scalar_type() == at::kFloat && to.is_contiguous(),
                "a step takes and gives contiguous float32 numbers on the CPU");
    float *memory = program->memory.mutable_data_ptr<float>();
    std::memcpy(memory + x, from.const_data_ptr<float>(), sizeof(float) * static_cast<size_t>(from.numel()));
    program->run();
    std::memcpy(to.mutable_data_ptr<float>(), memory + y, sizeof(float) * static_cast<size_t>(to.numel()));
  });
}
