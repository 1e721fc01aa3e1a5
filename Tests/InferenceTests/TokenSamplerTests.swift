import Foundation
import Inference
import SequenceMixers
import Testing
import Torch

@Suite struct TokenSamplerTests {
    private func sampler(_ temperature: Double = 1, topP: Double = 1, seed: UInt64 = 1) throws -> TokenSampler {
        try TokenSampler(
            SamplingOptions(temperature: temperature, topP: topP), using: RandomGenerator(seed: seed))
    }

    @Test func temperatureZeroTakesTheLikeliest() throws {
        let logits = Tensor.randomNormal([50, 30], using: RandomGenerator(seed: 2))
        let drawn = try sampler(0)(logits)
        #expect(drawn.isIdentical(to: logits.argmax(-1)))
        #expect(drawn.dtype == .int64 && drawn.shape == [50])
    }

    /// A temperature however small is a number to divide by, not a trap.
    @Test(arguments: [1e-3, 1e-30, 1e-300, Double.leastNonzeroMagnitude])
    func temperaturesNearZeroTakeTheLikeliest(_ temperature: Double) throws {
        let logits = Tensor.randomNormal([50, 30], using: RandomGenerator(seed: 3)) * 100
        let drawn = try sampler(temperature)(logits)
        #expect(drawn.isIdentical(to: logits.argmax(-1)))
    }

    /// What remains after the tokens that the likelier ones already make up topP without, by a loop.
    private func nucleus(_ logits: [Double], _ temperature: Double, _ topP: Double) -> [Double] {
        let weights = logits.map { exp($0 / temperature) }
        let probabilities = weights.map { $0 / weights.reduce(0, +) }
        var kept = logits.map { _ in 0.0 }
        var sum = 0.0
        for index in logits.indices.sorted(by: { probabilities[$0] > probabilities[$1] }) where sum < topP {
            kept[index] = probabilities[index]
            sum += probabilities[index]
        }
        return kept.map { $0 / kept.reduce(0, +) }
    }

    @Test(arguments: [(1.0, 1.0), (0.7, 1.0), (2.0, 0.9), (1.0, 0.5), (1.0, 0.01), (0.5, 0.75)])
    func drawsHaveTheProbabilities(_ temperature: Double, _ topP: Double) throws {
        let logits: [Double] = Tensor.randomNormal([7], using: RandomGenerator(seed: 4), dtype: .float64).scalars()
        let expected = nucleus(logits, temperature, topP)
        let draws = 20_000
        let many = Tensor(logits, shape: [1, 7]).expanded(to: [draws, 7])
        let tokens: [Int64] = try sampler(temperature, topP: topP)(many).scalars()
        for (token, probability) in expected.enumerated() {
            let share = Double(tokens.count { $0 == token }) / Double(draws)
            let deviation = (probability * (1 - probability) / Double(draws)).squareRoot()
            #expect((share - probability).magnitude <= 5 * deviation, "token \(token)")
        }
    }

    @Test func theSeedDecides() throws {
        let logits = Tensor.randomNormal([200, 30], using: RandomGenerator(seed: 5))
        let (first, same, other) = try (
            sampler(seed: 1)(logits), sampler(seed: 1)(logits), sampler(seed: 2)(logits)
        )
        #expect(first.isIdentical(to: same))
        #expect(!first.isIdentical(to: other))
    }

    @Test(
        arguments: [
            (-1, 1, "temperature must be 0 or above, not -1.0"),
            (.infinity, 1, "temperature must be 0 or above, not inf"),
            (.nan, 1, "temperature must be 0 or above, not nan"),
            (1, 0, "top-p must be above 0 and at most 1, not 0.0"),
            (1, 1.5, "top-p must be above 0 and at most 1, not 1.5"),
            (1, .nan, "top-p must be above 0 and at most 1, not nan"),
        ] as [(Double, Double, String)]) func refusals(_ temperature: Double, _ topP: Double, _ text: String)
    {
        #expect(throws: ConfigurationError(text)) { try sampler(temperature, topP: topP) }
    }
}
