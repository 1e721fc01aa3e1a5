import SequenceMixers

/// How many operations the matrix products of a measurement need: the numerator of its share of the machine's product rate.
///
/// What a mechanism needs its options say (`ProductCounting`); here are the projections, the block and the model around it.
/// The backward pass counts twice the forward pass, a product for each factor's gradient; scores that it computes a second
/// time do not count. No count: nil.
public struct OperationCount {
    /// Tokens of a chunk as they are counted in the causal linear family.
    public static var chunk: Int { ProductSizes.chunk }

    private let options: (any ProductCounting)?
    private let sizes: ProductSizes
    private let layers: Int

    /// Of the measurement that the task describes.
    public static func of(_ task: BenchmarkTask) -> Double? {
        let shape = task.shape
        if task.work == .product { return 2 * Double(shape.length) * Double(shape.length) * Double(shape.length) }
        guard let mixer = task.mixer else { return nil }
        let isModel = task.work == .languageModel
        let count = OperationCount(
            options: mixer.options as? any ProductCounting,
            sizes: ProductSizes(
                batch: shape.batch, heads: shape.heads, length: shape.length, headDim: shape.headDim,
                isCausal: isModel || task.causal),
            layers: shape.layers)
        let passes: Double = task.pass == .forwardBackward || isModel ? 3 : 1
        switch task.work {
        case .attention: return count.attention.map { $0 * passes }
        case .block: return count.block.map { $0 * passes }
        case .layer: return count.layer.map { $0 * passes }
        case .languageModel: return count.languageModel.map { $0 * passes }
        default: return nil
        }
    }

    /// Between the projections.
    private var attention: Double? { options?.products(sizes) }

    /// With the projections.
    private var layer: Double? {
        guard let attention, let projections = options?.projections else { return nil }
        return attention + Double(projections) * 2 * sizes.tokens * sizes.width * sizes.width
    }

    /// With a feed-forward layer of four times the width.
    private var block: Double? { layer.map { $0 + 2 * 2 * sizes.tokens * sizes.width * 4 * sizes.width } }

    /// With the scores of 256 bytes.
    private var languageModel: Double? {
        block.map { Double(layers) * $0 + 2 * sizes.tokens * sizes.width * 256 }
    }
}
