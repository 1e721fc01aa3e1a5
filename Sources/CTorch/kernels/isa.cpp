#include "../internal.hpp"
#include "isa.hpp"

namespace ctorch {

const char *name_of(Isa isa) {
  switch (isa) {
  case Isa::avx512: return "avx512";
  case Isa::avx2: return "avx2";
  case Isa::baseline: return "baseline";
  default: return "reference";
  }
}

const std::vector<Isa> &available_isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> found{Isa::reference, Isa::baseline};
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (avx2) found.push_back(Isa::avx2);
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
      found.push_back(Isa::avx512);
#endif
    return found;
  }();
  return all;
}

namespace {

Isa named(const std::string &name) {
  std::string names;
  for (auto isa : available_isas()) {
    if (name == name_of(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  TORCH_CHECK(false, "this machine has no instruction set '", name, "'; it has ", names);
}

} // namespace

int &forced_isa() {
  static thread_local int isa = unforced;
  return isa;
}

Isa active_isa() {
  if (int isa = forced_isa(); isa != unforced) return static_cast<Isa>(isa);
  static const Isa chosen = [] {
    const char *wanted = std::getenv("SUBQ_ISA");
    return wanted && *wanted ? named(wanted) : available_isas().back();
  }();
  return chosen;
}

} // namespace ctorch

using namespace ctorch;

extern "C" const char *ctorch_isa(ctorch_error *error) {
  return guarded(error, [] { return name_of(active_isa()); });
}

extern "C" void ctorch_force_isa(const char *name, ctorch_error *error) {
  guarded(error, [&] { forced_isa() = name ? static_cast<int>(named(name)) : unforced; });
}

extern "C" size_t ctorch_available_isas(const char **names, size_t capacity) {
  const auto &all = available_isas();
  for (size_t i = 0; i < std::min(capacity, all.size()); ++i) names[i] = name_of(all[i]);
  return all.size();
}
