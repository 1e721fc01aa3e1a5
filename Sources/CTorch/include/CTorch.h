// The C face of LibTorch: everything Swift may call. No C++ type and no exception crosses it.
//
// Conventions. A `ctorch_tensor` is an owned handle that `ctorch_tensor_free` releases; arguments are borrowed, results are
// owned by the caller. Every function that can fail takes a `ctorch_error *` last: on failure it fills it (the caller frees
// `message`) and returns NULL or zero. Shapes and dimension lists are a pointer and a count.
#pragma once

#include "ctorch_core.h"
#include "ctorch_creation.h"
#include "ctorch_pointwise.h"
#include "ctorch_reduction.h"
#include "ctorch_shape.h"
#include "ctorch_nn.h"
#include "ctorch_normalization.h"
#include "ctorch_dense.h"
#include "ctorch_gates.h"
#include "ctorch_rotation.h"
#include "ctorch_random_features.h"
#include "ctorch_autograd.h"
#include "ctorch_optimizer.h"
#include "ctorch_allocator.h"
#include "ctorch_kernels.h"
#include "ctorch_adaptive_momentum.h"
#include "ctorch_step_program.h"
#include "ctorch_step_attention.h"
#include "ctorch_step_past.h"
#include "ctorch_interval_attention.h"
#include "ctorch_moving_average.h"
#include "ctorch_segment_mixtures.h"
#include "ctorch_span_summaries.h"
#include "ctorch_aft.h"
#include "ctorch_spatial_gate.h"
#include "ctorch_lsh_attention.h"
#include "ctorch_local_rnn.h"
