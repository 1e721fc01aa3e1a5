import Torch

/// Sets each element to zero with the given probability and divides the others by 1 - probability, in training only.
///
/// In evaluation, and with probability 0, it returns its input and draws no random numbers (Srivastava et al., 2014).
public final class Dropout: Module {
    public let probability: Double
    private let generator: RandomGenerator

    public init(_ probability: Double, using generator: RandomGenerator) {
        torchPrecondition(
            (0..<1).contains(probability), in: "Dropout",
            "expected a probability of at least 0 and below 1, got \(probability)")
        self.probability = probability
        self.generator = generator
        super.init()
    }

    /// Any shape; x itself in evaluation.
    public func callAsFunction(_ x: Tensor) -> Tensor {
        guard isTraining && probability > 0 else { return x }
        let kept = 1 - probability
        let factor = Tensor.bernoulli(like: x.detached(), probability: kept, using: generator)
        factor.multiplyInPlace(by: 1 / kept)
        return x * factor
    }
}
