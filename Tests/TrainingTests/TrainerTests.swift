import Datasets
import Foundation
import SequenceModels
import Testing
import Torch
import TorchNN

@testable import Training

/// Keeps what training tells.
final class RecordedOutput: ProgressOutput {
    var text = ""
    var width: Int? { nil }
    func write(_ text: String) { self.text += text }
}

/// Tiny experiments in a folder of their own.
struct TrainingBench {
    let folder: URL
    let output = RecordedOutput()

    static let models = [
        "language": """
        task: language-model
        data: {kind: bytes, path: DIR/text.txt, length: 24}
        """,
        "copy": "task: copy\ndata: {kind: copy, length: 16}",
        "classification": """
        task: classification
        data: {kind: listops, length: 24, minimumLength: 5, trainingExamples: 30, validationExamples: 10, testExamples: 7}
        """,
    ]

    /// Runs `body` in a new folder that also holds `text.txt`, of 1,501 bytes.
    static func withFolder(_ body: (TrainingBench) throws -> Void) throws {
        try withTemporaryFolder { folder in
            let text = (0..<1501).map { UInt8(97 + $0 * $0 % 23) }
            try Data(text).write(to: folder.appendingPathComponent("text.txt"))
            try body(TrainingBench(folder: folder))
        }
    }

    /// - Parameter overrides: on top of a model of one layer that is trained 12 steps.
    func recipe(_ model: String, _ overrides: [String]) throws -> Recipe {
        let yaml =
            (Self.models[model] ?? "").replacing("DIR", with: folder.path) + """

                seed: 3
                model: {layers: 1, modelDim: 16, heads: 2, position: none, dropout: 0.1, mixer: {name: momentum}}
                training: {steps: 12, batchSize: 3, accumulation: 2, evaluateEvery: 4, evaluationBatches: 2, checkpointEvery: 5, logEvery: 3}
                """
        return try Recipe(yaml: yaml, name: "tiny", overrides: overrides)
    }

    func run(_ name: String) throws -> RunDirectory {
        let url = folder.appendingPathComponent(name)
        return try FileManager.default.fileExists(atPath: url.path) ? .resume(at: url) : .create(at: url)
    }

    func trainer(_ model: String = "language", in name: String, _ overrides: String...) throws -> Trainer {
        try trainer(model, in: name, overrides)
    }

    func trainer(_ model: String, in name: String, _ overrides: [String]) throws -> Trainer {
        try Trainer(Experiment(recipe(model, overrides)), in: run(name), resuming: true, output: output)
    }

    func bytes(_ path: String) throws -> Data { try Data(contentsOf: folder.appendingPathComponent(path)) }

    func metrics(_ name: String) throws -> [MetricsRecord] {
        try MetricsLog.read(folder.appendingPathComponent("\(name)/metrics.jsonl"))
    }
}

struct TrainerResumeTests {
    /// Times differ from run to run; all else must not.
    private func untimed(_ records: [MetricsRecord]) -> [MetricsRecord] {
        records.map { record in
            var record = record
            record.values["seconds"] = nil
            record.values["tokens_per_second"] = nil
            return record
        }
    }

    @Test(
        arguments: ["language", "copy", "classification"],
        [
            "optimizer={name: adamw}", "optimizer={name: radam}",
            "optimizer={name: sgd, momentum: 0.9, learningRate: 0.1}",
        ])
    func goesOnBitForBit(model: String, optimizer: String) throws {
        try TrainingBench.withFolder { bench in
            let overrides = [optimizer, "schedule={name: cosine, warmupSteps: 3}"]
            #expect(try bench.trainer(model, in: "whole", overrides).train() == .finished)

            // Killed after the checkpoint of step 5: what came later is as if it had never been.
            do {
                let killed = try bench.trainer(model, in: "parts", overrides)
                try killed.trainSteps(7)
            }
            let resumed = try bench.trainer(model, in: "parts", overrides)
            #expect(resumed.step == 5)
            #expect(try resumed.train() == .finished)

            #expect(try bench.bytes("whole/model.safetensors") == bench.bytes("parts/model.safetensors"))
            for file in ["model", "optimizer"] {
                let path = "checkpoint/step-00000012/\(file).safetensors"
                #expect(try bench.bytes("whole/\(path)") == bench.bytes("parts/\(path)"), "\(file)")
            }
            #expect(try untimed(bench.metrics("whole")) == untimed(bench.metrics("parts")))
        }
    }

    @Test func aFinishedRunStaysAsItIs() throws {
        try TrainingBench.withFolder { bench in
            #expect(try bench.trainer(in: "run", "training.steps=7").train() == .finished)
            let before = try (bench.bytes("run/model.safetensors"), bench.metrics("run"))
            let names = try FileManager.default.contentsOfDirectory(atPath: bench.folder.path + "/run/checkpoint")
                .sorted()
            #expect(try bench.trainer(in: "run", "training.steps=7").train() == .finished)
            #expect(try bench.bytes("run/model.safetensors") == before.0)
            #expect(try bench.metrics("run") == before.1)
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: bench.folder.path + "/run/checkpoint").sorted()
                    == names)
        }
    }

    @Test(arguments: 0..<4) func noRecordIsThereTwice(seed: Int) throws {
        try TrainingBench.withFolder { bench in
            var generator = SeededGenerator(seed: UInt64(seed))
            let steps = 4 + generator.next(below: 6)
            let overrides = [
                "training.steps=\(steps)", "training.checkpointEvery=\(1 + generator.next(below: 3))",
                "training.evaluateEvery=\(generator.next(below: 3))",
                "training.logEvery=\(1 + generator.next(below: 3))",
            ]
            for _ in 0..<3 {
                let trainer = try bench.trainer("copy", in: "run", overrides)
                try trainer.trainSteps(min(generator.next(below: 4), steps - trainer.step))
            }
            _ = try bench.trainer("copy", in: "run", overrides).train()
            _ = try bench.trainer("copy", in: "run", overrides).train()
            let keys = try bench.metrics("run").map { "\($0.split) \($0.step)" }
            #expect(Set(keys).count == keys.count, "\(keys)")
            #expect(keys.last == "validation \(steps)")
        }
    }

    @Test func aDamagedCheckpointIsPassedOver() throws {
        try TrainingBench.withFolder { bench in
            _ = try bench.trainer(in: "run").train()
            let checkpoints = bench.folder.appendingPathComponent("run/checkpoint")
            func cut(_ step: String) throws {
                let url = checkpoints.appendingPathComponent("step-\(step)/model.safetensors")
                try Data(contentsOf: url).prefix(1000).write(to: url)
            }
            try cut("00000012")
            do {
                let resumed = try bench.trainer(in: "run")
                #expect(resumed.step == 10)
            }
            #expect(bench.output.text.contains("warning: passed over a checkpoint"))
            try cut("00000010")
            let error = #expect(throws: RunError.self) { try bench.trainer(in: "run") }
            #expect(error?.description.contains("no whole checkpoint") == true)
            #expect(error?.description.contains("\n") == false)
        }
    }

    /// A checkpoint of another model names what does not fit.
    @Test func anotherModelIsRefused() throws {
        try TrainingBench.withFolder { bench in
            _ = try bench.trainer(in: "run", "training.steps=1").train()
            let error = #expect(throws: LoadError.self) { try bench.trainer(in: "run", "model.modelDim=32") }
            #expect(error?.description.contains("expected [256, 32], found [256, 16]") == true)
        }
    }
}

struct TrainerEndTests {
    @Test func stopsWhenEvaluationsGetNoBetter() throws {
        try TrainingBench.withFolder { bench in
            let overrides = [
                "training.earlyStoppingPatience=2", "training.evaluateEvery=1", "training.steps=100000",
                "optimizer.learningRate=1e-30", "optimizer.weightDecay=0",
            ]
            // Stopped is stopped, also for the process that comes second.
            for _ in 0..<2 {
                let trainer = try bench.trainer("language", in: "run", overrides)
                #expect(try trainer.train() == .stoppedEarly)
                #expect(trainer.step == 3)
                #expect(trainer.best?.step == 1)
            }
        }
    }

    @Test func stopsWhenTheTimeIsUp() throws {
        try TrainingBench.withFolder { bench in
            let overrides = ["training.timeLimitMinutes=0.002", "training.steps=1000000000"]
            var steps: [Int] = []
            for _ in 0..<2 {
                let trainer = try bench.trainer("language", in: "run", overrides)
                #expect(try trainer.train() == .timeLimit)
                #expect(trainer.seconds >= 0.12 && trainer.seconds < 30)
                #expect(try bench.metrics("run").last?.split == "validation")
                steps.append(trainer.step)
            }
            #expect(steps[0] == steps[1])
        }
    }

    @Test func keepsTheBestWeights() throws {
        try TrainingBench.withFolder { bench in
            // What is learned from one alphabet makes the other ever less likely.
            let text = (0..<1501).map { UInt8(($0 < 1350 ? 97 : 65) + $0 % 23) }
            try Data(text).write(to: bench.folder.appendingPathComponent("text.txt"))
            let trainer = try bench.trainer(
                in: "run", "training.evaluateEvery=1", "optimizer.learningRate=0.03",
                "training.evaluationBatches=0", "training.steps=25")
            #expect(try trainer.train() == .finished)
            let best = try #require(trainer.best)
            let losses = try bench.metrics("run").filter { $0.split == "validation" }
            let lowest = try #require(losses.min { $0.values["loss"] ?? .nan < $1.values["loss"] ?? .nan })
            #expect(lowest.step == best.step && lowest.values["loss"] == best.loss)
            #expect(best.step < trainer.step, "the test needs a run whose last weights are not its best")

            let run = try RunDirectory.open(at: bench.folder.appendingPathComponent("run"))
            let (_, model) = try Experiment.load(run)
            let dataset = try bench.recipe("language", []).data.open(seed: 3)
            #expect(try model.evaluate(on: dataset, split: .validation, batchSize: 3).loss == best.loss)
        }
    }
}

struct DivergenceTests {
    private func expectDivergence(_ bench: TrainingBench, _ trainer: Trainer) throws -> DivergenceError {
        let error = try #require(#expect(throws: DivergenceError.self) { try trainer.train() })
        #expect(!error.description.contains("\n"))
        // Whatever checkpoint there is holds finite weights.
        let store = CheckpointStore(folder: bench.folder.appendingPathComponent("run/checkpoint"))
        if let checkpoint = try store.newest(warn: { Issue.record("\($0)") }) {
            #expect(checkpoint.step < error.step)
            for (name, tensor) in try SafetensorsFile(checkpoint.file("model.safetensors")).tensors() {
                #expect(tensor.isFinite().all().item() != 0, "\(name)")
            }
        }
        return error
    }

    @Test func aPoisonedParameterIsNamed() throws {
        try TrainingBench.withFolder { bench in
            do {
                let experiment = try Experiment(bench.recipe("language", []))
                let trainer = try Trainer(experiment, in: bench.run("run"), output: bench.output)
                try trainer.trainSteps(6)
                let poisoned = try #require(
                    experiment.model.module.namedParameters().first { $0.name == "encoder.blocks.0.mixer.value.weight" }
                )
                withNoGrad { poisoned.parameter.value.multiplyInPlace(by: .nan) }
                let error = try expectDivergence(bench, trainer)
                #expect(error.step == 7)
                #expect(error.parameter == "encoder.blocks.0.mixer.value.weight")
                #expect(error.description.contains("step 7") && error.description.contains("value.weight"))
            }
            #expect(try bench.trainer(in: "run").step == 5)
        }
    }

    @Test(arguments: ["1e20", "1e30", "1e38"]) func aHugeLearningRateIsFound(rate: String) throws {
        try TrainingBench.withFolder { bench in
            let trainer = try bench.trainer(
                in: "run", "optimizer={name: sgd, clipNorm: 0, learningRate: \(rate)}", "training.checkpointEvery=1",
                "training.evaluateEvery=1", "training.steps=1000")
            let error = try expectDivergence(bench, trainer)
            #expect(error.parameter != nil)
        }
    }

    /// One that no float32 can hold is an error too, not the end of the program.
    @Test func aLearningRateBeyondFloatIsRefused() throws {
        try TrainingBench.withFolder { bench in
            let trainer = try bench.trainer(in: "run", "optimizer={name: sgd, clipNorm: 0, learningRate: 1e300}")
            #expect(throws: TorchError.self) { try trainer.train() }
        }
    }
}

struct EvaluationTests {
    /// Every byte of a split but its first is a target exactly once, whatever the batch size.
    @Test(arguments: [1, 2, 7, 1000]) func countsEveryByte(batchSize: Int) throws {
        try TrainingBench.withFolder { bench in
            let experiment = try Experiment(bench.recipe("language", ["data.splits=[0.5, 0.31, 0.19]"]))
            var targets = 0
            for split in DatasetSplit.allCases {
                let result = try experiment.model.evaluate(on: experiment.dataset, split: split, batchSize: batchSize)
                targets += result.targets
                // Untrained, so near the loss of a guess.
                #expect(abs(result.bits - 8) < 1.5)
            }
            #expect(targets == 1501 - 3)
        }
    }

    @Test func theBatchSizeDoesNotMatter() throws {
        try TrainingBench.withFolder { bench in
            for model in TrainingBench.models.keys.sorted() {
                let experiment = try Experiment(bench.recipe(model, []))
                let results = try [1, 3, 64].map {
                    try experiment.model.evaluate(on: experiment.dataset, split: .test, batchSize: $0)
                }
                for result in results {
                    #expect(result.targets == results[0].targets)
                    #expect(abs(result.loss - results[0].loss) < 1e-4, "\(model)")
                }
            }
        }
    }

    @Test func whatTheRecipeSaysIsWhatTheDataIs() throws {
        try TrainingBench.withFolder { bench in
            for model in TrainingBench.models.keys {
                let experiment = try Experiment(bench.recipe(model, []))
                let dataset = try #require(experiment.dataset as? any TokenDataset)
                #expect(experiment.description.vocabulary == dataset.vocabularySize)
                #expect(experiment.description.maximumLength == dataset.maximumLength)
                if case .classification(let classes) = dataset.objective {
                    #expect(experiment.description.classes == classes)
                } else {
                    #expect(experiment.description.kind == .languageModel)
                }
            }
        }
    }
}
