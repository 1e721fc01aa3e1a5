#include "internal.hpp"

using namespace ctorch;

extern "C" {

ctorch_tensor ctorch_empty(const int64_t *shape, size_t rank, ctorch_options o, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::empty(dims(shape, rank), options(o)); });
}
ctorch_tensor ctorch_full(const int64_t *shape, size_t rank, ctorch_scalar value, ctorch_options o, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::full(dims(shape, rank), scalar(value), options(o)); });
}
ctorch_tensor ctorch_full_like(ctorch_tensor a, ctorch_scalar value, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::full_like(get(a), scalar(value)); });
}
ctorch_tensor ctorch_arange(ctorch_scalar start, ctorch_scalar end, ctorch_scalar step, ctorch_options o, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::arange(scalar(start), scalar(end), scalar(step), options(o)); });
}
ctorch_tensor ctorch_eye(int64_t size, ctorch_options o, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::eye(size, options(o)); });
}
ctorch_tensor ctorch_from_memory(const void *data, size_t bytes, const int64_t *shape, size_t rank, ctorch_options o,
                                 ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto host = at::empty(dims(shape, rank), options(o).device(at::kCPU));
    TORCH_CHECK(host.nbytes() == bytes, "a tensor of shape ", dims(shape, rank), " and type ", host.scalar_type(), " takes ",
                host.nbytes(), " bytes, ", bytes, " were given");
    if (bytes) std::memcpy(host.data_ptr(), data, bytes);
    return o.device_type == 0 ? host : host.to(options(o));
  });
}
ctorch_tensor ctorch_to(ctorch_tensor a, ctorch_options o, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).to(options(o)); });
}
ctorch_tensor ctorch_clone(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).clone(); });
}
ctorch_tensor ctorch_contiguous(ctorch_tensor a, ctorch_error *error) {
  return guarded_tensor(error, [&] { return get(a).contiguous(); });
}

ctorch_generator ctorch_generator_create(uint64_t seed, ctorch_error *error) {
  return guarded(error, [&]() -> ctorch_generator { return new ctorch_generator_s{at::detail::createCPUGenerator(seed)}; });
}
void ctorch_generator_free(ctorch_generator handle) { delete handle; }
void ctorch_generator_seed(ctorch_generator handle, uint64_t seed, ctorch_error *error) {
  guarded(error, [&] {
    auto g = handle ? handle->generator : at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(g.mutex());
    g.set_current_seed(seed);
  });
}
ctorch_tensor ctorch_generator_state(ctorch_generator handle, ctorch_error *error) {
  return guarded_tensor(error, [&] {
    auto g = handle ? handle->generator : at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(g.mutex());
    return g.get_state();
  });
}
void ctorch_generator_set_state(ctorch_generator handle, ctorch_tensor state, ctorch_error *error) {
  guarded(error, [&] {
    auto g = handle ? handle->generator : at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(g.mutex());
    g.set_state(get(state));
  });
}

ctorch_tensor ctorch_rand(const int64_t *shape, size_t rank, ctorch_options o, ctorch_generator g, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::rand(dims(shape, rank), generator(g), options(o)); });
}
ctorch_tensor ctorch_randn(const int64_t *shape, size_t rank, ctorch_options o, ctorch_generator g, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::randn(dims(shape, rank), generator(g), options(o)); });
}
ctorch_tensor ctorch_randint(int64_t low, int64_t high, const int64_t *shape, size_t rank, ctorch_options o, ctorch_generator g,
                             ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::randint(low, high, dims(shape, rank), generator(g), options(o)); });
}
ctorch_tensor ctorch_randperm(int64_t count, ctorch_generator g, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::randperm(count, generator(g), at::TensorOptions().dtype(at::kLong)); });
}
ctorch_tensor ctorch_bernoulli_like(ctorch_tensor a, double probability, ctorch_generator g, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::empty_like(get(a)).bernoulli_(probability, generator(g)); });
}
ctorch_tensor ctorch_multinomial(ctorch_tensor p, int64_t count, bool replacement, ctorch_generator g, ctorch_error *error) {
  return guarded_tensor(error, [&] { return at::multinomial(get(p), count, replacement, generator(g)); });
}

} // extern "C"
