// glibc returns every block over its mmap threshold (at most 32 MB) to the kernel at once, so that each large temporary is
// page-faulted in anew. This allocator keeps blocks of 64 KiB and more in lists by size class and hands them out again.
#include "internal.hpp"

#include <atomic>
#include <map>
#include <mutex>

namespace {

constexpr size_t smallest_kept = 64 * 1024;
/// Room before each block for its size class; keeps the block aligned as LibTorch wants it.
constexpr size_t header = 64;

/// Sizes are rounded up to eight classes per power of two: at most an eighth is wasted.
size_t size_class(size_t bytes) {
  size_t power = size_t(1) << (63 - __builtin_clzll(bytes));
  size_t step = power / 8;
  return (bytes + step - 1) / step * step;
}

/// The size class written before a block; 0 for a small one, which goes back to the system at once.
size_t &size_of(void *block) { return *reinterpret_cast<size_t *>(static_cast<char *>(block) - header); }

void *from_system(size_t bytes, size_t size) {
  void *block = static_cast<char *>(c10::alloc_cpu(bytes + header)) + header;
  size_of(block) = size;
  return block;
}

void to_system(void *block) { c10::free_cpu(static_cast<char *>(block) - header); }

class CachingAllocator final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t bytes) override {
    void *block = bytes == 0 ? nullptr : bytes < smallest_kept ? from_system(bytes, 0) : take(size_class(bytes));
    return {block, block, &give_back, c10::Device(c10::kCPU)};
  }

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
  std::map<size_t, std::vector<void *>> free_; // by size class
  size_t in_use_ = 0, kept_ = 0, peak_ = 0;

  void *take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    void *block = nullptr;
    // A kept block up to a quarter larger is better than a new one.
    for (auto found = free_.lower_bound(size); found != free_.end() && found->first <= size + size / 4; ++found) {
      if (found->second.empty()) continue;
      block = found->second.back();
      found->second.pop_back();
      kept_ -= found->first;
      break;
    }
    if (!block) block = fresh(size);
    in_use_ += size_of(block);
    peak_ = std::max(peak_, in_use_);
    return block;
  }

  /// From the system; when what is kept would carry the total well over the working set's own peak, that goes first.
  void *fresh(size_t size) {
    if (in_use_ + kept_ + size > peak_ + peak_ / 4) drop_kept();
    try {
      return from_system(size, size);
    } catch (const c10::Error &) {
      if (kept_ == 0) throw;
      drop_kept();
      return from_system(size, size);
    }
  }

  void drop_kept() {
    for (auto &[size, blocks] : free_)
      for (void *block : blocks) to_system(block);
    free_.clear();
    kept_ = 0;
  }

  static void give_back(void *block) {
    if (!block) return;
    size_t size = size_of(block);
    if (size == 0) return to_system(block);
    auto &self = shared();
    std::lock_guard<std::mutex> lock(self.mutex_);
    self.free_[size].push_back(block);
    self.in_use_ -= size;
    self.kept_ += size;
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
