import SequenceMixers
import Torch
import TorchNN

/// One of several classes for a whole sequence, read in both directions.
public final class SequenceClassifier: Module {
    public let embedding: TokenEmbedding
    public let encoder: SequenceEncoder
    public let head: Linear
    public let pooling: Pooling
    public let classes: Int

    /// - Parameter maximumLength: the longest sequence that learned positions are made for.
    /// - Throws: `ConfigurationError` when the configuration cannot be built, or not as a bidirectional model.
    public init(
        _ configuration: ModelConfiguration, vocabulary: Int, classes: Int, maximumLength: Int,
        using generator: RandomGenerator
    ) throws {
        guard classes > 1 else { throw ConfigurationError("a classifier needs at least 2 classes, not \(classes)") }
        encoder = try SequenceEncoder(configuration, isCausal: false, maximumLength: maximumLength, using: generator)
        embedding = try TokenEmbedding(vocabulary, configuration, maximumLength: maximumLength, using: generator)
        head = Linear(configuration.outputDim, classes, using: generator)
        pooling = configuration.pooling
        self.classes = classes
        super.init()
    }

    /// int64 ids `[batch, length]`, mask `[batch, length]` (true: a real token) → logits `[batch, classes]`.
    public func callAsFunction(_ ids: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        let y = encoder(embedding(ids), paddingMask: paddingMask)
        return head(pooled(y, paddingMask))
    }

    private func pooled(_ y: Tensor, _ paddingMask: Tensor?) -> Tensor {
        switch pooling {
        case .first: return y.selected(1, 0)
        case .mean:
            guard let paddingMask else { return y.mean(1) }
            let weights = paddingMask.to(y.dtype).unsqueezed(2)  // [batch, length, 1]
            let real = y.masked(where: (.!paddingMask).unsqueezed(2), with: 0)
            return real.sum(1) / weights.sum(1).clamped(min: 1)
        }
    }
}
