import SequenceMixers
import Torch
import TorchNN

/// Two linear layers with an activation between them, the same at every position.
public final class FeedForward: Module {
    public let up: Linear
    public let down: Linear
    public let dropout: Dropout
    private let activation: Activation

    public init(
        _ modelDim: Int, _ hiddenDim: Int, activation: Activation, dropout: Double, using generator: RandomGenerator
    ) {
        up = Linear(modelDim, hiddenDim, using: generator)
        down = Linear(hiddenDim, modelDim, using: generator)
        self.dropout = Dropout(dropout, using: generator)
        self.activation = activation
        super.init()
    }

    public func callAsFunction(_ x: Tensor) -> Tensor { dropout(down(dropout(activation(up(x))))) }
}

/// A mixer and a feed-forward layer with their norms and connections.
///
///     post   h = norm₁(x ⊕ mixer(x)),  y = norm₂(h + feedForward(h))
///     pre    h = x ⊕ mixer(norm₁(x)),  y = h + feedForward(norm₂(h))
///
/// where ⊕ is the configured residual connection.
public final class TransformerBlock: Module {
    public let mixer: any SequenceMixer
    public let mixerNorm: LayerNorm
    public let feedForward: FeedForward
    public let feedForwardNorm: LayerNorm
    public let dropout: Dropout
    private let placement: NormPlacement

    public init(_ mixer: any SequenceMixer, _ configuration: ModelConfiguration, using generator: RandomGenerator) {
        self.mixer = mixer
        placement = configuration.norm
        mixerNorm = LayerNorm(configuration.modelDim, epsilon: configuration.normEpsilon)
        feedForwardNorm = LayerNorm(configuration.modelDim, epsilon: configuration.normEpsilon)
        feedForward = FeedForward(
            configuration.modelDim, configuration.resolvedFeedForwardDim, activation: configuration.activation,
            dropout: configuration.dropout, using: generator)
        dropout = Dropout(configuration.dropout, using: generator)
        super.init()
    }

    /// x `[…, modelDim]`; `mix` is the mixer on the whole sequence, on a piece of it, or on one token.
    func callAsFunction(_ x: Tensor, _ stream: inout ResidualStream, _ mix: (Tensor) -> Tensor) -> Tensor {
        switch placement {
        case .post:
            let h = mixerNorm(stream.join(x, dropout(mix(x))))
            return feedForwardNorm(h + feedForward(h))
        case .pre:
            let h = stream.join(x, dropout(mix(mixerNorm(x))))
            return h + feedForward(feedForwardNorm(h))
        }
    }
}
