// The elementwise feature maps for one instruction set.

/// φ(x)
template <typename T> INLINE Vector<T> feature(FeatureMap map, Vector<T> x) {
  switch (map) {
  case FeatureMap::elu: return x > 0 ? x : exponential(smaller<T>(x, Vector<T>{})) - T(1);
  case FeatureMap::elu_plus_one: return x > 0 ? x + T(1) : exponential(smaller<T>(x, Vector<T>{}));
  case FeatureMap::relu: return larger<T>(x, Vector<T>{});
  case FeatureMap::sigmoid: return logistic<T>(x);
  case FeatureMap::silu: return x * logistic<T>(x);
  case FeatureMap::exponential: return exponential(x);
  default: return x;
  }
}

/// φ'(x), given φ(x) as well.
template <typename T> INLINE Vector<T> feature_slope(FeatureMap map, Vector<T> x, Vector<T> phi) {
  const auto one = splat<T>(1), zero = splat<T>(0);
  switch (map) {
  case FeatureMap::elu: return x > 0 ? one : phi + T(1);
  case FeatureMap::elu_plus_one: return x > 0 ? one : phi;
  case FeatureMap::relu: return x > 0 ? one : zero;
  case FeatureMap::sigmoid: return phi * (T(1) - phi);
  case FeatureMap::silu: {
    const auto gate = logistic<T>(x);
    return gate + phi * (T(1) - gate);
  }
  case FeatureMap::exponential: return phi;
  default: return one;
  }
}
