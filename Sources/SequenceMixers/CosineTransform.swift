// The orthonormal cosine transform along a sequence (DCT-II) and its inverse (DCT-III), each by one real FFT of its
// length. Makhoul 1980, "A fast cosine transform in one and two dimensions".
//
//   S_k = Σ_i x_i cos(π (2i + 1) k / 2n),  X_k = c_k S_k,   c_0 = √(1/n),  c_k = √(2/n)
//
// With v = (x_0, x_2, …, x_3, x_1), the even positions and then the odd ones backwards, V = FFT(v) and θ_k = π k / 2n:
//   S_k = Re(V_k e^{-iθ_k}),   V_k = (S_k - i S_{n-k}) e^{iθ_k},  S_n = 0
import Torch

/// Over dimension 1 of `[batch, n, channels]`, float32 or float64. Time O(n log n · channels), memory O(n · channels);
/// both are linear, so nothing of x is kept for the gradient.
enum CosineTransform {
    /// X_0, …, X_{count-1} `[batch, count, channels]`.
    static func coefficients(of x: Tensor, keeping count: Int) -> Tensor {
        sums(of: x, keeping: count) * weights(0..<count, of: x.size(1), like: x)
    }

    /// The inverse of the first m coefficients of x, times `scale`. c_k(n) / c_k(m) is the same for every k, so that no
    /// pass over the coefficients is needed for it.
    static func lowPass(_ x: Tensor, keeping m: Int, scale: Double = 1) -> Tensor {
        sequence(of: sums(of: x, keeping: m, scale: scale * (Double(m) / Double(x.size(1))).squareRoot()))
    }

    /// S_0, …, S_{count-1} times `scale`.
    private static func sums(of x: Tensor, keeping count: Int, scale: Double = 1) -> Tensor {
        let n = x.size(1)
        let half = n / 2
        let v = concatenate([x.sliced(1, 0..<n, step: 2), x.sliced(1, 1..<n, step: 2).flipped(1)], dim: 1)
        let spectrum = v.rfft(1).complexAsReal()  // [batch, half + 1, channels, 2]
        let (real, imaginary) = (spectrum.selected(3, 0), spectrum.selected(3, 1))
        let low = min(count, half + 1)
        let (cosines, sines) = turns(0..<low, of: n, like: x, scale: scale)
        var sums = real.sliced(1, 0..<low) * cosines + imaginary.sliced(1, 0..<low) * sines
        if count > low {
            // V_k = conj(V_{n-k}) beyond the middle.
            let mirrored = n - count + 1..<n - half
            let (cosines, sines) = turns(low..<count, of: n, like: x, scale: scale)
            let high =
                real.sliced(1, mirrored).flipped(1) * cosines - imaginary.sliced(1, mirrored).flipped(1) * sines
            sums = concatenate([sums, high], dim: 1)
        }
        return sums
    }

    /// The sequence `[batch, m, channels]` with the sums S `[batch, m, channels]`.
    private static func sequence(of sums: Tensor) -> Tensor {
        let m = sums.size(1)
        let (half, middle) = (m / 2, m - m / 2)
        let low = sums.sliced(1, 0..<half + 1)  // S_k
        let beyond = Tensor.zeros(like: sums.sliced(1, 0..<1))
        let mirrored = concatenate([beyond, sums.sliced(1, middle..<m).flipped(1)], dim: 1)  // S_{m-k}
        let (cosines, sines) = turns(0..<half + 1, of: m, like: sums)
        let spectrum = stack([low * cosines + mirrored * sines, low * sines - mirrored * cosines], dim: 3)
        let v = spectrum.realAsComplex().irfft(1, count: m)
        let even = v.sliced(1, 0..<middle)
        let odd = v.sliced(1, middle..<m).flipped(1).padded(1, after: middle - half)
        return stack([even, odd], dim: 2).flattened(1, 2).sliced(1, 0..<m)
    }

    /// cos θ_k and sin θ_k times `scale`, `[range.count, 1]`.
    private static func turns(_ range: Range<Int>, of n: Int, like x: Tensor, scale: Double = 1) -> (
        cosines: Tensor, sines: Tensor
    ) {
        let angles = Tensor.arange(range, dtype: .float64, device: x.device).unsqueezed(1) * (Double.pi / Double(2 * n))
        return ((angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype))
    }

    /// c_k, `[range.count, 1]`.
    private static func weights(_ range: Range<Int>, of n: Int, like x: Tensor) -> Tensor {
        let k = Tensor.arange(range, device: x.device).unsqueezed(1)
        let ones = Tensor.ones([range.count, 1], dtype: .float64, device: x.device)
        return (ones.masked(where: k .== 0, with: 0.5.squareRoot()) * (2 / Double(n)).squareRoot()).to(x.dtype)
    }

    // MARK: Reference form

    static func coefficientsByMatrix(of x: Tensor, keeping count: Int) -> Tensor {
        matmul(matrix(x.size(1), like: x).sliced(0, 0..<count), x)
    }

    static func inverseByMatrix(_ coefficients: Tensor) -> Tensor {
        matmul(matrix(coefficients.size(1), like: coefficients).transposed(), coefficients)
    }

    /// c_k cos(π (2i + 1) k / 2n), row k, column i.
    private static func matrix(_ n: Int, like x: Tensor) -> Tensor {
        let k = Tensor.arange(0..<n, dtype: .float64, device: x.device).unsqueezed(1)
        let i = Tensor.arange(0..<n, dtype: .float64, device: x.device).unsqueezed(0)
        let cosines = (k * (i * 2 + 1) * (Double.pi / Double(2 * n))).cos()
        return cosines.to(x.dtype) * weights(0..<n, of: n, like: x)
    }
}
