import Datasets
import Foundation
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@testable import Training

/// Forecasting and image classification, from the recipe to the metrics.
struct TaskTests {
    static let tasks = [
        "forecasting": """
        task: forecasting
        data: {kind: series, path: DIR/series.csv, channels: 3, lookback: 16, horizon: 4}
        """,
        "images": """
        task: image-classification
        data: {kind: mnist, path: DIR/mnist, validationExamples: 8}
        """,
    ]

    private static let model = """

        seed: 3
        model: {layers: 2, modelDim: 16, heads: 2, position: none, dropout: 0.1, patchSize: 7, mixer: {name: softmax}}
        training: {steps: 12, batchSize: 3, accumulation: 2, evaluateEvery: 4, evaluationBatches: 2, checkpointEvery: 5, logEvery: 3}
        """

    /// A folder with a small series and a few images.
    private func withData(_ body: (TrainingBench) throws -> Void) throws {
        try TrainingBench.withFolder { bench in
            let rows = (0..<200).map { row in
                (1...3).map { "\(sin(Double(row) / 5 * Double($0)) * 3 + Double($0))" }.joined(separator: ",")
            }
            try Data(rows.joined(separator: "\n").utf8).write(to: bench.folder.appendingPathComponent("series.csv"))
            let mnist = bench.folder.appendingPathComponent("mnist")
            try FileManager.default.createDirectory(at: mnist, withIntermediateDirectories: true)
            for (name, count) in [("train", 40), ("t10k", 11)] {
                func header(_ sizes: [Int]) -> [UInt8] {
                    let numbers: [[UInt8]] = sizes.map { [0, 0, UInt8($0 / 256), UInt8($0 % 256)] }
                    return [0, 0, 8, UInt8(sizes.count)] + numbers.flatMap { $0 }
                }
                // A class is a brightness: easy to learn.
                let images = (0..<count).flatMap { [UInt8](repeating: UInt8($0 % 10 * 25), count: 784) }
                try Data(header([count, 28, 28]) + images).write(
                    to: mnist.appendingPathComponent("\(name)-images-idx3-ubyte"))
                try Data(header([count]) + (0..<count).map { UInt8($0 % 10) })
                    .write(to: mnist.appendingPathComponent("\(name)-labels-idx1-ubyte"))
            }
            try body(bench)
        }
    }

    private func recipe(_ task: String, _ bench: TrainingBench, _ overrides: [String]) throws -> Recipe {
        let text = (Self.tasks[task] ?? "").replacing("DIR", with: bench.folder.path) + Self.model
        return try Recipe(yaml: text, name: "tiny", overrides: overrides)
    }

    private func trainer(_ task: String, _ bench: TrainingBench, in name: String, _ overrides: [String]) throws
        -> Trainer
    {
        try Trainer(
            Experiment(recipe(task, bench, overrides)), in: bench.run(name), resuming: true, output: bench.output)
    }

    @Test(
        arguments: ["forecasting", "images"],
        [
            "optimizer={name: adamw}", "optimizer={name: adam, sam: {rho: 0.5}}",
            "optimizer={name: sgd, momentum: 0.9, learningRate: 0.01, sam: {rho: 0.1, adaptive: true}}",
        ])
    func goesOnBitForBit(task: String, optimizer: String) throws {
        try withData { bench in
            let overrides = [optimizer, "schedule={name: cosine-restarts, every: 5, warmupSteps: 3}"]
            #expect(try trainer(task, bench, in: "whole", overrides).train() == .finished)
            do {
                let killed = try trainer(task, bench, in: "parts", overrides)
                try killed.trainSteps(7)
            }
            let resumed = try trainer(task, bench, in: "parts", overrides)
            #expect(resumed.step == 5)
            #expect(try resumed.train() == .finished)
            for path in ["model.safetensors", "checkpoint/step-00000012/optimizer.safetensors"] {
                #expect(try bench.bytes("whole/\(path)") == bench.bytes("parts/\(path)"), "\(path)")
            }
        }
    }

    @Test(arguments: ["forecasting", "images"]) func isLearned(task: String) throws {
        try withData { bench in
            let overrides = [
                "optimizer={name: adamw, learningRate: 0.01}", "training.steps=150", "training.accumulation=1",
                "training.batchSize=16", "training.evaluateEvery=50", "training.evaluationBatches=0",
                "model.dropout=0",
            ]
            _ = try trainer(task, bench, in: "run", overrides).train()
            let losses = try bench.metrics("run").filter { $0.split == "validation" }.compactMap { $0.values["loss"] }
            #expect(losses.count == 3)
            let run = try RunDirectory.open(at: bench.folder.appendingPathComponent("run"))
            let (description, model) = try Experiment.load(run)
            let recipe = try Recipe(contentsOf: run.recipe)
            let dataset = try recipe.data.open(seed: 3)
            let result = try model.evaluate(on: dataset, split: .test, batchSize: 5)
            let metrics = result.metrics(for: recipe.task)
            if task == "forecasting" {
                #expect(description.series == ForecastShape(channels: 3, lookback: 16, horizon: 4))
                #expect(result.targets == (20 * 2 + 1 - 4) * 3 * 4 && result.accuracy == nil)
                #expect(metrics["mse"] == result.loss && result.loss < 0.1)
                #expect(try #require(metrics["mae"]) < 0.3)
                #expect(bench.output.text.contains("validation mse "))
            } else {
                #expect(description.image == ImageShape(channels: 1, height: 28, width: 28))
                #expect(description.maximumLength == 16)
                #expect(result.targets == 11 && metrics["mae"] == nil)
                #expect(try #require(metrics["accuracy"]) > 0.8)
                #expect(bench.output.text.contains(", accuracy "))
            }
        }
    }

    @Test func theBatchSizeDoesNotMatter() throws {
        try withData { bench in
            for task in ["forecasting", "images"] {
                let experiment = try Experiment(recipe(task, bench, []))
                let results = try [1, 3, 64].map {
                    try experiment.model.evaluate(on: experiment.dataset, split: .test, batchSize: $0)
                }
                for result in results {
                    #expect(result.targets == results[0].targets)
                    #expect(abs(result.loss - results[0].loss) < 1e-5)
                }
            }
        }
    }

    /// The images' pixels, one by one, are also sequences to classify.
    @Test func imagesCanBeReadAsSequences() throws {
        try withData { bench in
            let overrides = [
                "task=classification", "model.mixer={name: linear}", "training.steps=2", "training.batchSize=1",
            ]
            let trainer = try trainer("images", bench, in: "run", overrides)
            #expect(try trainer.train() == .finished)
            #expect(trainer.tokens == 2 * 2 * 784)
        }
    }

    /// What parts of the model add to the loss reaches their weights, and is logged apart.
    @Test func auxiliaryLossesAreTrained() throws {
        try withData { bench in
            func weights(_ name: String, _ balance: Double) throws -> (Tensor, [MetricsRecord]) {
                let overrides = [
                    "model.mixer={name: sparse-mlp, balance: \(balance), noise: false}", "model.feedForwardDim=0",
                    "model.dropout=0", "optimizer={name: sgd, learningRate: 0.1, weightDecay: 0, clipNorm: 0}",
                ]
                _ = try trainer("images", bench, in: name, overrides).train()
                let file = try SafetensorsFile(bench.folder.appendingPathComponent("\(name)/model.safetensors"))
                let gate = try file.tensors()["encoder.blocks.1.mixer.channelExperts.gate"]
                return (try #require(gate), try bench.metrics(name))
            }
            let (plain, plainRecords) = try weights("plain", 0)
            let (balanced, records) = try weights("balanced", 0.5)
            #expect(balanced.relativeError(to: plain) > 1e-3)
            #expect(plainRecords.allSatisfy { $0.values["auxiliary_loss"] == nil })
            for record in records {
                #expect((record.values["auxiliary_loss"] ?? 0 > 0) == (record.split == "train"), "\(record.json)")
            }
        }
    }

    /// A gradient that is no number is found before SAM moves the weights by it.
    @Test func divergenceUnderSAMLeavesFiniteWeights() throws {
        try withData { bench in
            let overrides = [
                "optimizer={name: sgd, clipNorm: 0, learningRate: 1e20, sam: {rho: 0.5}}", "training.checkpointEvery=1",
                "training.steps=100",
            ]
            let experiment = try Experiment(recipe("forecasting", bench, overrides))
            let trainer = try Trainer(experiment, in: bench.run("run"), output: bench.output)
            #expect(throws: DivergenceError.self) { try trainer.train() }
        }
    }

    @Test func mistakesAreNamed() throws {
        try withData { bench in
            func refusal(_ task: String, _ overrides: String...) -> String {
                do {
                    _ = try Experiment(recipe(task, bench, overrides))
                    return ""
                } catch { return "\(error)" }
            }
            #expect(
                refusal("forecasting", "data.lookback=17").hasSuffix(
                    "modelDim must be the lookback 17, not 16"))
            #expect(refusal("forecasting", "model.position=learned").hasSuffix("position must be none, not learned"))
            #expect(refusal("forecasting", "data.channels=4").hasSuffix("it has 3 channels, expected 4"))
            #expect(refusal("forecasting", "data.horizon=500").contains("windows of 16 + 500 rows: has 0 examples"))
            #expect(refusal("forecasting", "data.channels=").contains("missing key 'data.channels'"))
            #expect(refusal("forecasting", "data.splits=[0.5, 0.5]").contains("expected three shares"))
            #expect(refusal("forecasting", "data.kind=ett").contains("unknown key 'data.channels'"))
            #expect(
                refusal("forecasting", "task=classification").contains(
                    "expected listops or mnist or cifar10 for the task classification, found series"))
            #expect(refusal("images", "model.patchSize=5").contains("patchSize 5 does not divide images of 28 by 28"))
            #expect(refusal("images", "data.validationExamples=40").contains("has 40 examples, needs at least 41"))
            #expect(refusal("images", "data.kind=cifar10", "model.patchSize=4").contains("no files named *.bin"))
            #expect(refusal("images", "task=forecasting").contains("expected ett or series"))
            #expect(
                refusal("images", "model.mixer={name: samformer}", "task=language-model").contains(
                    "expected bytes or enwik8"))
        }
    }
}
