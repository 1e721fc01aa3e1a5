// glibc returns every block over its mmap threshold (at most 32 MB) to the kernel at once, so that each large temporary is
// page-faulted in anew. This allocator keeps blocks of 64 KiB and more in lists by size class and hands them out again.
#include "internal.hpp"

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#endif
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr size_t smallest_kept = 64 * 1024;

/// Sizes are rounded up to eight classes per power of two: at most an eighth is wasted.
size_t size_class(size_t bytes) {
  size_t power = size_t(1) << (63 - __builtin_clzll(bytes));
  size_t step = power / 8;
  return (bytes + step - 1) / step * step;
}

class CachingAllocator final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < smallest_kept) {
      void *block = c10::alloc_cpu(bytes);
      return {block, block, &c10::free_cpu, c10::Device(c10::kCPU)};
    }
    void *block = take(size_class(bytes));
    return {block, block, &give_back, c10::Device(c10::kCPU)};
  }

  /// oneDNN's kernels allocate and free without a DataPtr, blocks of either kind.
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void *destination, const void *source, size_t count) const override { std::memcpy(destination, source, count); }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    drop_kept();
  }

  void usage(int64_t *in_use, int64_t *kept) {
    std::lock_guard<std::mutex> lock(mutex_);
    *in_use = static_cast<int64_t>(in_use_);
    *kept = static_cast<int64_t>(kept_);
  }

  static CachingAllocator &shared() {
    // Never destroyed: tensors in static storage may be freed after it would have been.
    static CachingAllocator *allocator = new CachingAllocator();
    return *allocator;
  }

private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void *>> free_;       // by size class
  std::unordered_map<void *, size_t> sizes_;         // of the blocks in use
  size_t in_use_ = 0, kept_ = 0, peak_ = 0;

  void *take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = free_.find(size);
    // A block up to a quarter larger is better than a new one.
    if (found == free_.end() || found->second.empty()) {
      found = free_.lower_bound(size);
      while (found != free_.end() && found->second.empty()) ++found;
      if (found != free_.end() && found->first > size + size / 4) found = free_.end();
    }
    void *block;
    if (found != free_.end()) {
      size = found->first;
      block = found->second.back();
      found->second.pop_back();
      kept_ -= size;
    } else {
      block = fresh(size);
    }
    sizes_[block] = size;
    in_use_ += size;
    peak_ = std::max(peak_, in_use_);
    return block;
  }

  /// From the system; when what is kept stands in the way of the working set's own peak, that goes first.
  void *fresh(size_t size) {
    if (in_use_ + kept_ + size > peak_ + peak_ / 4) drop_kept();
    try {
      return c10::alloc_cpu(size);
    } catch (const c10::Error &) {
      if (kept_ == 0) throw;
      drop_kept();
      return c10::alloc_cpu(size);
    }
  }

  void drop_kept() {
    for (auto &[size, blocks] : free_)
      for (void *block : blocks) c10::free_cpu(block);
    free_.clear();
    kept_ = 0;
  }

  static void give_back(void *block) {
    auto &self = shared();
    std::unique_lock<std::mutex> lock(self.mutex_);
    auto entry = self.sizes_.find(block);
    if (entry == self.sizes_.end()) { // a small one, freed through raw_deleter
      lock.unlock();
      c10::free_cpu(block);
      return;
    }
    size_t size = entry->second;
    self.sizes_.erase(entry);
    self.in_use_ -= size;
    try {
      self.free_[size].push_back(block);
      self.kept_ += size;
    } catch (const std::bad_alloc &) {
      c10::free_cpu(block);
    }
  }
};

std::atomic<bool> installed{false};

} // namespace

extern "C" {

void ctorch_caching_allocator_install(void) {
  if (!installed.exchange(true)) c10::SetAllocator(c10::kCPU, &CachingAllocator::shared(), /*priority=*/1);
}
bool ctorch_caching_allocator_installed(void) { return installed; }
void ctorch_caching_allocator_usage(int64_t *in_use, int64_t *cached) { CachingAllocator::shared().usage(in_use, cached); }
void ctorch_caching_allocator_release(void) { CachingAllocator::shared().release(); }

} // extern "C"
