// A CPU allocator that keeps large blocks for the next tensor instead of giving them back to the kernel.
#pragma once
#include "ctorch_core.h"
CTORCH_BEGIN

/// Installs it for every CPU tensor made from now on. Blocks made before are still freed as they were made.
void ctorch_caching_allocator_install(void);
bool ctorch_caching_allocator_installed(void);
/// Bytes of large blocks in use, and kept for reuse.
void ctorch_caching_allocator_usage(int64_t *in_use, int64_t *cached);
void ctorch_caching_allocator_release(void);

CTORCH_END
