// Gradients, and functions with a gradient of their own.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

bool ctorch_requires_grad(ctorch_tensor a);
void ctorch_set_requires_grad(ctorch_tensor a, bool value, ctorch_error *error);
/// NULL where no gradient has been computed.
ctorch_tensor ctorch_grad(ctorch_tensor a);
void ctorch_set_grad(ctorch_tensor a, ctorch_tensor grad, ctorch_error *error);
ctorch_tensor ctorch_detach(ctorch_tensor a, ctorch_error *error);
void ctorch_backward(ctorch_tensor a, ctorch_tensor grad, bool keep_graph, ctorch_error *error);
/// d(sum outputs · grads)/d inputs into `results`; an entry is NULL where the input was not used. `grads` may hold NULL for ones.
void ctorch_gradients(const ctorch_tensor *outputs, const ctorch_tensor *grads, size_t output_count, const ctorch_tensor *inputs,
                      size_t input_count, bool keep_graph, bool create_graph, ctorch_tensor *results, ctorch_error *error);
bool ctorch_grad_enabled(void);
void ctorch_set_grad_enabled(bool enabled);

/// Swift's half of a function with its own gradient. `backward` gets the outputs' gradients (NULL: zero), and writes owned
/// handles (NULL: zero) for each input. `release` is called once, when the graph lets go of the function.
typedef struct {
  void *context;
  void (*backward)(void *context, const ctorch_tensor *grads, size_t grad_count, ctorch_tensor *results, size_t result_count,
                   ctorch_error *error);
  void (*release)(void *context);
} ctorch_pullback;

/// A failure of a pullback on its way into LibTorch: copies `text`.
void ctorch_error_set(ctorch_error *error, int32_t kind, const char *text);

/// Hangs `pullback` behind `outputs`, which were computed from `inputs` without a graph. Takes over `pullback`.
void ctorch_attach_pullback(const ctorch_tensor *inputs, size_t input_count, const ctorch_tensor *outputs, size_t output_count,
                            ctorch_pullback pullback, ctorch_error *error);

CTORCH_END
