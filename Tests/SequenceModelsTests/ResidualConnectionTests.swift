import Foundation
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

/// A mixer that multiplies each token by a matrix: all that a connection needs to be seen.
private final class MatrixMixer: Module, SequenceMixer {
    let weight: Parameter
    let isCausal = true

    init(_ weight: Tensor) {
        self.weight = Parameter(weight)
        super.init()
    }

    func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor { matmul(x, weight.value) }
}

/// The connections against the paper's recurrence over the layers, in plain numbers, one token at a time.
@Suite struct ResidualConnectionTests {
    /// Layers that do nothing but mix and connect: no norm's weights, no feed-forward layer.
    private func encoder(_ residual: ResidualConfiguration, _ weights: [Tensor]) throws -> SequenceEncoder {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        (configuration.modelDim, configuration.feedForwardDim) = (weights[0].size(0), 0)
        (configuration.residual, configuration.finalNorm, configuration.norm) = (residual, false, .pre)
        let encoder = SequenceEncoder(
            configuration, mixers: weights.map { MatrixMixer($0) }, using: RandomGenerator(seed: 1))
        encoder.to(.float64)
        return encoder
    }

    private func normalized(_ x: [Double]) -> [Double] {
        let mean = x.reduce(0, +) / Double(x.count)
        let variance = x.map { ($0 - mean) * ($0 - mean) }.reduce(0, +) / Double(x.count)
        return x.map { ($0 - mean) / (variance + 1e-5).squareRoot() }
    }

    private func norm(_ x: [Double]) -> Double { x.map { $0 * $0 }.reduce(0, +).squareRoot() }

    private func literal(_ x: [Double], _ weights: [[[Double]]], _ residual: ResidualConfiguration) -> [Double] {
        var x = x
        var velocity = x.map { _ in 0.0 }
        var previous: [Double]?
        for weight in weights {
            let input = normalized(x)
            let a = input.indices.map { column in zip(input, weight).map { $0 * $1[column] }.reduce(0, +) }
            var beta = residual.momentum ?? 0.9
            var stepSize = residual.stepSize ?? 0.9
            switch residual.kind {
            case .plain: (beta, stepSize) = (0, 1)
            case .constant, .reversible: break
            case .adaptive:
                beta = 0
                if let previous, norm(velocity) > 0 {
                    let root = (norm(zip(a, previous).map(-)) / norm(velocity)).squareRoot()
                    beta = min(max((1 - root) * (1 - root), 0), 1 - (residual.delta ?? 1e-4))
                }
            }
            velocity = zip(velocity, a).map { beta * $0 - $1 }
            previous = a
            x = zip(x, velocity).map { $0 - stepSize * $1 }
        }
        return x
    }

    @Test(arguments: [
        ResidualConfiguration(), ResidualConfiguration(.constant),
        ResidualConfiguration(.constant, momentum: 0.3, stepSize: 1.2), ResidualConfiguration(.constant, momentum: 0),
        ResidualConfiguration(.adaptive), ResidualConfiguration(.adaptive, stepSize: 0.4, delta: 0.5),
    ]) func connectionsAreTheRecurrence(_ residual: ResidualConfiguration) throws {
        let generator = RandomGenerator(seed: 2)
        let weights = (0..<6).map { _ in Tensor.randomNormal([4, 4], using: generator, dtype: .float64) }
        let encoder = try encoder(residual, weights)
        let x = Tensor.randomNormal([2, 5, 4], using: generator, dtype: .float64)
        let rows = weights.map { weight in (0..<4).map { weight.selected(0, $0).scalars(as: Double.self) } }
        let found = encoder(x)
        for batch in 0..<2 {
            for token in 0..<5 {
                let expected = literal(x.selected(0, batch).selected(0, token).scalars(), rows, residual)
                let values: [Double] = found.selected(0, batch).selected(0, token).scalars()
                #expect(norm(zip(values, expected).map(-)) <= 1e-10 * norm(expected), "token \(batch), \(token)")
            }
        }
    }

    @Test func aStreamThatStandsStillHasGradients() throws {
        // The same output in every layer, and none at all: both distances of the adaptive momentum are 0.
        for weight in [Tensor.zeros([4, 4], dtype: .float64), .eye(4, dtype: .float64)] {
            let encoder = try encoder(ResidualConfiguration(.adaptive), [weight, weight, weight])
            let x = Tensor.randomNormal([1, 3, 4], using: RandomGenerator(seed: 3), dtype: .float64).requiringGrad()
            let y = encoder(x)
            let gradient = gradients(of: [y.square().sum()], withRespectTo: [x])[0]
            let sum = try #require(gradient).sum().item()
            #expect(sum.isFinite && y.sum().item().isFinite)
        }
    }

    /// Mixers that connect their output to their input themselves leave nothing for a momentum to run through.
    @Test(arguments: ["gmlp", "mega", "r-transformer", "sparse-mlp", "samformer"]) func wholeBlocksHaveTheirOwn(
        _ name: String
    ) throws {
        var configuration = smallConfiguration(try MixerConfiguration(name))
        func build() throws {
            let isCausal = try MixerCatalogue.entry(named: name).causal
            _ = try SequenceEncoder(
                configuration, isCausal: isCausal, maximumLength: 12, using: RandomGenerator(seed: 1))
        }
        try build()
        for kind in [ResidualConfiguration.Kind.constant, .adaptive, .reversible] {
            configuration.residual = ResidualConfiguration(kind)
            let error = #expect(throws: ConfigurationError.self) { try build() }
            #expect(
                error?.description
                    == "residual: kind \(kind.rawValue) needs a mixer without a connection of its own, which '\(name)' has"
            )
        }
    }

    @Test func gradientsGoThroughTheMomentum() throws {
        let generator = RandomGenerator(seed: 5)
        for residual in residualKinds {
            let weights = (0..<3).map { _ in Tensor.randomNormal([4, 4], using: generator, dtype: .float64) }
            let encoder = try encoder(residual, weights)
            let x = Tensor.randomNormal([1, 2, 4], using: generator, dtype: .float64)
            let deviation = gradientCheck([x]) { encoder($0[0]) }
            #expect(deviation < 1e-6, "\(residual.kind)")
        }
    }
}
