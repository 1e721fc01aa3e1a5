// How a mixer's output joins the stream: added, or through a momentum that runs from layer to layer.
//
// Nguyen et al. 2022, "Momentum Transformer", arXiv 2208.00579. Per token, with velocity u_0 = 0 and a_l the mixer's output:
//   u_l = β̃ u_{l-1} - a_l,   h_l = x_l - γ̃ u_l
// constant: β̃ is given. adaptive: β̃_l = clamp((1 - √(|a_l - a_{l-1}| / |u_{l-1}|))², 0, 1 - δ), norms over the channels of
// one token. β̃ = 0, γ̃ = 1 is the usual residual connection. Reversible connections are in ReversibleEncoder.swift.
import SequenceMixers
import Torch

/// The kind of connection around each mixer; as `residual:` in a recipe. Feed-forward layers keep the plain one,
/// and mixers that are whole blocks have one of their own: any kind but plain is refused with them.
public struct ResidualConfiguration: Codable, Sendable {
    public enum Kind: String, NamedChoice {
        case plain
        case constant
        case adaptive
        /// Two streams, of which the backward pass computes what went into a block from what came out: activations are
        /// kept for one block, whatever the depth. The encoder's output is then twice as wide.
        case reversible
    }

    public var kind: Kind = .plain
    /// β̃ of `constant`.
    public var momentum: Double?
    /// γ̃ of `constant` and `adaptive`.
    public var stepSize: Double?
    /// δ of `adaptive`: the momentum stays below 1 - δ.
    public var delta: Double?

    public init(_ kind: Kind = .plain, momentum: Double? = nil, stepSize: Double? = nil, delta: Double? = nil) {
        self.kind = kind
        self.momentum = momentum
        self.stepSize = stepSize
        self.delta = delta
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        kind = try container.decodeIfPresent(Kind.self, forKey: .kind) ?? kind
        momentum = try container.decodeIfPresent(Double.self, forKey: .momentum)
        stepSize = try container.decodeIfPresent(Double.self, forKey: .stepSize)
        delta = try container.decodeIfPresent(Double.self, forKey: .delta)
    }

    static let standardMomentum = 0.9
    static let standardStepSize = 0.9
    static let standardDelta = 1e-4

    /// - Throws: `ConfigurationError` for a value out of range, or one that the kind would ignore.
    public func validate() throws {
        if kind != .constant, let momentum {
            throw ConfigurationError("residual: momentum \(momentum) belongs to kind constant, not \(kind.rawValue)")
        }
        if kind == .plain || kind == .reversible, let stepSize {
            throw ConfigurationError(
                "residual: stepSize \(stepSize) belongs to kinds constant and adaptive, not \(kind.rawValue)")
        }
        if kind != .adaptive, let delta {
            throw ConfigurationError("residual: delta \(delta) belongs to kind adaptive, not \(kind.rawValue)")
        }
        if let momentum, !(0..<1).contains(momentum) {
            throw ConfigurationError("residual: momentum must be at least 0 and below 1, not \(momentum)")
        }
        if let stepSize, !(stepSize > 0 && stepSize.isFinite) {
            throw ConfigurationError("residual: stepSize must be above 0, not \(stepSize)")
        }
        if let delta, !(delta > 0 && delta < 1) {
            throw ConfigurationError("residual: delta must be between 0 and 1, not \(delta)")
        }
    }
}

/// One pass through the layers: carries the velocity from one mixer to the next. Nothing of it crosses tokens.
struct ResidualStream {
    let configuration: ResidualConfiguration
    private var velocity: Tensor?
    private var previous: Tensor?

    init(_ configuration: ResidualConfiguration) { self.configuration = configuration }

    /// Joins the mixer's output `a` to `x`, both `[…, modelDim]`.
    mutating func join(_ x: Tensor, _ a: Tensor) -> Tensor {
        if configuration.kind == .plain { return x + a }
        let stepSize = configuration.stepSize ?? ResidualConfiguration.standardStepSize
        let u: Tensor
        if let velocity {
            u = momentum(a, velocity) - a
        } else {
            u = -a
        }
        velocity = u
        previous = a
        return x - u * stepSize
    }

    /// β̃ u_{l-1}
    private func momentum(_ a: Tensor, _ velocity: Tensor) -> Tensor {
        guard configuration.kind == .adaptive, let previous else {
            return velocity * (configuration.momentum ?? ResidualConfiguration.standardMomentum)
        }
        let speed = velocity.safeNorm(-1)
        let moves = speed .> 0
        let ratio = (a - previous).safeNorm(-1) / select(moves, speed, Tensor.ones(like: speed))
        let root = select(moves, ratio, Tensor.ones(like: ratio)).safeRoot()  // a stream that stands still: momentum 0
        let delta = configuration.delta ?? ResidualConfiguration.standardDelta
        return (1 - root).square().clamped(min: 0, max: 1 - delta) * velocity
    }
}
