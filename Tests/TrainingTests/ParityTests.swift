import Foundation
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN
import TorchOptimizers

/// Training in step with PyTorch: from the same weights, on the same batches, the same losses and final weights.
///
/// The files were made by `Benchmarks/parity/make_parity.py`, which builds the models naively in PyTorch 2.13. More files, of
/// any size, can be named in the environment variable `PARITY_FILES`, with colons between.
@Suite("Parity with PyTorch")
struct ParityTests {
    struct Settings: Decodable {
        let mechanism: String
        let layers, modelDim, heads, length, steps: Int
        let learningRate: Double
        let momentum, stepSize: Double
    }

    static let files: [URL] = {
        let own = ["softmax", "linear", "momentum"].compactMap {
            Bundle.module.url(forResource: "parity-\($0)", withExtension: "safetensors", subdirectory: "Resources")
        }
        let more = ProcessInfo.processInfo.environment["PARITY_FILES"]?.split(separator: ":") ?? []
        return own + more.map { URL(fileURLWithPath: String($0)) }
    }()

    @Test("all three mechanisms are there") func filesAreThere() {
        #expect(Self.files.count >= 3)
    }

    @Test("30 steps as in PyTorch", arguments: files) func train(_ url: URL) throws {
        let file = try SafetensorsFile(url)
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let settings = try decoder.decode(Settings.self, from: Data(try #require(file.metadata["settings"]).utf8))
        let tensors = try file.tensors()
        let model = try Self.model(settings)
        let initial = tensors.filter { $0.key.hasPrefix("initial.") }.map { ($0.key.dropFirst(8), $0.value) }
        _ = try model.load(Dictionary(uniqueKeysWithValues: initial.map { (String($0.0), $0.1) }))

        let tokens = try #require(tensors["tokens"]).to(.int64)
        let expected: [Double] = try #require(tensors["losses"]).scalars()
        let optimizer = AdamW(
            model.namedParameters(), learningRate: settings.learningRate, betas: (0.9, 0.95), weightDecay: 0.01)
        var worst = 0.0
        for step in 0..<settings.steps {
            let batch = tokens[step]
            optimizer.zeroGradients()
            let logits = model(batch[.all, 0..<settings.length].contiguous())
            let loss = crossEntropy(logits.flattened(0, 1), batch[.all, 1...].contiguous().flattened())
            loss.backward()
            _ = clipGradientNorm(model.parameters(), maximum: 1)
            optimizer.step()
            let deviation = abs(loss.item() - expected[step]) / expected[step]
            worst = max(worst, deviation)
            #expect(deviation <= 1e-4, "step \(step): \(loss.item()), PyTorch \(expected[step])")
        }
        print(
            "parity \(url.lastPathComponent): largest relative deviation of the loss \(worst) in \(settings.steps) steps"
        )
        for (name, parameter) in model.namedParameters() {
            let final = try #require(tensors["final." + name])
            #expect(parameter.value.relativeError(to: final) <= 2e-2, "\(name) after the last step")
        }
    }

    private static func model(_ settings: Settings) throws -> LanguageModel {
        let options: (any MixerOptions)? =
            settings.mechanism == "momentum"
            ? MomentumOptions(momentum: settings.momentum, stepSize: settings.stepSize) : nil
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(settings.mechanism, options))
        configuration.layers = settings.layers
        configuration.modelDim = settings.modelDim
        configuration.heads = settings.heads
        return try LanguageModel(
            configuration, vocabulary: 256, maximumLength: settings.length, using: RandomGenerator(seed: 0))
    }

}
