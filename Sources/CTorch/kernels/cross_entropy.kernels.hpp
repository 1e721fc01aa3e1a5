// Cross entropy of rows; included by for_each_isa.hpp inside an instruction set's namespace.

template <typename T> T log_sum(int64_t classes, const T *z) {
  auto largest = splat<T>(-INFINITY);
  int64_t n = 0;
  for (; n + width<T> <= classes; n += width<T>) largest = larger<T>(load<T>(z + n), largest);
  T top = largest_of<T>(largest);
  for (int64_t i = n; i < classes; ++i) top = std::max(top, z[i]);
  if (!std::isfinite(top)) top = 0; // infinities and NaN come out as such below
  Vector<T> sums{};
  for (n = 0; n + width<T> <= classes; n += width<T>) sums += exponential(load<T>(z + n) - top);
  T sum = sum_of<T>(sums);
  for (; n < classes; ++n) sum += std::exp(z[n] - top);
  return top + std::log(sum);
}

template <typename T> void cross_entropy_forward(const CrossEntropyWork<T> &work, int64_t task) {
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    const T *z = work.logits + row * work.classes;
    const int64_t target = work.targets[row];
    work.log_sums[row] = target == work.ignored ? T(0) : log_sum<T>(work.classes, z);
    if (target == work.ignored) {
      work.losses[row] = 0;
      continue;
    }
    T total = 0;
    if (work.smoothing > 0) {
      Vector<T> sums{};
      int64_t n = 0;
      for (; n + width<T> <= work.classes; n += width<T>) sums += load<T>(z + n);
      total = sum_of<T>(sums);
      for (; n < work.classes; ++n) total += z[n];
    }
    work.losses[row] =
        work.log_sums[row] - (1 - work.smoothing) * z[target] - work.smoothing / static_cast<T>(work.classes) * total;
  }
}

template <typename T> void cross_entropy_backward(const CrossEntropyWork<T> &work, int64_t task) {
  const T even = work.smoothing / static_cast<T>(work.classes);
  for (int64_t row = task * work.block; row < std::min(work.rows, (task + 1) * work.block); ++row) {
    const T *z = work.logits + row * work.classes;
    T *gradient = work.gradient + row * work.classes;
    if (work.targets[row] == work.ignored) {
      std::memset(static_cast<void *>(gradient), 0, sizeof(T) * static_cast<size_t>(work.classes));
      continue;
    }
    const T scale = work.scale[row * work.scale_step], log_sum = work.log_sums[row];
    int64_t n = 0;
    for (; n + width<T> <= work.classes; n += width<T>)
      store<T>(gradient + n, (exponential(load<T>(z + n) - log_sum) - even) * scale);
    for (; n < work.classes; ++n) gradient[n] = (std::exp(z[n] - log_sum) - even) * scale;
    gradient[work.targets[row]] -= (1 - work.smoothing) * scale;
  }
}
