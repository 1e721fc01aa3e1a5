import SequenceMixers

/// How many operations the matrix products of a mechanism need: the numerator of its share of the machine's product rate.
///
/// Counted are multiplications and additions, two for each term of a product, over the pairs that a query may see; what a
/// form computes beyond them (masked halves, padded tiles, scores a second time in the backward pass), and all that is no
/// product (softmax, norms, feature maps), is not. The backward pass counts twice the forward pass, a product for each
/// factor's gradient. The causal linear family counts its chunks of ``chunk`` tokens. No count: nil.
public struct OperationCount {
    /// Tokens of a chunk in the causal linear family.
    public static let chunk = 64

    let mixer: MixerConfiguration
    let causal: Bool
    let shape: BenchmarkShape

    /// Of the measurement that the task describes.
    public static func of(_ task: BenchmarkTask) -> Double? {
        let shape = task.shape
        if task.work == .product { return 2 * Double(shape.length) * Double(shape.length) * Double(shape.length) }
        guard let mixer = task.mixer else { return nil }
        let isModel = task.work == .languageModel
        let count = OperationCount(mixer: mixer, causal: isModel || task.causal, shape: shape)
        let passes: Double = task.pass == .forwardBackward || isModel ? 3 : 1
        switch task.work {
        case .attention: return count.attention.map { $0 * passes }
        case .block: return count.block.map { $0 * passes }
        case .layer: return count.layer.map { $0 * passes }
        case .languageModel: return count.languageModel.map { $0 * passes }
        default: return nil
        }
    }

    private var tokens: Double { Double(shape.batch * shape.length) }
    private var length: Double { Double(shape.length) }
    private var width: Double { Double(shape.heads * shape.headDim) }
    private var headDim: Double { Double(shape.headDim) }

    /// Keys that a query sees on average.
    private var visibleKeys: Double { causal ? (length + 1) / 2 : length }

    /// Between the projections.
    private var attention: Double? {
        switch mixer.options {
        case is SoftmaxOptions: return pairs(visibleKeys)
        case let options as LinearOptions: return linear(options)
        case is MomentumOptions: return linear(features: headDim)
        case let options as TransNormerOptions: return transNormer(options)
        case let options as NGramOptions: return pairs(window(before: options.ngram - 1, after: 0))
        case let options as SparseOptions: return sparse(options)
        case let options as LinformerOptions: return linformer(options)
        case let options as ReformerOptions: return reformer(options)
        case let options as AFTOptions where options.form == .full:
            return 2 * 2 * tokens * visibleKeys * width  // Σ e^w e^k v, Σ e^w e^k
        default: return nil
        }
    }

    /// Queries times keys and weights times values, for every query's `keys` of them.
    private func pairs(_ keys: Double) -> Double { 4 * tokens * keys * width }

    /// How many of the `before` tokens before a query, itself, and the `after` tokens after it there are, on average.
    private func window(before: Int, after: Int) -> Double {
        func reached(_ count: Int) -> Double {
            let reach = Double(min(count, shape.length - 1))
            return reach - reach * (reach + 1) / (2 * length)
        }
        return 1 + reached(before) + reached(after)
    }

    private func linear(features: Double) -> Double {
        let state = 4 * tokens * Double(shape.heads) * features * headDim  // φ(k)ᵀ v, φ(q) S
        guard causal else { return state }
        let size = Double(min(shape.length, Self.chunk))
        return state + tokens * Double(shape.heads) * (size + 1) * (features + headDim)
    }

    private func linear(_ options: LinearOptions) -> Double {
        switch options.featureMap {
        case .eluPlusOne, .relu, .sigmoid, .exponential: return linear(features: headDim)
        default:
            let features = Double(options.features ?? 2 * shape.headDim)
            return linear(features: features) + 4 * tokens * width * features  // random features of q and k
        }
    }

    private func transNormer(_ options: TransNormerOptions) -> Double? {
        switch options.attention {
        case .norm: return linear(features: headDim)
        case .diag:
            let size = Double(min(options.block ?? 64, shape.length))
            return pairs(causal ? (size + 1) / 2 : size)
        case .stack: return nil  // differs from block to block of a model
        }
    }

    private func sparse(_ options: SparseOptions) -> Double? {
        guard options.headsMode == .union, let patterns = options.patterns, let first = patterns.first else {
            return nil
        }
        let pattern = patterns.dropFirst().reduce(first) { $0.union($1) }
        if case .window(let radius, dilation: 1)? = pattern.choices.first?.first, pattern.choices.joined().count == 1 {
            return pairs(window(before: radius, after: causal ? 0 : radius))
        }
        return nil
    }

    private func linformer(_ options: LinformerOptions) -> Double? {
        guard options.projection == .linear, case .all(let rows)? = options.projectedLength else { return nil }
        let kept = Double(min(rows, shape.length))
        return pairs(kept) + 4 * tokens * kept * width  // E k, F v
    }

    private func reformer(_ options: ReformerOptions) -> Double? {
        guard options.layers == nil, options.attention ?? .lsh == .lsh, options.uniquePairs != true else { return nil }
        // Which of a chunk's keys come before a query is the hashes' affair, so all of them count.
        let keys = min(options.chunk * (1 + options.chunksBefore + options.chunksAfter), shape.length)
        return pairs(Double(keys * (options.rounds ?? 2)))
    }

    /// With the projections.
    private var layer: Double? {
        let projection = 2 * tokens * width * width
        switch mixer.options {
        case is SoftmaxOptions, is LinearOptions, is MomentumOptions, is TransNormerOptions, is NGramOptions,
            is SparseOptions:
            return attention.map { $0 + 4 * projection }
        case is ReformerOptions: return attention.map { $0 + 3 * projection }
        case let options as AFTOptions where options.form == .full && options.hiddenDim == nil:
            return attention.map { $0 + 4 * projection }
        default: return nil
        }
    }

    /// With a feed-forward layer of four times the width.
    private var block: Double? { layer.map { $0 + 2 * 2 * tokens * width * 4 * width } }

    /// With the scores of 256 bytes.
    private var languageModel: Double? {
        block.map { Double(shape.layers) * $0 + 2 * tokens * width * 256 }
    }
}
