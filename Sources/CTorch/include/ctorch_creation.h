// New tensors: constants, copies of memory, random numbers.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// Element type and place of a new tensor, in LibTorch's own numbering.
typedef struct {
  int32_t dtype;
  int32_t device_type;
  int32_t device_index;
} ctorch_options;

ctorch_tensor ctorch_empty(const int64_t *shape, size_t rank, ctorch_options options, ctorch_error *error);
ctorch_tensor ctorch_full(const int64_t *shape, size_t rank, ctorch_scalar value, ctorch_options options, ctorch_error *error);
ctorch_tensor ctorch_full_like(ctorch_tensor a, ctorch_scalar value, ctorch_error *error);
ctorch_tensor ctorch_arange(ctorch_scalar start, ctorch_scalar end, ctorch_scalar step, ctorch_options options,
                            ctorch_error *error);
ctorch_tensor ctorch_eye(int64_t size, ctorch_options options, ctorch_error *error);
/// Copies `bytes` bytes of row-major elements out of `data`.
ctorch_tensor ctorch_from_memory(const void *data, size_t bytes, const int64_t *shape, size_t rank, ctorch_options options,
                                 ctorch_error *error);
ctorch_tensor ctorch_to(ctorch_tensor a, ctorch_options options, ctorch_error *error);
ctorch_tensor ctorch_clone(ctorch_tensor a, ctorch_error *error);
ctorch_tensor ctorch_contiguous(ctorch_tensor a, ctorch_error *error);

/// A random number generator; NULL as an argument means LibTorch's own.
ctorch_generator ctorch_generator_create(uint64_t seed, ctorch_error *error);
void ctorch_generator_free(ctorch_generator generator);
void ctorch_generator_seed(ctorch_generator generator, uint64_t seed, ctorch_error *error);
ctorch_tensor ctorch_generator_state(ctorch_generator generator, ctorch_error *error);
void ctorch_generator_set_state(ctorch_generator generator, ctorch_tensor state, ctorch_error *error);

ctorch_tensor ctorch_rand(const int64_t *shape, size_t rank, ctorch_options options, ctorch_generator generator,
                          ctorch_error *error);
ctorch_tensor ctorch_randn(const int64_t *shape, size_t rank, ctorch_options options, ctorch_generator generator,
                           ctorch_error *error);
ctorch_tensor ctorch_randint(int64_t low, int64_t high, const int64_t *shape, size_t rank, ctorch_options options,
                             ctorch_generator generator, ctorch_error *error);
ctorch_tensor ctorch_randperm(int64_t count, ctorch_generator generator, ctorch_error *error);
/// Ones with the given probability, zeros otherwise, like `a`.
ctorch_tensor ctorch_bernoulli_like(ctorch_tensor a, double probability, ctorch_generator generator, ctorch_error *error);
ctorch_tensor ctorch_multinomial(ctorch_tensor probabilities, int64_t count, bool replacement, ctorch_generator generator,
                                 ctorch_error *error);

CTORCH_END
