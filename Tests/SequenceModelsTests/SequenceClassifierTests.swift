import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct SequenceClassifierTests {
    static let mixers: [@Sendable () throws -> MixerConfiguration] = [
        { try MixerConfiguration("softmax") }, { try MixerConfiguration("linear") },
        { try MixerConfiguration("momentum") },
        {
            var options = MomentumOptions(momentum: 0.6, stepSize: 0.9)
            options.normalized = false
            return try MixerConfiguration("momentum", options)
        },
    ]

    @Test(arguments: mixers.indices, Pooling.allCases) func paddingChangesNothing(_ mixer: Int, _ pooling: Pooling)
        throws
    {
        for (index, residual) in residualKinds.enumerated() {
            var configuration = smallConfiguration(try Self.mixers[mixer]())
            (configuration.pooling, configuration.residual) = (pooling, residual)
            configuration.norm = index == 1 ? .post : .pre
            let model = try SequenceClassifier(
                configuration, vocabulary: 11, classes: 3, maximumLength: 16, using: RandomGenerator(seed: 6))
            model.to(.float64)
            let ids = randomIds([3, 16], seed: 7)
            let lengths = [9, 1, 14]
            let mask = Tensor.arange(0..<16).unsqueezed(0) .< Tensor(lengths).unsqueezed(1)
            let together = model(ids, paddingMask: mask)
            #expect(together.shape == [3, 3])
            for (row, length) in lengths.enumerated() {
                let sequence = ids.sliced(0, row..<row + 1)
                let alone = model(sequence.sliced(1, 0..<length))
                #expect(together.sliced(0, row..<row + 1).deviation(from: alone) < 1e-9, "\(length), \(residual.kind)")
                // The padding's token makes no difference, also in a batch of one.
                let other = concatenate(
                    [sequence.sliced(1, 0..<length), randomIds([1, 16 - length], seed: 8)], dim: 1)
                let one = model(other, paddingMask: mask.sliced(0, row..<row + 1))
                #expect(one.deviation(from: alone) < 1e-9, "\(length), \(residual.kind)")
            }
        }
    }

    @Test func poolingsAreWhatTheySay() throws {
        for pooling in Pooling.allCases {
            var configuration = smallConfiguration(try MixerConfiguration("softmax"))
            configuration.pooling = pooling
            let model = try SequenceClassifier(
                configuration, vocabulary: 11, classes: 3, maximumLength: 16, using: RandomGenerator(seed: 6))
            let ids = randomIds([2, 5], seed: 7)
            let y = model.encoder(model.embedding(ids))
            let pooled = pooling == .mean ? y.sum(1) / 5 : y.selected(1, 0)
            #expect(model(ids).deviation(from: model.head(pooled)) < 1e-6)
        }
    }

    @Test func tooFewClassesAreRefused() throws {
        let configuration = smallConfiguration(try MixerConfiguration("softmax"))
        #expect(throws: ConfigurationError("a classifier needs at least 2 classes, not 1")) {
            try SequenceClassifier(
                configuration, vocabulary: 11, classes: 1, maximumLength: 16, using: RandomGenerator(seed: 6))
        }
    }

    @Test func causalFormsAreRefused() throws {
        let options = MomentumOptions(momentum: 0.9, stepSize: 0.5, weights: .heavyBall)
        let configuration = smallConfiguration(try MixerConfiguration("momentum", options))
        let text = "momentum: weights 'heavy-ball' is causal; a bidirectional model needs 'final'"
        #expect(throws: ConfigurationError(text)) {
            try SequenceClassifier(
                configuration, vocabulary: 11, classes: 2, maximumLength: 16, using: RandomGenerator(seed: 6))
        }
    }
}
