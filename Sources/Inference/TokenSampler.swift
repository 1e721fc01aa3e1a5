import SequenceMixers
import Torch

/// How the next token is chosen from the logits.
public struct SamplingOptions: Sendable, Codable, Equatable {
    /// Logits are divided by it; 0 always takes the likeliest token.
    public var temperature: Double
    /// Only the likeliest tokens that together have this probability are drawn from; 1 for all.
    public var topP: Double

    public init(temperature: Double = 1, topP: Double = 1) {
        self.temperature = temperature
        self.topP = topP
    }

    /// - Throws: `ConfigurationError` naming the value that is out of range.
    public func validate() throws {
        guard temperature >= 0, temperature.isFinite else {
            throw ConfigurationError("temperature must be 0 or above, not \(temperature)")
        }
        guard topP > 0, topP <= 1 else { throw ConfigurationError("top-p must be above 0 and at most 1, not \(topP)") }
    }
}

/// Draws tokens from logits, from a generator of its own.
public struct TokenSampler {
    public let options: SamplingOptions
    private let generator: RandomGenerator

    public init(_ options: SamplingOptions, using generator: RandomGenerator) throws {
        try options.validate()
        self.options = options
        self.generator = generator
    }

    /// Logits `[batch, vocabulary]` → int64 ids `[batch]`.
    public func callAsFunction(_ logits: Tensor) -> Tensor {
        if options.temperature == 0 { return logits.argmax(-1) }
        // Below the largest, and in float64: a temperature near 0 would make infinities of the logits themselves.
        let wide = logits.to(.float64)
        var probabilities = ((wide - wide.maximum(-1, keepDim: true)) / options.temperature).softmax()
        if options.topP < 1 { probabilities = nucleus(probabilities) }
        return Tensor.multinomial(probabilities, using: generator).squeezed(1)
    }

    /// The logits of one sequence → the token's id.
    public func callAsFunction(_ logits: [Float]) -> Int {
        if options.temperature == 0 { return logits.indices.max { logits[$0] < logits[$1] } ?? 0 }
        return self(Tensor(logits, shape: [1, logits.count])).integerItem()
    }

    /// Zeros the tokens that the likelier ones already make up `topP` without. The likeliest always stays.
    private func nucleus(_ probabilities: Tensor) -> Tensor {
        let (sorted, order) = probabilities.sorted(-1, descending: true)
        let before = sorted.cumulativeSum(-1) - sorted
        let kept = sorted.masked(where: before .>= options.topP, with: 0)
        return Tensor.zeros(like: probabilities).scattered(1, order, kept)
    }
}
