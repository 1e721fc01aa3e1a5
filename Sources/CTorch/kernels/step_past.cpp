// Entries of the operations over the past; see step_program.cpp.
#include "step_program.hpp"
#include "../internal.hpp"

using namespace ctorch;

namespace {

std::vector<float> numbers_of(const at::Tensor &t) {
  const auto numbers = t.detach().to(at::kCPU, at::kFloat).contiguous();
  return {numbers.const_data_ptr<float>(), numbers.const_data_ptr<float>() + numbers.numel()};
}

/// A window of tokens: the `keys` and `values` of all but the present one, behind a row of nothing that is forgotten next.
StepPast window_of(const at::Tensor &keys, const at::Tensor &values, float nothing) {
  TORCH_CHECK(keys.dim() == 2 && values.dim() == 2 && keys.size(0) == values.size(0),
              "a step program takes a row of keys and one of values for each token, not ", keys.sizes(), " and ", values.sizes());
  StepPast past{keys.size(1), values.size(1)};
  past.count = values.size(0);
  past.room = past.count + 1;
  past.keys = numbers_of(keys);
  past.values = numbers_of(values);
  past.keys.resize(static_cast<size_t>(past.room * past.key_width), nothing);
  past.values.resize(static_cast<size_t>(past.room * past.value_width), 0);
  return past;
}

} // namespace

extern "C" void ctorch_step_average(ctorch_step_program program, int64_t heads, int32_t activation, ctorch_tensor keys,
                                    ctorch_tensor values, ctorch_tensor taps, ctorch_slot bias, ctorch_slot q, ctorch_slot k,
                                    ctorch_slot v, ctorch_slot exponent, ctorch_slot numerator, ctorch_slot denominator,
                                    ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    auto past = window_of(get(keys), get(values), -1e30f);
    StepOperation o{StepKind::average};
    o.channels = past.value_width, o.choice = activation;
    o.columns = taps ? o.channels / heads : o.channels_at_once;
    o.rows = (o.channels + o.columns - 1) / o.columns;
    TORCH_CHECK(past.key_width == (taps ? heads : o.channels), "a step program takes a key for each ", taps ? "head" : "channel",
                ", not ", past.key_width);
    o.weight = list.keep(taps, {heads, past.room});
    o.x = q, o.k = k, o.v = v, o.s = exponent, o.p = numerator, o.z = denominator, o.residual = bias, o.y = y;
    o.past = list.hold(std::move(past));
    list.append(o);
  });
}

extern "C" void ctorch_step_taps(ctorch_step_program program, int32_t activation, ctorch_tensor taps, ctorch_tensor inputs,
                                 ctorch_slot x, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto &held = get(inputs);
    auto past = window_of(held.narrow(1, 0, 0), held, 0);
    StepOperation o{StepKind::taps};
    o.columns = past.value_width, o.choice = activation, o.x = x, o.y = y;
    o.weight = list.keep(taps, {past.room, o.columns});
    o.past = list.hold(std::move(past));
    list.append(o);
  });
}

extern "C" void ctorch_step_moving_average(ctorch_step_program program, ctorch_tensor coefficients, ctorch_slot x, ctorch_slot s,
                                           ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto shape = get(coefficients).sizes();
    TORCH_CHECK(shape.size() == 2 && shape[0] % 3 == 1, "a moving average takes [3 numbers + 1, channels], not ", shape);
    StepOperation o{StepKind::moving_average};
    o.rows = shape[0] / 3, o.columns = shape[1], o.x = x, o.s = s, o.y = y;
    o.weight = list.keep(coefficients, shape);
    list.append(o);
  });
}

extern "C" void ctorch_step_weigh(ctorch_step_program program, int32_t function, double scale, ctorch_tensor bias,
                                  ctorch_tensor frequencies, ctorch_tensor keys, ctorch_tensor values, int64_t chunk, ctorch_slot q,
                                  ctorch_slot k, ctorch_slot v, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto &held = get(keys), &of_held = get(values);
    StepPast past{held.size(1), of_held.size(1)};
    past.room = chunk, past.restarts = chunk > 0, past.count = held.size(0);
    past.keys = numbers_of(held);
    past.values = numbers_of(of_held);
    if (frequencies) {
      past.wave_count = get(frequencies).numel();
      past.frequencies = list.keep<double>(frequencies, {past.wave_count});
      past.cosines = list.keep(bias, {2, past.wave_count});
      past.sines = past.cosines + past.wave_count;
    } else {
      past.biases = numbers_of(get(bias));
      const auto most = static_cast<int64_t>(past.biases.size());
      TORCH_CHECK(chunk <= most, "a chunk of ", chunk, " tokens needs as many biases, not ", most);
      if (chunk == 0) past.most = most;
    }
    StepOperation o{StepKind::score}, after{StepKind::sum};
    after.rows = 1, after.columns = past.value_width;
    o.choice = after.choice = function, o.a = static_cast<float>(scale), o.x = q, o.k = k, after.v = v, after.y = y;
    o.past = after.past = list.hold(std::move(past));
    o.y = after.x = ctorch_step_slot(program, 1, nullptr, error); // stands for the scores, which are with the keys
    list.append(o);
    list.append(after);
  });
}

extern "C" void ctorch_step_position_sum(ctorch_step_program program, ctorch_tensor weights, ctorch_tensor bias,
                                         ctorch_tensor values, ctorch_slot v, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto shape = get(weights).sizes(), of_bias = get(bias).sizes();
    TORCH_CHECK(of_bias.size() == 2, "a sum over positions takes a bias [heads, length], not ", of_bias);
    const int64_t heads = of_bias[0], length = of_bias[1];
    const bool is_dense = shape.size() == 3;
    StepPast past{0, get(values).size(1)};
    past.most = length, past.count = get(values).size(0), past.values = numbers_of(get(values));
    StepOperation o{StepKind::sum};
    o.rows = heads, o.columns = past.value_width / heads, o.v = v, o.y = y;
    o.bias = list.keep(bias, of_bias);
    if (is_dense) {
      o.weight = list.keep(weights, {heads, length, length});
      o.group = length * length, o.stride = length;
    } else {
      o.weight = list.keep(weights, {heads, 2 * length - 1}) + length - 1;
      o.group = 2 * length - 1, o.stride = -1;
    }
    o.past = list.hold(std::move(past));
    list.append(o);
  });
}

extern "C" void ctorch_step_products(ctorch_step_program program, int64_t count, ctorch_slot x, ctorch_tensor weight,
                                     ctorch_tensor bias, ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto shape = get(weight).sizes();
    StepOperation o{StepKind::linear};
    o.rows = shape[0], o.columns = shape[1], o.vectors = count, o.x = x, o.y = y;
    o.weight = list.keep(weight, shape);
    o.bias = list.keep(bias, {o.rows});
    list.append(o);
  });
}

extern "C" void ctorch_step_row_products(ctorch_step_program program, int64_t count, ctorch_slot x, ctorch_tensor table,
                                         ctorch_slot y, ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    const auto shape = get(table).sizes();
    StepOperation o{StepKind::linear};
    o.rows = count, o.columns = shape[1], o.table_rows = shape[0], o.moves = true, o.x = x, o.y = y;
    o.weight = list.keep(table, shape);
    list.append(o);
  });
}

extern "C" void ctorch_step_cell(ctorch_step_program program, int32_t cell, int64_t window, int64_t channels, ctorch_tensor bias,
                                 ctorch_slot x, ctorch_slot products, ctorch_slot h, ctorch_slot c, ctorch_slot y,
                                 ctorch_error *error) {
  guarded(error, [&] {
    auto &list = list_of(program);
    StepOperation o{StepKind::cell};
    o.choice = cell, o.rows = window, o.columns = channels;
    o.channels = channels * (cell == CTORCH_STEP_GRU ? 3 : cell == CTORCH_STEP_LSTM ? 4 : 1);
    o.bias = list.keep(bias, {o.channels});
    o.x = x, o.k = products, o.s = h, o.p = c, o.y = y;
    list.append(o);
  });
}
