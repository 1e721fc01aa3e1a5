import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

/// Random features that are drawn anew while they are trained.
@Suite struct RandomFeatureTests {
    private struct Layer {
        let attention: Attention<LinearCore>
        let generator = RandomGenerator(seed: 5)
        let x = Tensor.randomNormal([2, 7, 8], using: RandomGenerator(seed: 6))

        init(every interval: Int?) throws {
            var options = LinearOptions()
            options.featureMap = .favor
            options.redrawEvery = interval
            let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: generator)
            attention = try #require(MixerConfiguration("linear", options).build(context) as? Attention<LinearCore>)
        }

        var map: FeatureMap { attention.core.featureMap }

        /// Ω, and what it gives, of so many passes.
        func passes(_ count: Int) throws -> [(omega: Tensor, out: Tensor)] {
            try (0..<count).map { _ in
                let out = attention(x)
                return (try #require(map.omega).value, out)
            }
        }
    }

    @Test func omegaChangesAfterEveryInterval() throws {
        let layer = try Layer(every: 3)
        let omegas = try layer.passes(8).map(\.omega)
        for index in 1..<8 {
            #expect(omegas[index].isIdentical(to: omegas[index - 1]) == ![3, 6].contains(index), "pass \(index)")
        }
        #expect(omegas.allSatisfy { $0.shape == omegas[0].shape })
    }

    @Test func evaluationDrawsAndCountsNothing() throws {
        let layer = try Layer(every: 2)
        layer.attention.evaluate()
        let state = layer.generator.state
        let omegas = try layer.passes(5).map(\.omega)
        #expect(omegas.allSatisfy { $0.isIdentical(to: omegas[0]) })
        #expect(layer.map.passes?.value.integerItem() == 0)
        #expect(layer.generator.state.isIdentical(to: state))
    }

    @Test func withoutTheOptionThereIsNothingToSave() throws {
        let layer = try Layer(every: nil)
        #expect(layer.map.passes == nil)
        let omegas = try layer.passes(4).map(\.omega)
        #expect(omegas.allSatisfy { $0.isIdentical(to: omegas[0]) })
    }

    /// Weights, buffers and the generator's state are all that a run saves.
    @Test func aResumedRunDrawsWhatTheUninterruptedOneDoes() throws {
        let whole = try Layer(every: 3)
        _ = try whole.passes(4)
        let saved = whole.attention.stateDictionary().mapValues { $0.cloned() }
        let state = whole.generator.state
        let expected = try whole.passes(6)

        let resumed = try Layer(every: 3)
        _ = try resumed.attention.load(saved)
        resumed.generator.state = state
        for (found, expected) in zip(try resumed.passes(6), expected) {
            #expect(found.omega.isIdentical(to: expected.omega))
            #expect(found.out.isIdentical(to: expected.out))
        }
    }

    /// A pass that is computed a second time sees the features that it saw the first time.
    @Test func aRepeatedPassIsTheSame() throws {
        let layer = try Layer(every: 1)
        _ = try layer.passes(2)
        let replay = Replay(layer.generator)
        let first = replay { layer.attention(layer.x) }
        let later = try layer.passes(1)[0]
        let again = replay { layer.attention(layer.x) }
        #expect(again.isIdentical(to: first))
        #expect(!later.out.isIdentical(to: first))
        #expect(try #require(layer.map.omega).value.isIdentical(to: later.omega))
    }

    /// The kernel is softmax's on average over draws: more of them come closer.
    @Test func redrawnFeaturesAverageToSoftmax() throws {
        let generator = RandomGenerator(seed: 8)
        let q = Tensor.randomNormal([1, 1, 6, 4], using: generator) * 0.4
        let k = Tensor.randomNormal([1, 1, 6, 4], using: generator) * 0.4
        let map = FeatureMap(
            .favor, omega: FeatureMap.drawOmega(headDim: 4, columns: 8, orthogonal: true, using: generator),
            redrawing: FeatureRedrawing(every: 1, orthogonal: true, using: generator))
        let core = LinearCore(isCausal: false, featureMap: map)
        let ones = Tensor.ones([1, 1, 6, 1])
        let exact = (matmul(q, k.transposed()) * 0.5).exp()
        var sum = Tensor.zeros([1, 1, 6, 6])
        for _ in 0..<400 {
            _ = core(q, k, ones, paddingMask: nil)
            sum += matmul(map(q), map(k).transposed())
        }
        #expect((sum / 400).relativeError(to: exact) < 0.1)
    }
}
