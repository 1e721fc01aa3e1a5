// The local RNN of the R-Transformer (Wang et al. 2019, arXiv 1907.05572): for every token a recurrent cell starts from zero and
// reads the last M tokens,
//   GRU    r = σ(W_r x + U_r h),  z = σ(W_z x + U_z h),  n = tanh(W_n x + r ∘ (U_n h)),  h' = n + z ∘ (h - n)
//   LSTM   i, f, o = σ(W x + U h),  g = tanh(W x + U h),  c' = f ∘ c + i ∘ g,  h' = o ∘ tanh(c')
//   plain  h' = tanh(W x + U h)
// each product with a bias; zero vectors stand before the first token.
//
// A token is projected by W once for all its windows, and the windows of a block of tokens go forward together, so that all is
// products of a block's rows with weights packed once: gates · dim² · (1 + (M - 1)) multiplications a token, twice that in the
// backward pass. That one reads what the forward pass left, M (traces + 1) vectors a token; where this is more bytes than
// `most_kept`, it takes the steps of each block again instead, and memory is that of x.
#include "local_rnn.hpp"
#include "empty_result.hpp"

#define KERNELS "local_rnn.kernels.hpp"
#include "for_each_isa.hpp"
#include "local_rnn_reference.hpp"

using namespace ctorch;
using at::Tensor;

namespace {

/// Tokens of a block: a multiple of the rows of a product's tile.
constexpr int64_t most_block = 96, tile = 6;
/// Backward tasks: each has sums as large as the weights.
constexpr int64_t most_tasks = 8;

struct LocalRnnSettings {
  RecurrentCell cell;
  int64_t window;
  int64_t most_kept; // bytes of steps left for the backward pass
};

/// The weights as the products read them; see LocalRnnWork.
template <typename T> struct PackedWeights {
  Tensor numbers;
  T *bias, *late_bias, *input_up, *hidden_up, *input_down, *hidden_down;

  PackedWeights(const LocalRnnWork<T> &work, const at::TensorOptions &options) {
    numbers = at::empty({4 * work.matrix() + work.all_columns() + work.columns}, options);
    input_up = numbers.mutable_data_ptr<T>();
    hidden_up = input_up + work.matrix(), input_down = hidden_up + work.matrix(), hidden_down = input_down + work.matrix();
    bias = hidden_down + work.matrix(), late_bias = bias + work.all_columns();
    const int64_t gates = work.gates(), columns = work.columns, dim = work.dim;
    const bool is_late = work.cell == RecurrentCell::gru;
    for (int64_t gate = 0; gate < gates; ++gate)
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t i = gate * dim + c;
        const bool shared = !is_late || gate < 2;
        bias[gate * columns + c] = c < dim ? work.input_bias[i] + (shared ? work.hidden_bias[i] : T(0)) : T(0);
        if (!shared) late_bias[c] = c < dim ? work.hidden_bias[i] : T(0);
      }
    const T *weights[2] = {work.input_weight, work.hidden_weight};
    T *up[2] = {input_up, hidden_up}, *down[2] = {input_down, hidden_down};
    const int64_t rows = gates * columns, strips = (rows + strip - 1) / strip, strips_down = (columns + strip - 1) / strip;
    // Weight [gate, j, k] stands in row k and column (gate, j) of Wᵀ, and the other way round in W.
    auto weight = [&](const T *w, int64_t row, int64_t k) {
      const int64_t gate = row / columns, j = row % columns;
      return j < dim && k < dim ? w[(gate * dim + j) * dim + k] : T(0);
    };
    for_each_task(2 * strips, [&](int64_t task) {
      const int64_t start = task / 2 * strip, wide = std::min(strip, rows - start);
      T *to = up[task % 2] + start * columns;
      for (int64_t k = 0; k < columns; ++k)
        for (int64_t n = 0; n < wide; ++n) to[k * wide + n] = weight(weights[task % 2], start + n, k);
    });
    for_each_task(2 * strips_down, [&](int64_t task) {
      const int64_t start = task / 2 * strip, wide = std::min(strip, columns - start);
      T *to = down[task % 2] + start * rows;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t n = 0; n < wide; ++n) to[row * wide + n] = weight(weights[task % 2], row, start + n);
    });
  }

  void give(LocalRnnWork<T> &work) const {
    work.bias = bias, work.late_bias = late_bias;
    work.input_up = input_up, work.hidden_up = hidden_up, work.input_down = input_down, work.hidden_down = hidden_down;
  }
};

/// Inputs as kernels read them: x [batch, length, dim], the weights and the biases.
template <typename T> LocalRnnWork<T> work_of(const LocalRnnSettings &settings, const torch::autograd::variable_list &inputs) {
  const Tensor &x = inputs[0];
  LocalRnnWork<T> work{};
  work.cell = settings.cell;
  work.window = settings.window;
  work.batch = x.size(0), work.length = x.size(1), work.dim = x.size(2);
  work.columns = (work.dim + 15) / 16 * 16;
  const int64_t blocks = (work.length + most_block - 1) / most_block;
  work.block = ((work.length + blocks - 1) / blocks + tile - 1) / tile * tile;
  work.tasks = std::min(most_tasks, work.batch * work.blocks());
  work.x = x.const_data_ptr<T>();
  work.x_batch = x.stride(0), work.x_row = x.stride(1);
  work.input_weight = inputs[1].const_data_ptr<T>(), work.hidden_weight = inputs[2].const_data_ptr<T>();
  work.input_bias = inputs[3].const_data_ptr<T>(), work.hidden_bias = inputs[4].const_data_ptr<T>();
  return work;
}

/// The sums of all tasks [tasks, gates, columns, …] as [gates · dim, …].
Tensor summed(const Tensor &sums, int64_t gates, int64_t dim) {
  auto all = sums.sum(0);
  auto rows = all.view({gates, all.size(0) / gates, -1}).narrow(1, 0, dim);
  return (sums.dim() == 3 ? rows.narrow(2, 0, dim).reshape({gates * dim, dim}) : rows.reshape({gates * dim}));
}

struct LocalRnn : torch::autograd::Function<LocalRnn> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &x, const Tensor &input_weight,
                        const Tensor &hidden_weight, const Tensor &input_bias, const Tensor &hidden_bias,
                        LocalRnnSettings settings) {
    torch::autograd::variable_list inputs{x, input_weight, hidden_weight, input_bias, hidden_bias};
    auto out = at::empty(x.sizes(), x.options());
    Tensor kept;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "local_rnn", [&] {
      auto work = work_of<scalar_t>(settings, inputs);
      PackedWeights<scalar_t> packed(work, x.options());
      packed.give(work);
      work.out = out.mutable_data_ptr<scalar_t>();
      const int64_t blocks = work.batch * work.blocks();
      if (blocks * work.kept_size() <= settings.most_kept / static_cast<int64_t>(sizeof(scalar_t))) {
        kept = at::empty({blocks, work.kept_size()}, x.options());
        work.kept = kept.template mutable_data_ptr<scalar_t>();
      }
      for_each_task(blocks, [&](int64_t block) { DISPATCH(local_rnn_forward<scalar_t>, work, block); });
    });
    inputs.push_back(kept);
    context->save_for_backward(inputs);
    context->saved_data["cell"] = static_cast<int64_t>(settings.cell);
    context->saved_data["window"] = settings.window;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the local RNN cannot be differentiated twice (createGraph)");
    auto inputs = context->get_saved_variables();
    const Tensor &x = inputs[0], &kept = inputs[5];
    const LocalRnnSettings settings{static_cast<RecurrentCell>(context->saved_data["cell"].toInt()),
                                    context->saved_data["window"].toInt(), 0};
    const auto cotangent = with_rows(grads[0]);
    auto dx = at::empty(x.sizes(), x.options());
    Tensor found[4];
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "local_rnn", [&] {
      auto work = work_of<scalar_t>(settings, inputs);
      PackedWeights<scalar_t> packed(work, x.options());
      packed.give(work);
      auto sums = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
      Tensor parts[4] = {sums({work.tasks, work.all_columns(), work.columns}), sums({work.tasks, work.all_columns(), work.columns}),
                         sums({work.tasks, work.all_columns()}), sums({work.tasks, work.all_columns()})};
      auto early = sums({work.tasks, work.reach(), work.dim});
      scalar_t *pointers[4];
      for (int i = 0; i < 4; ++i) pointers[i] = parts[i].template mutable_data_ptr<scalar_t>();
      work.input_weight_sum = pointers[0], work.hidden_weight_sum = pointers[1];
      work.input_bias_sum = pointers[2], work.hidden_bias_sum = pointers[3];
      work.early = early.template mutable_data_ptr<scalar_t>();
      work.kept = kept.defined() ? kept.mutable_data_ptr<scalar_t>() : nullptr;
      work.cotangent = cotangent.const_data_ptr<scalar_t>();
      work.cotangent_batch = cotangent.stride(0), work.cotangent_row = cotangent.stride(1);
      work.dx = dx.mutable_data_ptr<scalar_t>();
      for_each_task(work.tasks, [&](int64_t task) { DISPATCH(local_rnn_backward<scalar_t>, work, task); });
      for (int64_t task = 0; task < work.tasks; ++task) add_early(work, task);
      for (int i = 0; i < 4; ++i) found[i] = summed(parts[i], work.gates(), work.dim);
    });
    return {dx, found[0], found[1], found[2], found[3], Tensor()};
  }

  /// What a task found for tokens of the tasks before it.
  template <typename T> static void add_early(const LocalRnnWork<T> &work, int64_t task) {
    const BlockPlace place(work, work.first_block(task));
    const int64_t tokens = std::min(work.reach(), place.start);
    const T *from = work.early + (task + 1) * work.reach() * work.dim - tokens * work.dim;
    T *to = work.dx + (place.sequence * work.length + place.start - tokens) * work.dim;
    for (int64_t i = 0; i < tokens * work.dim; ++i) to[i] += from[i];
  }
};

} // namespace

extern "C" ctorch_tensor ctorch_local_rnn(ctorch_tensor x, ctorch_tensor input_weight, ctorch_tensor hidden_weight,
                                          ctorch_tensor input_bias, ctorch_tensor hidden_bias, int32_t cell, int64_t window,
                                          int64_t most_kept, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    const Tensor inputs[5] = {get(x), get(input_weight), get(hidden_weight), get(input_bias), get(hidden_bias)};
    TORCH_CHECK(cell >= 0 && cell < 3 && window > 0, "the local RNN needs a cell of 0 to 2 and a window above 0, not ", cell,
                " and ", window);
    LocalRnnSettings settings{static_cast<RecurrentCell>(cell), window, 0};
    TORCH_CHECK(inputs[0].dim() == 3 && inputs[0].is_cpu(), "the local RNN takes x [batch, length, dim] on the CPU, not ",
                inputs[0].sizes());
    const int64_t dim = inputs[0].size(2), rows = gates_of(settings.cell) * dim;
    for (int i = 1; i < 5; ++i) {
      const auto expected = i < 3 ? std::vector<int64_t>{rows, dim} : std::vector<int64_t>{rows};
      TORCH_CHECK(inputs[i].sizes() == at::IntArrayRef(expected), "the local RNN needs weights and biases of ", rows,
                  " rows for this cell and dim ", dim, ", not ", inputs[i].sizes());
    }
    const auto given = inputs[0].scalar_type();
    if (inputs[0].numel() == 0) return empty_result(inputs[0].sizes(), {inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]});
    const auto type = at::promote_types(given, at::kFloat);
    for (const auto &input : inputs)
      if (at::GradMode::is_enabled() && input.requires_grad()) settings.most_kept = most_kept;
    auto ready = [&](int i) { return inputs[i].to(type).contiguous(); };
    return LocalRnn::apply(with_rows(inputs[0].to(type)), ready(1), ready(2), ready(3), ready(4), settings).to(given);
  });
}
