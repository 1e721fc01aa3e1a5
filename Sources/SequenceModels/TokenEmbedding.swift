import SequenceMixers
import Torch
import TorchNN

/// Token ids to vectors, with the positions that a model puts in at its entrance.
public final class TokenEmbedding: Module {
    public let token: Embedding
    public let learned: LearnedPositionalEmbedding?
    public let axial: AxialPositionalEmbedding?
    let sinusoidal: SinusoidalPositionalEmbedding?
    let concatenates: Bool
    /// The longest sequence it has positions for; nil for any.
    public let maximumLength: Int?

    /// - Throws: `ConfigurationError` when the axes of `axial` positions do not reach so far.
    public init(
        _ vocabulary: Int, _ configuration: ModelConfiguration, maximumLength: Int, using generator: RandomGenerator
    ) throws {
        let dim = configuration.modelDim
        concatenates = configuration.position == .sinusoidalConcatenated
        token = Embedding(vocabulary, concatenates ? dim / 2 : dim, using: generator)
        // Beside sines and cosines, or axial positions, a token must be as loud as they are; alone it may be small, so that
        // what the blocks add counts from the first step on.
        let isLoud = [.sinusoidal, .sinusoidalConcatenated, .axial].contains(configuration.position)
        Initializer.normal(deviation: isLoud ? 1 : 0.02).apply(to: token.weight, using: generator)
        learned =
            configuration.position == .learned
            ? LearnedPositionalEmbedding(maximumLength: maximumLength, dim: dim, using: generator) : nil
        if configuration.position == .axial {
            let axes = try configuration.resolvedAxes(maximumLength: maximumLength)
            axial = AxialPositionalEmbedding(shape: axes.shape, dims: axes.dims, using: generator)
        } else {
            axial = nil
        }
        sinusoidal =
            switch configuration.position {
            case .sinusoidal: SinusoidalPositionalEmbedding(dim)
            case .sinusoidalConcatenated: SinusoidalPositionalEmbedding(dim / 2)
            case .none, .learned, .rotary, .axial: nil
            }
        self.maximumLength = learned == nil && axial == nil ? nil : maximumLength
        super.init()
    }

    /// int64 ids `[batch, length]`, the first at position `offset` → `[batch, length, modelDim]`.
    public func callAsFunction(_ ids: Tensor, offset: Int = 0) -> Tensor {
        let x = token(ids)
        let length = ids.size(1)
        if let learned { return x + learned(length: length, offset: offset) }
        if let axial { return x + axial(length: length, offset: offset) }
        guard let sinusoidal else { return x }
        let positions = sinusoidal(length: length, offset: offset).to(x.dtype).to(x.device)
        if !concatenates { return x + positions }
        return concatenate([x, positions.unsqueezed(0).expanded(to: [ids.size(0), -1, -1])], dim: 2)
    }
}
