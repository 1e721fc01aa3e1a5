// Includes the file KERNELS once for each instruction set, in a namespace of its name, after the vectors of that set:
//
//   #define KERNELS "aft.kernels.hpp"
//   #include "for_each_isa.hpp"
//
// gives ctorch::avx512::f, avx2::f and baseline::f for every f in it. The baseline is SSE2 on x86-64 and NEON on arm64. The file
// includes other *.kernels.hpp at most, which become part of it: its own family's, and functions that several families apply.
// Headers are included before, outside of every instruction set. Its names are its own: families may have functions of one name.
#include "isa.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,bmi2"))), apply_to = function)
namespace ctorch::avx512 {
constexpr int vector_bytes = 64;
#include "vector.hpp"
#include "products.hpp"
namespace {
#include KERNELS
}
} // namespace ctorch::avx512
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
namespace ctorch::avx2 {
constexpr int vector_bytes = 32;
#include "vector.hpp"
#include "products.hpp"
namespace {
#include KERNELS
}
} // namespace ctorch::avx2
#pragma clang attribute pop

#endif

namespace ctorch::baseline {
constexpr int vector_bytes = 16;
#include "vector.hpp"
#include "products.hpp"
namespace {
#include KERNELS
}
} // namespace ctorch::baseline

#undef KERNELS
