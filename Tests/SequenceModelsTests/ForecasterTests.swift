import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct ForecasterTests {
    /// SAMformer's model, or one with norms, several heads and feed-forward layers.
    private func configuration(_ mixer: String, lookback: Int = 12) throws -> ModelConfiguration {
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(mixer))
        configuration.layers = mixer == "samformer" ? 1 : 2
        configuration.modelDim = lookback
        configuration.heads = mixer == "samformer" ? 1 : 3
        configuration.feedForwardDim = mixer == "samformer" ? 0 : 10
        configuration.finalNorm = mixer != "samformer"
        configuration.position = .none
        return configuration
    }

    private func forecaster(_ mixer: String, _ change: (inout ModelConfiguration) -> Void = { _ in }) throws
        -> Forecaster
    {
        var configuration = try configuration(mixer)
        change(&configuration)
        let model = try Forecaster(
            configuration, ForecastShape(channels: 4, lookback: 12, horizon: 5), using: RandomGenerator(seed: 3))
        model.to(.float64)
        return model
    }

    private func normal(_ shape: [Int], seed: UInt64 = 1) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    /// A series in other units is foretold in those units.
    @Test(arguments: ["samformer", "linear"]) func unitsDoNotMatter(_ mixer: String) throws {
        let model = try forecaster(mixer)
        let x = normal([3, 4, 12])
        let (factor, offset) = (Tensor([2.0, 10, 0.5, 100]).reshaped(4, 1), Tensor([5.0, -300, 0, 1]).reshaped(4, 1))
        let y = model(x)
        #expect(y.shape == [3, 4, 5])
        // ε is in the deviation, so not quite.
        #expect(model(x * factor + offset).deviation(from: y * factor + offset) < 1e-4)
        let bare = try forecaster(mixer) { $0.instanceNorm = false }
        #expect(bare.norm == nil && bare(x * 2).deviation(from: bare(x) * 2) > 1e-3)
    }

    @Test func statisticsTakeNoGradient() throws {
        let norm = ReversibleInstanceNorm(4)
        norm.to(.float64)
        norm.weight.value = Tensor([1.0, 2, 0.5, -1])
        let x = normal([2, 4, 6]).requiringGrad()
        let (z, _) = norm.normalized(x)
        let gradient = try #require(gradients(of: [z.sum()], withRespectTo: [x])[0])
        let deviation = (x.detached().variance(2, correction: 0, keepDim: true) + 1e-5).sqrt()
        let expected = (norm.weight.value.unsqueezed(1) / deviation).expanded(to: [2, 4, 6])
        #expect(gradient.deviation(from: expected) < 1e-12)
    }

    @Test func restoringUndoesTheNorm() {
        let norm = ReversibleInstanceNorm(4)
        norm.to(.float64)
        norm.weight.value = normal([4], seed: 5)
        norm.bias.value = normal([4], seed: 6)
        let x = normal([3, 4, 7]) * 30 + 7
        let (z, scale) = norm.normalized(x)
        #expect(norm.restored(z, scale).deviation(from: x) < 1e-12)
        // A series that stands still has no deviation to divide by.
        let (still, constant) = norm.normalized(.full(like: x, 3.5))
        #expect(still.deviation(from: norm.bias.value.reshaped(4, 1).expanded(to: [3, 4, 7])) < 1e-12)
        #expect(norm.restored(still, constant).deviation(from: .full(like: x, 3.5)) < 1e-12)
    }

    /// 82,590 weights: the paper's form with 7 channels, 512 hours and 96.
    @Test func sizesAreThePapers() throws {
        let model = try Forecaster(
            configuration("samformer", lookback: 512), ForecastShape(channels: 7, lookback: 512, horizon: 96),
            using: RandomGenerator(seed: 3))
        #expect(model.parameterCount() == 82_590)
    }

    @Test func whatIsNoForecasterIsRefused() throws {
        let generator = RandomGenerator(seed: 1)
        func refusal(_ shape: ForecastShape, _ change: (inout ModelConfiguration) -> Void = { _ in }) -> String {
            (#expect(throws: ConfigurationError.self) {
                var configuration = try configuration("samformer")
                change(&configuration)
                _ = try Forecaster(configuration, shape, using: generator)
            })?.description ?? ""
        }
        let shape = ForecastShape(channels: 4, lookback: 12, horizon: 5)
        #expect(
            refusal(ForecastShape(channels: 4, lookback: 13, horizon: 5))
                == "a forecaster's token is a channel's history: modelDim must be the lookback 13, not 12")
        #expect(
            refusal(shape) { $0.position = .learned }
                == "a forecaster's tokens are channels, which have no order: position must be none, not learned")
        #expect(
            refusal(ForecastShape(channels: 0, lookback: 12, horizon: 5))
                == "channels must be from 1 to 10000000, not 0")
        #expect(
            refusal(ForecastShape(channels: 4, lookback: 12, horizon: 0))
                == "horizon must be from 1 to 10000000, not 0")
        let error = #expect(throws: TorchError.self) {
            let model = try forecaster("samformer")
            _ = try withTorchErrors { model(normal([1, 3, 12])) }
        }
        #expect(error?.description == "Forecaster: expected x [batch, 4, 12]; got [1, 3, 12]")
    }

    @Test func descriptionsBuildIt() throws {
        let shape = ForecastShape(channels: 4, lookback: 12, horizon: 5)
        var description = ModelDescription(series: shape, model: try configuration("samformer"))
        guard case .forecaster(let model) = try description.build(using: RandomGenerator(seed: 1)) else {
            Issue.record("no forecaster")
            return
        }
        #expect(model.shape == shape)
        description.series = nil
        #expect(throws: ConfigurationError("a forecaster's description needs the sizes of its series")) {
            try description.build(using: RandomGenerator(seed: 1))
        }
    }
}
