/// Options of a mechanism whose matrix products can be counted, for its share of the machine's product rate.
///
/// Counted are multiplications and additions, two for each term of a product, over the pairs that a query may see; what a
/// form computes beyond them (masked halves, padded tiles), and all that is no product (softmax, norms, feature maps), is
/// not. The causal linear family counts its chunks of ``ProductSizes/chunk`` tokens.
package protocol ProductCounting: MixerOptions {
    /// Operations of a forward pass between the projections; nil where nobody has counted them.
    func products(_ sizes: ProductSizes) -> Double?

    /// How many projections, each of the model's width, stand around that; nil where they are of another kind.
    var projections: Int? { get }
}

extension ProductCounting {
    package var projections: Int? { 4 }
}

/// The sizes that products are counted for.
package struct ProductSizes {
    /// Tokens of a chunk in the causal linear family.
    package static let chunk = 64

    let batch: Int
    let heads: Int
    let length: Int
    let headDim: Int
    let isCausal: Bool

    package init(batch: Int, heads: Int, length: Int, headDim: Int, isCausal: Bool) {
        self.batch = batch
        self.heads = heads
        self.length = length
        self.headDim = headDim
        self.isCausal = isCausal
    }

    package var tokens: Double { Double(batch * length) }
    package var width: Double { Double(heads * headDim) }

    /// Keys that a query sees on average.
    var visibleKeys: Double { isCausal ? (Double(length) + 1) / 2 : Double(length) }

    /// Queries times keys and weights times values, for every query's `keys` of them.
    func pairs(_ keys: Double) -> Double { 4 * tokens * keys * width }

    /// How many of the `before` tokens before a query, itself, and the `after` tokens after it there are, on average.
    func window(before: Int, after: Int) -> Double {
        func reached(_ count: Int) -> Double {
            let reach = Double(min(count, length - 1))
            return reach - reach * (reach + 1) / (2 * Double(length))
        }
        return 1 + reached(before) + reached(after)
    }

    /// φ(k)ᵀ v and φ(q) S
    func state(features: Double) -> Double { 4 * tokens * Double(heads) * features * Double(headDim) }

    /// The products of the causal linear family, or of its bidirectional form.
    func linear(features: Double) -> Double {
        let state = state(features: features)
        guard isCausal else { return state }
        let size = Double(min(length, Self.chunk))
        return state + tokens * Double(heads) * (size + 1) * (features + Double(headDim))
    }
}

// MARK: - Mechanisms

extension SoftmaxOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? { sizes.pairs(sizes.visibleKeys) }
}

extension LinearOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        switch featureMap {
        case .eluPlusOne, .relu, .sigmoid, .exponential: return sizes.linear(features: Double(sizes.headDim))
        default:
            let features = Double(self.features ?? 2 * sizes.headDim)
            return sizes.linear(features: features) + 4 * sizes.tokens * sizes.width * features  // features of q and k
        }
    }
}

extension MomentumOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        let features = Double(sizes.headDim)
        switch weights ?? (sizes.isCausal ? .heavyBall : .final) {
        case .heavyBall: return sizes.linear(features: features) + sizes.state(features: features)  // S and P
        case .final: return sizes.linear(features: features)
        case .adaptive: return nil  // token by token: no products of matrices
        }
    }
}

extension TransNormerOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        switch attention {
        case .norm: return sizes.linear(features: Double(sizes.headDim))
        case .diag:
            let size = Double(min(block ?? 64, sizes.length))
            return sizes.pairs(sizes.isCausal ? (size + 1) / 2 : size)
        case .stack: return nil  // differs from block to block of a model
        }
    }
}

extension NGramOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        sizes.pairs(sizes.window(before: ngram - 1, after: 0))
    }
}

extension SparseOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        guard headsMode == .union, let patterns, let first = patterns.first else { return nil }
        let pattern = patterns.dropFirst().reduce(first) { $0.union($1) }
        if case .window(let radius, dilation: 1)? = pattern.choices.first?.first, pattern.choices.joined().count == 1 {
            return sizes.pairs(sizes.window(before: radius, after: sizes.isCausal ? 0 : radius))
        }
        return nil
    }
}

extension LinformerOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        guard projection == .linear, case .all(let rows)? = projectedLength else { return nil }
        let kept = Double(min(rows, sizes.length))
        return sizes.pairs(kept) + 4 * sizes.tokens * kept * sizes.width  // E k, F v
    }

    /// The compression stands before the projections of keys and values, or after them.
    package var projections: Int? { nil }
}

extension ReformerOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        guard layers == nil, attention ?? .lsh == .lsh, uniquePairs != true else { return nil }
        // Which of a chunk's keys come before a query is the hashes' affair, so all of them count.
        let keys = min(chunk * (1 + chunksBefore + chunksAfter), sizes.length)
        return sizes.pairs(Double(keys * (rounds ?? 2)))
    }

    package var projections: Int? { 3 }
}

extension AFTOptions: ProductCounting {
    package func products(_ sizes: ProductSizes) -> Double? {
        guard form == .full else { return nil }
        return 2 * 2 * sizes.tokens * sizes.visibleKeys * sizes.width  // Σ e^w e^k v, Σ e^w e^k
    }

    package var projections: Int? { hiddenDim == nil ? 4 : nil }
}
