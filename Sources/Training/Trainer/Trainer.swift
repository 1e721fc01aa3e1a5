import Datasets
import Foundation
import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// Why training ended.
public enum TrainingEnd: Equatable, Sendable {
    /// All steps are done.
    case finished
    /// Evaluations stopped getting better.
    case stoppedEarly
    /// The recipe's time is up.
    case timeLimit
    /// A signal asked for it; the state is saved.
    case interrupted(signal: Int32)
}

/// A loss or gradient that is no number.
public struct DivergenceError: Error, Equatable, Sendable, CustomStringConvertible {
    public let step: Int
    public let loss: Double
    /// The first parameter, in the model's order, whose value is not finite; else one whose gradient is not; else, where
    /// only sums overflow, that of the largest number.
    public let parameter: String?

    public var description: String {
        let what =
            loss.isFinite
            ? "its gradients are too large for numbers" : "the loss is \(loss.isNaN ? "not a number" : "infinite")"
        let place = parameter.map { "; the parameter at fault is '\($0)'" } ?? ""
        return "training diverged at step \(step): \(what)\(place). The last checkpoint is from before; "
            + "a lower learningRate, more warmupSteps or a lower clipNorm may help"
    }
}

/// Trains an experiment in a run directory: steps, evaluations, checkpoints, logs.
///
/// Everything that decides the result is in the checkpoint, so a run that is killed and resumed gives the same weights,
/// bit for bit on the CPU, as one that is not.
public final class Trainer {
    private let experiment: Experiment
    private let run: RunDirectory
    private let recipe: Recipe
    private let optimizer: any Optimizer
    private let schedule: LearningRateSchedule
    private let parameters: [Parameter]
    /// The model's parts that add to the loss.
    private let auxiliaries: [any AuxiliaryLossProviding]
    private var source: any BatchSource
    private var progress: TrainingProgress
    /// What the newest checkpoint says.
    private var saved: TrainingProgress?
    private let metrics: MetricsLog
    private let board: TensorBoardWriter
    private var reporter: ProgressReporter
    private var rate = RateMeter()

    /// Prepares a new run, or puts one back to its newest whole checkpoint.
    ///
    /// - Throws: ``RunError``, `FileWriteError`, or what a checkpoint that does not fit throws.
    public init(
        _ experiment: Experiment, in run: RunDirectory, resuming: Bool = false,
        output: any ProgressOutput = StandardErrorOutput()
    ) throws {
        self.experiment = experiment
        self.run = run
        recipe = experiment.recipe
        parameters = experiment.model.module.parameters()
        auxiliaries = experiment.model.module.namedModules().compactMap { $0.module as? any AuxiliaryLossProviding }
        optimizer = try recipe.optimizer.build(for: experiment.model.module)
        schedule = recipe.schedule.build(steps: recipe.training.steps)
        source = try experiment.dataset.anyTrainingBatches(
            batchSize: recipe.training.batchSize, seed: UInt64(recipe.seed))
        progress = TrainingProgress(position: source.position)
        reporter = ProgressReporter(every: recipe.training.logEvery, to: output)
        if resuming, let checkpoint = try run.checkpoints.newest(warn: { output.write("warning: \($0)\n") }) {
            progress = try TrainingCheckpoint.load(checkpoint, into: experiment, optimizer)
            saved = progress
            try source.resume(at: progress.position)
        }
        metrics = try MetricsLog(at: run.metrics, resumingAfter: progress.step > 0 ? progress.step : nil)
        board = try TensorBoardWriter(folder: run.url, resumingAfter: progress.step > 0 ? progress.step : nil)
        try describeRun()
    }

    private func describeRun() throws {
        try AtomicFile.write(Data(recipe.yaml().utf8), to: run.recipe)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try AtomicFile.write(encoder.encode(experiment.description), to: run.configuration)
    }

    /// Steps done so far.
    public var step: Int { progress.step }
    /// Tokens trained on so far, padding left out.
    public var tokens: Int { progress.tokens }
    /// Seconds spent in training steps so far.
    public var seconds: Double { progress.seconds }
    /// The lowest validation loss so far, and its step.
    public var best: (loss: Double, step: Int)? {
        progress.bestLoss.flatMap { loss in progress.bestStep.map { (loss, $0) } }
    }

    /// Trains to the end, and leaves the best weights in `model.safetensors`.
    ///
    /// - Throws: ``DivergenceError``, `FileWriteError`, `DatasetError`; checkpoints written before stay good.
    public func train(interrupt: InterruptFlag? = nil) throws -> TrainingEnd {
        // Whatever is said next, an error included, must not stand in the live line.
        defer { reporter.finish() }
        if progress.step > 0 { reporter.message("resumed at step \(progress.step)") }
        experiment.model.module.train()
        while true {
            if let end = end ?? interrupt?.receivedSignal.map({ .interrupted(signal: $0) }) {
                try finish(end)
                return end
            }
            try advance()
        }
    }

    /// One step, and what is due after it.
    private func advance() throws {
        try takeStep()
        showProgress()
        if isDue(recipe.training.logEvery) { try log() }
        if isDue(recipe.training.evaluateEvery) { try evaluate() }
        // The end has a checkpoint of its own. So each step has at most one, written after all its records, and a
        // resumed run has no record twice.
        if end == nil, isDue(recipe.training.checkpointEvery) { try save() }
    }

    /// So many steps without an end after them, as in a process that is killed then.
    func trainSteps(_ count: Int) throws {
        experiment.model.module.train()
        for _ in 0..<count { try advance() }
    }

    /// Why training is over, if it is. Also true at once for a resumed run that was over.
    private var end: TrainingEnd? {
        let training = recipe.training
        if progress.step >= training.steps { return .finished }
        if training.earlyStoppingPatience > 0, progress.evaluationsSinceBest >= training.earlyStoppingPatience {
            return .stoppedEarly
        }
        if training.timeLimitMinutes > 0, progress.seconds >= training.timeLimitMinutes * 60 { return .timeLimit }
        return nil
    }

    private func isDue(_ interval: Int) -> Bool { interval > 0 && progress.step.isMultiple(of: interval) }

    // MARK: One step

    private func takeStep() throws {
        let start = ContinuousClock.now
        optimizer.learningRate = recipe.optimizer.learningRate * schedule(step: progress.step)
        let batches = try (0..<recipe.training.accumulation).map { _ in try source.next() }
        let sharpness = optimizer as? SAM
        let random = sharpness.map { _ in experiment.generator.state }
        let pass = try takeGradients(of: batches)
        var loss = pass.loss
        // Whatever goes wrong, the weights must not stay where SAM moves them.
        defer { sharpness?.retreat() }
        if let sharpness, let random {
            let slope = try withTorchErrors { sharpness.climb() }
            guard loss.isFinite, slope.isFinite else { throw diverged(loss, at: progress.step + 1) }
            // A second pass of the same function: dropout draws what it drew before.
            experiment.generator.state = random
            loss = try takeGradients(of: batches).loss
        }
        let limit = recipe.optimizer.clipNorm > 0 ? recipe.optimizer.clipNorm : .infinity
        let norm = clipGradientNorm(parameters, maximum: limit)
        guard loss.isFinite, norm.isFinite else { throw diverged(loss, at: progress.step + 1) }
        try withTorchErrors { optimizer.step() }
        let seconds = (ContinuousClock.now - start).seconds
        let tokens = batches.reduce(0) { $0 + $1.realTokens }
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        progress.position = source.position
        progress.window.add(
            loss: pass.loss, auxiliaryLoss: pass.auxiliaryLoss, gradientNorm: norm, tokens: tokens, seconds: seconds)
        rate.add(tokens: tokens, seconds: seconds)
    }

    /// Fills the gradients with those of the batches' mean loss, and of what the model's parts add to it.
    private func takeGradients(of batches: [any TrainingBatch]) throws -> (loss: Double, auxiliaryLoss: Double?) {
        optimizer.zeroGradients()
        let count = Double(batches.count)
        var loss = 0.0
        var auxiliaryLoss: Double?
        for batch in batches {
            try withTorchErrors {
                let share = experiment.model.loss(batch) / count
                let extras = auxiliaries.compactMap { $0.auxiliaryLoss }.map { $0 / count }
                extras.reduce(share, +).backward()
                loss += share.item()
                for extra in extras { auxiliaryLoss = (auxiliaryLoss ?? 0) + extra.item() }
            }
        }
        return (loss, auxiliaryLoss)
    }

    /// Names a parameter whose value is bad before one whose gradient is: after one bad value all gradients are bad.
    private func diverged(_ loss: Double, at step: Int) -> DivergenceError {
        let named = experiment.model.module.namedParameters()
        let culprit =
            named.first { !$0.parameter.value.isAllFinite }
            ?? named.first { $0.parameter.grad.map { !$0.isAllFinite } ?? false }
            ?? named.max { $0.parameter.largestMagnitude < $1.parameter.largestMagnitude }
        return DivergenceError(step: step, loss: loss, parameter: culprit?.name)
    }

    // MARK: Logs

    private func log() throws {
        let window = progress.window
        let count = Double(max(window.steps, 1))
        let loss = window.loss / count
        var values = [
            "loss": loss, "gradient_norm": window.gradientNorm / count, "learning_rate": optimizer.learningRate,
            "tokens_per_second": Double(window.tokens) / max(window.seconds, 1e-9), "tokens": Double(progress.tokens),
            "seconds": progress.seconds,
        ]
        if recipe.task == .languageModel { values["bits_per_byte"] = loss / Foundation.log(2) }
        if let sum = window.auxiliaryLoss { values["auxiliary_loss"] = sum / count }
        try record("train", values)
        progress.window = LogWindow()
    }

    /// After each step, since a step may take long; the reporter knows when there is nothing to write.
    private func showProgress() {
        let isText = recipe.task == .languageModel
        let loss = progress.window.loss / Double(max(progress.window.steps, 1))
        reporter.update(
            ProgressStatus(
                step: progress.step, total: recipe.training.steps, loss: isText ? loss / Foundation.log(2) : loss,
                unit: isText ? "bits/byte" : "", tokensPerSecond: rate.tokensPerSecond, secondsLeft: secondsLeft))
    }

    private var secondsLeft: Double {
        let bySteps = rate.secondsLeft(steps: recipe.training.steps - progress.step)
        let limit = recipe.training.timeLimitMinutes * 60
        return limit > 0 ? min(bySteps, max(0, limit - progress.seconds)) : bySteps
    }

    private func record(_ split: String, _ values: [String: Double]) throws {
        try metrics.append(MetricsRecord(step: progress.step, split: split, values: values))
        for (name, value) in values { try board.scalar("\(split)/\(name)", value, step: progress.step) }
    }

    // MARK: Evaluation and saving

    private func evaluate() throws {
        let limit = recipe.training.evaluationBatches
        let result = try withTorchErrors {
            try experiment.model.evaluate(
                on: experiment.dataset, split: .validation, batchSize: recipe.training.batchSize,
                batchCount: limit > 0 ? limit : nil)
        }
        guard result.loss.isFinite else { throw diverged(result.loss, at: progress.step) }
        progress.evaluatedStep = progress.step
        try record("validation", result.metrics(for: recipe.task))
        if progress.bestLoss.map({ result.loss < $0 }) ?? true {
            (progress.bestLoss, progress.bestStep, progress.evaluationsSinceBest) = (result.loss, progress.step, 0)
            try saveWeights()
        } else {
            progress.evaluationsSinceBest += 1
        }
        reporter.message(
            "step \(progress.step): validation \(result.summary(for: recipe.task))"
                + (progress.bestStep == progress.step ? " (best so far)" : ""))
    }

    private func saveWeights() throws {
        let tensors = experiment.model.module.stateDictionary()
        try Safetensors.write(
            tensors, metadata: ["step": "\(progress.step)", WeightsChecksum.key: WeightsChecksum.text(of: tensors)],
            to: run.model)
    }

    /// Writes a checkpoint, unless the newest says the same. A step that has spoiled the weights must not replace good ones.
    private func save() throws {
        guard progress != saved else { return }
        guard parameters.allSatisfy({ $0.value.isAllFinite }) else { throw diverged(.nan, at: progress.step) }
        try metrics.synchronize()
        try board.flush()
        try TrainingCheckpoint.save(progress, experiment, optimizer, to: run.checkpoints)
        saved = progress
    }

    private func finish(_ end: TrainingEnd) throws {
        if case .interrupted = end {
            // Nothing is evaluated: whoever asked is waiting.
        } else if progress.evaluatedStep != progress.step {
            try evaluate()
        }
        try save()
        try board.close()
    }
}

extension Parameter {
    /// In its value or gradient.
    fileprivate var largestMagnitude: Double {
        [value, grad].compactMap { $0?.detached().abs().maximum().item() }.max() ?? 0
    }
}

extension Tensor {
    fileprivate var isAllFinite: Bool { detached().isFinite().all().item() != 0 }
}

extension Duration {
    /// As a plain number.
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}

extension OptimizerRecipe {
    /// The optimizer for a module's parameters.
    func build(for module: Module) throws -> any Optimizer {
        let optimizer = plainOptimizer(for: module.namedParameters())
        guard let sam else { return optimizer }
        return SAM(optimizer, module.parameters(), rho: sam.rho, isAdaptive: sam.adaptive)
    }

    private func plainOptimizer(for parameters: [(name: String, parameter: Parameter)]) -> any Optimizer {
        switch name {
        case .sgd:
            return SGD(parameters, learningRate: learningRate, momentum: momentum, weightDecay: weightDecay)
        case .adam:
            return Adam(
                parameters, learningRate: learningRate, betas: (betas[0], betas[1]), epsilon: epsilon,
                weightDecay: weightDecay)
        case .adamw:
            return AdamW(
                parameters, learningRate: learningRate, betas: (betas[0], betas[1]), epsilon: epsilon,
                weightDecay: weightDecay)
        case .radam:
            return RAdam(
                parameters, learningRate: learningRate, betas: (betas[0], betas[1]), epsilon: epsilon,
                weightDecay: weightDecay)
        }
    }
}

extension ScheduleRecipe {
    /// The schedule for a run of so many steps.
    func build(steps: Int) -> LearningRateSchedule {
        switch name {
        case .constant: .constant(warmupSteps: warmupSteps)
        case .cosine: .cosine(steps: steps, finalFraction: finalFraction, warmupSteps: warmupSteps)
        case .cosineRestarts: .cosineRestarts(every: every, finalFraction: finalFraction, warmupSteps: warmupSteps)
        case .linear: .linear(steps: steps, finalFraction: finalFraction, warmupSteps: warmupSteps)
        case .inverseSquareRoot: .inverseSquareRoot(warmupSteps: warmupSteps)
        case .step: .step(every: every, factor: factor, times: times > 0 ? times : .max, warmupSteps: warmupSteps)
        }
    }
}
