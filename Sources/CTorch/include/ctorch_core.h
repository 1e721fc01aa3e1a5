// Handles, errors, what a tensor is, threads and versions.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
#define CTORCH_BEGIN extern "C" {
#define CTORCH_END }
#else
#define CTORCH_BEGIN
#define CTORCH_END
#endif

CTORCH_BEGIN

typedef struct ctorch_tensor_s *ctorch_tensor;
typedef struct ctorch_generator_s *ctorch_generator;

/// What went wrong: `kind` is one of the constants below, `message` is text from malloc, or NULL if nothing did.
typedef struct {
  int32_t kind;
  char *message;
} ctorch_error;

enum {
  CTORCH_OK = 0,
  CTORCH_INVALID_ARGUMENT = 1,
  CTORCH_INDEX_OUT_OF_RANGE = 2,
  CTORCH_OUT_OF_MEMORY = 3,
  CTORCH_NOT_SUPPORTED = 4,
  CTORCH_INTERNAL = 5,
};

/// A number on its way into an operation; `kind` says which member holds it, so that integer tensors stay integers.
typedef struct {
  int32_t kind; // 0 double, 1 int64, 2 bool
  double real;
  int64_t integer;
} ctorch_scalar;

void ctorch_tensor_free(ctorch_tensor tensor);
/// A second handle to the same tensor.
ctorch_tensor ctorch_tensor_retain(ctorch_tensor tensor);

int64_t ctorch_rank(ctorch_tensor tensor);
int64_t ctorch_count(ctorch_tensor tensor);
void ctorch_shape(ctorch_tensor tensor, int64_t *shape);
int32_t ctorch_dtype(ctorch_tensor tensor);
int32_t ctorch_element_size(ctorch_tensor tensor);
int32_t ctorch_device_type(ctorch_tensor tensor);
int32_t ctorch_device_index(ctorch_tensor tensor);
bool ctorch_is_contiguous(ctorch_tensor tensor);
bool ctorch_shares_storage(ctorch_tensor a, ctorch_tensor b);
/// The first element's address; meaningful for contiguous CPU tensors.
void *ctorch_data(ctorch_tensor tensor, ctorch_error *error);
double ctorch_item_double(ctorch_tensor tensor, ctorch_error *error);
int64_t ctorch_item_int64(ctorch_tensor tensor, ctorch_error *error);

int32_t ctorch_thread_count(void);
void ctorch_set_thread_count(int32_t count);
/// Version of the headers this was compiled with, and of the library that is loaded.
const char *ctorch_header_version(void);
const char *ctorch_library_version(void);
/// The vector instruction set that LibTorch chose for its own kernels: "AVX512", "AVX2", "DEFAULT", ….
const char *ctorch_cpu_capability(void);
bool ctorch_has_cuda(void);
bool ctorch_has_mps(void);

CTORCH_END
