#include "internal.hpp"

using namespace ctorch;

namespace {

void store(ctorch_error *error, int32_t kind, const char *text) noexcept {
  if (!error || error->message) return;
  error->kind = kind;
  error->message = strdup(text);
}

} // namespace

void ctorch::store_exception(ctorch_error *error) noexcept {
  try {
    throw;
  } catch (const c10::OutOfMemoryError &e) {
    store(error, CTORCH_OUT_OF_MEMORY, e.what_without_backtrace());
  } catch (const c10::IndexError &e) {
    store(error, CTORCH_INDEX_OUT_OF_RANGE, e.what_without_backtrace());
  } catch (const c10::NotImplementedError &e) {
    store(error, CTORCH_NOT_SUPPORTED, e.what_without_backtrace());
  } catch (const c10::Error &e) {
    const char *text = e.what_without_backtrace();
    // The CPU allocator has no exception type of its own.
    bool memory = std::strstr(text, "not enough memory") || std::strstr(text, "can't allocate memory");
    store(error, memory ? CTORCH_OUT_OF_MEMORY : CTORCH_INVALID_ARGUMENT, text);
  } catch (const std::bad_alloc &) {
    store(error, CTORCH_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception &e) {
    store(error, CTORCH_INTERNAL, e.what());
  } catch (...) {
    store(error, CTORCH_INTERNAL, "an exception of unknown type");
  }
}

extern "C" {

void ctorch_error_set(ctorch_error *error, int32_t kind, const char *text) { store(error, kind, text); }

void ctorch_tensor_free(ctorch_tensor tensor) { delete tensor; }
ctorch_tensor ctorch_tensor_retain(ctorch_tensor tensor) { return wrap(get(tensor)); }

int64_t ctorch_rank(ctorch_tensor tensor) { return get(tensor).dim(); }
int64_t ctorch_count(ctorch_tensor tensor) { return get(tensor).numel(); }
void ctorch_shape(ctorch_tensor tensor, int64_t *shape) {
  auto sizes = get(tensor).sizes();
  std::copy(sizes.begin(), sizes.end(), shape);
}
int32_t ctorch_dtype(ctorch_tensor tensor) { return static_cast<int32_t>(get(tensor).scalar_type()); }
int32_t ctorch_element_size(ctorch_tensor tensor) { return static_cast<int32_t>(get(tensor).element_size()); }
int32_t ctorch_device_type(ctorch_tensor tensor) { return static_cast<int32_t>(get(tensor).device().type()); }
int32_t ctorch_device_index(ctorch_tensor tensor) { return get(tensor).device().index(); }
bool ctorch_is_contiguous(ctorch_tensor tensor) { return get(tensor).is_contiguous(); }
bool ctorch_shares_storage(ctorch_tensor a, ctorch_tensor b) { return get(a).is_alias_of(get(b)); }
void *ctorch_data(ctorch_tensor tensor, ctorch_error *error) {
  return guarded(error, [&] { return get(tensor).data_ptr(); });
}
double ctorch_item_double(ctorch_tensor tensor, ctorch_error *error) {
  return guarded(error, [&] { return get(tensor).item().toDouble(); });
}
int64_t ctorch_item_int64(ctorch_tensor tensor, ctorch_error *error) {
  return guarded(error, [&] { return get(tensor).item().toLong(); });
}

int32_t ctorch_thread_count(void) { return at::get_num_threads(); }
void ctorch_set_thread_count(int32_t count) { at::set_num_threads(count); }
const char *ctorch_header_version(void) { return TORCH_VERSION; }
const char *ctorch_library_version(void) {
  // The library states its version only inside a longer text: "PyTorch built with:" has none, but the build settings do.
  static const std::string version = [] {
    const std::string config = at::show_config();
    const std::string key = "TORCH_VERSION=";
    auto start = config.find(key);
    if (start == std::string::npos) return std::string("unknown");
    start += key.size();
    return config.substr(start, config.find_first_of(", \n", start) - start);
  }();
  return version.c_str();
}
const char *ctorch_cpu_capability(void) {
  static const std::string capability = at::get_cpu_capability();
  return capability.c_str();
}
bool ctorch_has_cuda(void) { return at::hasCUDA(); }
bool ctorch_has_mps(void) { return at::hasMPS(); }

} // extern "C"
