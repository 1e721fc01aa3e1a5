import SequenceMixers
import Torch
import TorchNN

/// Two linear layers with an activation between them, the same at every position; or gated, with a third.
///
///     y = down(activation(up(x)))          gated: y = down(activation(gate(x)) · up(x))
public final class FeedForward: Module {
    public let gate: Linear?
    public let up: Linear
    public let down: Linear
    public let dropout: Dropout
    let activation: Activation

    public init(
        _ modelDim: Int, _ hiddenDim: Int, activation: Activation, gated: Bool = false, dropout: Double,
        using generator: RandomGenerator
    ) {
        gate = gated ? Linear(modelDim, hiddenDim, using: generator) : nil
        up = Linear(modelDim, hiddenDim, using: generator)
        down = Linear(hiddenDim, modelDim, using: generator)
        self.dropout = Dropout(dropout, using: generator)
        self.activation = activation
        super.init()
    }

    /// x `[…, modelDim]` → the same shape; `residual` is added to what the layer gives.
    public func callAsFunction(_ x: Tensor, addedTo residual: Tensor? = nil) -> Tensor {
        let dropsOut = dropout.isTraining && dropout.probability > 0
        if !dropsOut, let nonlinearity = activation.nonlinearity {
            guard let gate else {
                return Torch.feedForward(x, up: up.values, nonlinearity, down: down.values, residual: residual)
            }
            return gatedFeedForward(
                x, gate: gate.values, nonlinearity, up: up.values, down: down.values, residual: residual)
        }
        let hidden = gate.map { activation($0(x)) * up(x) } ?? activation(up(x))
        let y = dropout(down(dropout(hidden)))
        return residual.map { $0 + y } ?? y
    }
}

/// A mixer and a feed-forward layer with their norms and connections.
///
///     post   h = norm₁(x ⊕ mixer(x)),  y = norm₂(h + feedForward(h))
///     pre    h = x ⊕ mixer(norm₁(x)),  y = h + feedForward(norm₂(h))
///
/// where ⊕ is the configured residual connection. A mixer that is a whole block gives h by itself: norm₁ and ⊕ are then
/// left out. Without a feed-forward layer y is h.
public final class TransformerBlock: Module {
    public let mixer: any SequenceMixer
    public let mixerNorm: (any Normalizing)?
    public let feedForward: FeedForward?
    public let feedForwardNorm: (any Normalizing)?
    public let dropout: Dropout
    let placement: NormPlacement
    private let feedForwardSlice: Int?
    private let generator: RandomGenerator

    public init(_ mixer: any SequenceMixer, _ configuration: ModelConfiguration, using generator: RandomGenerator) {
        self.mixer = mixer
        placement = configuration.norm
        feedForwardSlice = configuration.feedForwardSlice
        self.generator = generator
        mixerNorm = mixer.isWholeBlock ? nil : configuration.makeNorm()
        let hiddenDim = configuration.resolvedFeedForwardDim
        feedForwardNorm = hiddenDim > 0 ? configuration.makeNorm() : nil
        feedForward =
            hiddenDim > 0
            ? FeedForward(
                configuration.modelDim, hiddenDim, activation: configuration.activation,
                gated: configuration.gatedFeedForward, dropout: configuration.dropout, using: generator) : nil
        dropout = Dropout(configuration.dropout, using: generator)
        super.init()
    }

    /// x `[…, modelDim]`; `mix` is the mixer on the whole sequence, on a piece of it, or on one token.
    func callAsFunction(_ x: Tensor, _ stream: inout ResidualStream, _ mix: (Tensor) -> Tensor) -> Tensor {
        switch placement {
        case .post:
            let h = mixerNorm.map { joined(x, dropout(mix(x)), &stream, $0).normalized } ?? mix(x)
            guard let feedForward, let feedForwardNorm else { return h }
            return feedForwardNorm(fed(h, addedTo: h, feedForward))
        case .pre:
            let mixed = mixerNorm.map { dropout(mix($0(x))) } ?? mix(x)
            guard let feedForward, let feedForwardNorm else {
                return mixerNorm == nil ? mixed : stream.join(x, mixed)
            }
            if mixerNorm == nil { return fed(feedForwardNorm(mixed), addedTo: mixed, feedForward) }
            let (h, normalized) = joined(x, mixed, &stream, feedForwardNorm)
            return fed(normalized, addedTo: h, feedForward)
        }
    }

    /// x ⊕ y and its norm.
    private func joined(
        _ x: Tensor, _ y: Tensor, _ stream: inout ResidualStream, _ norm: any Normalizing
    ) -> (sum: Tensor, normalized: Tensor) {
        if stream.configuration.kind == .plain { return norm.added(x, y) }
        let h = stream.join(x, y)
        return (h, norm(h))
    }

    private func fed(_ x: Tensor, addedTo h: Tensor, _ feedForward: FeedForward) -> Tensor {
        guard let feedForwardSlice else { return feedForward(x, addedTo: h) }
        return h + feedForward(x, slice: feedForwardSlice, using: generator)
    }
}
