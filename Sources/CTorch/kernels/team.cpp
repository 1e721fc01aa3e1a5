#include "team.hpp"
#include "isa.hpp"

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#endif
#include <ATen/TensorIterator.h>
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#include <atomic>
#include <utility>

namespace ctorch {

void for_each_task(int64_t count, c10::function_ref<void(int64_t)> body) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  if (threads <= 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < count; ++task) body(task);
    return;
  }
  // at::parallel_for is compiled into its caller and needs the compiler's OpenMP. A loop over an iterator of as many numbers
  // as there are threads runs on the same team, and is compiled into LibTorch.
  auto places = at::empty({threads}, at::kByte);
  auto iterator = at::TensorIterator::nullary_op(places);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  const int isa = forced_isa();
  iterator.for_each(
      [&](char **, const int64_t *, int64_t) {
        const int before = std::exchange(forced_isa(), isa);
        try {
          for (int64_t task = next++; task < count; task = next++) body(task);
          std::atomic_thread_fence(std::memory_order_seq_cst); // what was written around the caches is there for the others
        } catch (...) {
          if (!failed.exchange(true)) failure = std::current_exception();
          next = count;
        }
        forced_isa() = before;
      },
      1);
  if (failure) std::rethrow_exception(failure);
}

namespace {

/// A thread's block, given back when the thread ends.
struct Block {
  char *data = nullptr;
  size_t size = 0, used = 0;
  ~Block() { std::free(data); }
};
thread_local Block block;

} // namespace

Scratch::Scratch(size_t bytes) {
  // Tasks do not nest on a thread, so a block has one user.
  TORCH_INTERNAL_ASSERT(block.used == 0, "a kernel's task started another on its own thread");
  bytes = (bytes + 63) / 64 * 64 + 4096;
  if (block.size < bytes) {
    std::free(block.data);
    block.data = static_cast<char *>(std::aligned_alloc(64, bytes / 64 * 64));
    block.size = block.data ? bytes / 64 * 64 : 0;
    TORCH_CHECK(block.data, "no memory for ", bytes, " bytes of a kernel's scratch space");
  }
  block.used = bytes;
  next_ = block.data;
  end_ = block.data + block.size;
}

Scratch::~Scratch() { block.used = 0; }

} // namespace ctorch
