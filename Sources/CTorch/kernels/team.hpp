// Work shared out over LibTorch's own team of threads, and the memory that each of them works in.
#pragma once

#include "../internal.hpp"

namespace ctorch {

/// Calls body(task) for every task from 0 to `count`, on LibTorch's threads; each takes the next one when it is free.
///
/// Results must not depend on who takes what: a task writes to memory of its own.
void for_each_task(int64_t count, c10::function_ref<void(int64_t)> body);

/// Memory for the time of one task, from a block that the thread keeps. Uninitialized; 64-byte aligned.
class Scratch {
public:
  /// `bytes` bounds what will be taken, rounded up to 64 bytes for each piece.
  explicit Scratch(size_t bytes);
  Scratch(const Scratch &) = delete;
  ~Scratch();

  template <typename T> T *take(int64_t count) {
    auto *piece = reinterpret_cast<T *>(next_);
    next_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    TORCH_INTERNAL_ASSERT(next_ <= end_, "a kernel takes more scratch memory than it asked for");
    return piece;
  }

  template <typename T> T *zeros(int64_t count) {
    auto *piece = take<T>(count);
    std::memset(static_cast<void *>(piece), 0, static_cast<size_t>(count) * sizeof(T));
    return piece;
  }

private:
  char *next_, *end_;
};

/// A tensor [batch, heads, length, columns] as the kernels see it: rows are contiguous, all else may be strided.
template <typename T> struct Rows {
  T *data = nullptr;
  int64_t heads = 1, batch_stride = 0, head_stride = 0, row = 0;

  /// The first row of a head; `index` counts batch × heads.
  T *head(int64_t index) const { return data + index / heads * batch_stride + index % heads * head_stride; }
};

/// `t` itself if its rows are contiguous, otherwise a copy.
inline at::Tensor with_rows(const at::Tensor &t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

/// An empty tensor of the shape of `t` [batch, heads, length, columns] whose heads lie side by side, as projections want them.
inline at::Tensor heads_side_by_side(const at::Tensor &t) {
  return at::empty({t.size(0), t.size(2), t.size(1), t.size(3)}, t.options()).transpose(1, 2);
}

template <typename T> Rows<const T> rows(const at::Tensor &t) {
  return {t.const_data_ptr<T>(), t.size(1), t.stride(0), t.stride(1), t.stride(2)};
}
template <typename T> Rows<T> mutable_rows(at::Tensor &t) {
  return {t.mutable_data_ptr<T>(), t.size(1), t.stride(0), t.stride(1), t.stride(2)};
}

} // namespace ctorch
