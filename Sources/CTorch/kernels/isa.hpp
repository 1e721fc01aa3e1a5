// Which instruction set the kernels run with. Every family is compiled for each that the architecture has (for_each_isa.hpp);
// the machine, or the environment's SUBQ_ISA, decides at run time.
#pragma once

#include <string>
#include <vector>

namespace ctorch {

enum class Isa { reference, baseline, avx2, avx512 };

/// The instruction sets of this machine, slowest first; `reference` stands for plain loops that need none.
const std::vector<Isa> &available_isas();

/// What `force_isa` or SUBQ_ISA asks for, otherwise the machine's best.
Isa active_isa();

/// What `force_isa` said on this thread, as `unforced` or an Isa: a team's threads take over that of the thread they work for.
constexpr int unforced = -1;
int &forced_isa();

const char *name_of(Isa isa);

} // namespace ctorch

/// Calls `function` as compiled for the active instruction set; `reference::function` are the plain loops.
#if defined(__x86_64__)
#define DISPATCH(function, ...)                                                                                                   \
  [&] {                                                                                                                           \
    switch (ctorch::active_isa()) {                                                                                               \
    case ctorch::Isa::avx512: return ctorch::avx512::function(__VA_ARGS__);                                                       \
    case ctorch::Isa::avx2: return ctorch::avx2::function(__VA_ARGS__);                                                           \
    case ctorch::Isa::baseline: return ctorch::baseline::function(__VA_ARGS__);                                                   \
    default: return ctorch::reference::function(__VA_ARGS__);                                                                     \
    }                                                                                                                             \
  }()
#else
#define DISPATCH(function, ...)                                                                                                   \
  [&] {                                                                                                                           \
    if (ctorch::active_isa() == ctorch::Isa::baseline) return ctorch::baseline::function(__VA_ARGS__);                            \
    return ctorch::reference::function(__VA_ARGS__);                                                                              \
  }()
#endif
