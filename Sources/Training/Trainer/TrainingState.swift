import Datasets
import Foundation
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// What a checkpoint says besides tensors: where the run stands.
struct TrainingProgress: Codable, Equatable {
    /// Steps done.
    var step = 0
    /// Tokens trained on, padding left out.
    var tokens = 0
    /// Seconds of training, evaluations and checkpoints left out, over all the processes that had a part in it.
    var seconds = 0.0
    /// Where the next batch stands.
    var position: BatchPosition
    /// The lowest validation loss, the step it was found at, and evaluations since.
    var bestLoss: Double?
    var bestStep: Int?
    var evaluationsSinceBest = 0
    /// The step of the newest evaluation.
    var evaluatedStep: Int?
    /// What the next line of the log will average over.
    var window = LogWindow()
}

/// Sums over the steps since the last line of the log.
struct LogWindow: Codable, Equatable {
    var loss = 0.0
    /// What parts of the model add to the loss; nil where none does.
    var auxiliaryLoss: Double?
    var gradientNorm = 0.0
    var tokens = 0
    var seconds = 0.0
    var steps = 0

    mutating func add(loss: Double, auxiliaryLoss: Double?, gradientNorm: Double, tokens: Int, seconds: Double) {
        self.loss += loss
        if let auxiliaryLoss { self.auxiliaryLoss = (self.auxiliaryLoss ?? 0) + auxiliaryLoss }
        self.gradientNorm += gradientNorm
        self.tokens += tokens
        self.seconds += seconds
        steps += 1
    }
}

/// The files of a checkpoint, and how they are read back: parameters, optimizer, random generator, progress.
enum TrainingCheckpoint {
    static let modelFile = "model.safetensors"
    static let optimizerFile = "optimizer.safetensors"
    static let progressFile = "progress.json"
    private static let generatorName = "random.state"

    static func save(
        _ progress: TrainingProgress, _ experiment: Experiment, _ optimizer: any Optimizer, to store: CheckpointStore
    ) throws {
        try store.save(step: progress.step) { folder in
            try Safetensors.write(
                experiment.model.module.stateDictionary(), to: folder.appendingPathComponent(modelFile))
            var tensors = optimizer.state
            tensors[generatorName] = experiment.generator.state
            try Safetensors.write(tensors, to: folder.appendingPathComponent(optimizerFile))
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            try AtomicFile.write(encoder.encode(progress), to: folder.appendingPathComponent(progressFile))
        }
    }

    /// Puts the run back to where the checkpoint was written.
    static func load(
        _ checkpoint: Checkpoint, into experiment: Experiment, _ optimizer: any Optimizer
    ) throws -> TrainingProgress {
        _ = try experiment.model.module.load(
            try SafetensorsFile(checkpoint.file(modelFile)).tensors(), matching: .strict)
        var tensors = try SafetensorsFile(checkpoint.file(optimizerFile)).tensors()
        guard let random = tensors.removeValue(forKey: generatorName) else {
            throw RunError.damaged(
                path: checkpoint.file(optimizerFile).relativePath, reason: "it has no '\(generatorName)'")
        }
        try optimizer.load(state: tensors)
        try withTorchErrors { experiment.generator.state = random }
        do {
            return try JSONDecoder().decode(
                TrainingProgress.self, from: Data(contentsOf: checkpoint.file(progressFile)))
        } catch is DecodingError {
            throw RunError.damaged(
                path: checkpoint.file(progressFile).relativePath, reason: "it is not a run's progress")
        }
    }
}
