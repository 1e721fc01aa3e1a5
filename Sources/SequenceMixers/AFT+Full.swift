// AFT-full in memory O(N D): the weights of a strip of keys at a time, forward and again backward.
//
// A strip's weights e^(k + w) are a product, e^(w - max w) · e^(k - max k), so its sums are two matrix products. The
// exponent max w + max k that they are relative to is at most the spread of w in the strip above the true largest
// exponent, which must leave its sum in the range of the numbers: a strip of wider spread, and the strip in which
// causal rows end, are summed pair by pair instead.
import Torch

extension AFTCore {
    /// Σ e^(k + w) v / Σ e^(k + w) over all keys, or over those up to each. Time O(N² D).
    func pairwiseMean(_ k: Tensor, _ v: Tensor, _ bias: AFTPairBias) -> Tensor {
        let shape = v.shape
        // One column for each feature of each sequence: w is the same for all.
        let columns = [k, v].map { $0.permuted(2, 0, 1, 3).reshaped(shape[2], -1) }
        let factors = bias.factors.map { $0.sliced(0, 0..<shape[2]).to(v.dtype) }
        let trimmed = factors.count == 1 ? [factors[0].sliced(1, 0..<shape[2])] : factors
        let isCausal = isCausal
        let mean = withCustomGradient(columns + trimmed) { inputs in
            let sums = PairwiseSums(k: inputs[0], v: inputs[1], factors: Array(inputs[2...]), isCausal: isCausal)
            let result = sums.forward()
            return ([result.mean], { gradients in sums.backward(result, gradients[0]) })
        }[0]
        return mean.reshaped(shape[2], shape[0], shape[1], shape[3]).permuted(1, 2, 0, 3)
    }
}

/// Sums over keys [n, columns] with the bias w [n, n] or u, v [n, dim].
private struct PairwiseSums {
    let k: Tensor
    let v: Tensor
    let factors: [Tensor]
    let isCausal: Bool

    /// The mean, and the exponent and denominator at which it was taken: `[n, columns]` each.
    struct Result {
        let mean: Tensor
        let exponent: Tensor
        let denominator: Tensor
    }

    private var length: Int { k.size(0) }

    /// e to this may stand beside 1 in a sum without leaving the range.
    private var largestSpread: Double { k.dtype == .float64 ? 300 : 40 }

    /// Some rows and keys, with their w.
    private struct Tile {
        let rows: Range<Int>
        let keys: Range<Int>
        let w: Tensor  // [rows, keys]
        /// Whether a row sees only the keys up to itself: both ranges then begin at the same place.
        let isTriangle: Bool

        var hidden: Tensor? {
            isTriangle
                ? .!Tensor.ones([rows.count, keys.count], dtype: .bool, device: w.device).lowerTriangle() : nil
        }
    }

    private func tile(_ rows: Range<Int>, _ keys: Range<Int>, isTriangle: Bool = false) -> Tile {
        let w =
            factors.count == 2
            ? matmul(factors[0].sliced(0, rows), factors[1].sliced(0, keys).transposed())
            : factors[0].sliced(0, rows).sliced(1, keys)
        return Tile(rows: rows, keys: keys, w: w, isTriangle: isTriangle)
    }

    /// Calls one of the two for every tile of the matrix of pairs.
    private func forEachTile(products: (Tile) -> Void, pairs: (Tile) -> Void) {
        let strip = isCausal ? 128 : 256
        for start in stride(from: 0, to: length, by: strip) {
            let keys = start..<min(start + strip, length)
            if isCausal { split(keys, keys, isTriangle: true, pairs) }
            let rows = isCausal ? keys.upperBound..<length : 0..<length
            if rows.isEmpty { continue }
            let whole = tile(rows, keys)
            let spread = (whole.w.maximum(1) - whole.w.minimum(1)).maximum().item()
            if spread <= largestSpread { products(whole) } else { split(rows, keys, isTriangle: false, pairs) }
        }
    }

    /// In pieces of rows for which all pairs of all columns fit in some megabytes.
    private func split(_ rows: Range<Int>, _ keys: Range<Int>, isTriangle: Bool, _ body: (Tile) -> Void) {
        let step = max(1, (1 << 21) / max(keys.count * k.size(1), 1))
        for start in stride(from: rows.lowerBound, to: rows.upperBound, by: step) {
            let part = start..<min(start + step, rows.upperBound)
            if isTriangle {
                if start > keys.lowerBound { body(tile(part, keys.lowerBound..<start)) }
                body(tile(part, part, isTriangle: true))
            } else {
                body(tile(part, keys))
            }
        }
    }

    // MARK: Forward

    func forward() -> Result {
        let exponent = Tensor.full(like: k, ExponentialSums.nothing)
        let (numerator, denominator) = (Tensor.zeros(like: k), Tensor.zeros(like: k))
        func add(_ rows: Range<Int>, _ sums: ExponentialSums) {
            let before = ExponentialSums(
                exponent: exponent.sliced(0, rows), numerator: numerator.sliced(0, rows),
                denominator: denominator.sliced(0, rows))
            let merged = before.merged(with: sums)
            exponent.copyInPlace(0, rows, from: merged.exponent)
            numerator.copyInPlace(0, rows, from: merged.numerator)
            denominator.copyInPlace(0, rows, from: merged.denominator)
        }
        forEachTile { tile in
            let product = Product(tile, k)
            let sums = ExponentialSums(
                exponent: product.exponent, numerator: matmul(product.ofBias, product.ofKeys * v.sliced(0, tile.keys)),
                denominator: matmul(product.ofBias, product.ofKeys))
            add(tile.rows, sums)
        } pairs: { tile in
            var exponents = k.sliced(0, tile.keys).unsqueezed(0) + tile.w.unsqueezed(2)  // [rows, keys, columns]
            if let hidden = tile.hidden {
                exponents = exponents.masked(where: hidden.unsqueezed(2), with: -Double.infinity)
            }
            let largest = exponents.maximum(1)
            let weights = pairWeights(tile, largest)
            let numerator = (weights * v.sliced(0, tile.keys).unsqueezed(0)).sum(1)
            add(tile.rows, ExponentialSums(exponent: largest, numerator: numerator, denominator: weights.sum(1)))
        }
        return Result(mean: numerator / denominator, exponent: exponent, denominator: denominator)
    }

    /// e^(k + w - largest) of every pair, the large numbers subtracted first: `[rows, keys, columns]`.
    private func pairWeights(_ tile: Tile, _ largest: Tensor) -> Tensor {
        let distances = k.sliced(0, tile.keys).unsqueezed(0) - largest.unsqueezed(1)
        let weights = (distances + tile.w.unsqueezed(2)).exp()
        return tile.hidden.map { weights.masked(where: $0.unsqueezed(2), with: 0) } ?? weights
    }

    /// A tile's weights as a product of two, relative to `exponent`.
    private struct Product {
        let ofBias: Tensor  // [rows, keys]
        let ofKeys: Tensor  // [keys, columns]
        let exponent: Tensor  // [rows, columns]

        init(_ tile: Tile, _ k: Tensor) {
            let keys = k.sliced(0, tile.keys)
            let (top, largest) = (tile.w.maximum(1, keepDim: true), keys.maximum(0, keepDim: true))
            ofBias = (tile.w - top).exp()
            ofKeys = (keys - largest).exp()
            exponent = top + largest
        }
    }

    // MARK: Backward

    /// With E the weights divided by their sum, and G the mean's gradient: dv_j = Σ_i E_ij G_i,
    /// dk_j = Σ_i E_ij G_i (v_j - mean_i), and dw_ij the same as dk_j without the sum, over all columns.
    func backward(_ result: Result, _ gradient: Tensor?) -> [Tensor?] {
        guard let gradient else { return Array(repeating: nil, count: 2 + factors.count) }
        let slope = gradient / result.denominator
        let mean = result.mean
        let (ofK, ofV) = (Tensor.zeros(like: k), Tensor.zeros(like: v))
        let ofFactors = factors.map { Tensor.zeros(like: $0) }
        func add(_ tile: Tile, _ ofKeys: Tensor, _ ofValues: Tensor, _ ofBias: Tensor) {
            ofK.sliced(0, tile.keys).addInPlace(ofKeys)
            ofV.sliced(0, tile.keys).addInPlace(ofValues)
            guard ofFactors.count == 2 else {
                return ofFactors[0].sliced(0, tile.rows).sliced(1, tile.keys).addInPlace(ofBias)
            }
            ofFactors[0].sliced(0, tile.rows).addInPlace(matmul(ofBias, factors[1].sliced(0, tile.keys)))
            ofFactors[1].sliced(0, tile.keys).addInPlace(
                matmul(ofBias.transposed(), factors[0].sliced(0, tile.rows)))
        }
        forEachTile { tile in
            let product = Product(tile, k)
            let values = v.sliced(0, tile.keys)
            let scale = (product.exponent - result.exponent.sliced(0, tile.rows)).exp()
            let toValues = slope.sliced(0, tile.rows) * scale
            let toMean = -(toValues * mean.sliced(0, tile.rows))
            let back = product.ofBias.transposed()
            let ofValues = product.ofKeys * matmul(back, toValues)
            let ofKeys = values * ofValues + product.ofKeys * matmul(back, toMean)
            let pairs =
                matmul(toValues, (product.ofKeys * values).transposed()) + matmul(toMean, product.ofKeys.transposed())
            add(tile, ofKeys, ofValues, product.ofBias * pairs)
        } pairs: { tile in
            let weights = pairWeights(tile, result.exponent.sliced(0, tile.rows))
            let toValues = weights * slope.sliced(0, tile.rows).unsqueezed(1)
            let values = v.sliced(0, tile.keys).unsqueezed(0)
            let pairs = toValues * (values - mean.sliced(0, tile.rows).unsqueezed(1))
            add(tile, pairs.sum(0), toValues.sum(0), pairs.sum(2))
        }
        return [ofK, ofV] + ofFactors
    }
}
