import ArgumentParser
import Foundation
import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import Training

struct Train: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Train a model from a recipe.",
        usage: "subq train <recipe> [--set <key=value>] [--out <dir>] [--resume] [options]",
        discussion: "Ctrl-C saves a checkpoint and ends; --resume goes on from the last one.")

    @Argument(help: "The recipe, a YAML file.")
    var recipe: String

    @Option(help: ArgumentHelp("Change a setting of the recipe, as in --set model.layers=2.", valueName: "key=value"))
    var set: [String] = []

    @Option(help: ArgumentHelp("The run directory; runs/NAME when left out.", valueName: "dir"))
    var out: String?

    @Flag(help: "Continue the run in the run directory from its last checkpoint; begin one if there is none.")
    var resume = false

    @Option(parsing: .unconditional, help: "Seed of initial weights, batches and dropout; the recipe's when left out.")
    var seed: Int?

    @OptionGroup var compute: ComputeOptions

    func run() throws {
        try compute.apply()
        let recipe = try Recipe(
            contentsOf: URL(fileURLWithPath: recipe), overrides: set + (seed.map { ["seed=\($0)"] } ?? []))
        let folder = try URL(folder: out ?? "runs/\(recipe.name)", "--out")
        let continues = resume && FileManager.default.fileExists(atPath: folder.path)
        let run = try continues ? RunDirectory.resume(at: folder) : .create(at: folder)
        let experiment: Experiment
        do {
            if run.isBegun { try checkSame(recipe, run) }
            experiment = try Experiment(recipe)
        } catch {
            run.discardIfEmpty()
            throw error
        }

        let output = StandardErrorOutput()
        let trainer = try Trainer(experiment, in: run, resuming: resume, output: output)
        if resume && !run.isBegun { output.write("no run in \(folder.relativePath) yet: a new one begins\n") }
        output.write(
            "\(recipe.name): \(experiment.description.model.mixer.name), \(HumanFormat.count(experiment.model.module.parameterCount())) "
                + "parameters, \(TorchRuntime.threadCount) threads\n")
        let end = try trainer.train(interrupt: InterruptFlag())
        output.write("\(Self.words(for: end, trainer)); the run lies in \(folder.relativePath)\n")
        if case .interrupted(let signal) = end { throw ExitCode(128 + signal) }
    }

    /// A resumed run must be the same experiment; only how long it goes on, and how often it reports, may change.
    private func checkSame(_ recipe: Recipe, _ run: RunDirectory) throws {
        let before = try Recipe(contentsOf: run.recipe)
        let free = [
            "training.steps", "training.timeLimitMinutes", "training.logEvery", "training.checkpointEvery", "name",
            "training.earlyStoppingPatience",
        ]
        let changed = try recipe.differences(from: before).filter { !free.contains($0) }
        guard changed.isEmpty else {
            throw UsageError(
                "the run in '\(run.url.relativePath)' was begun with other settings (\(changed.joined(separator: ", "))); "
                    + "resume it with the same recipe, or begin a new run with --out")
        }
    }

    private static func words(for end: TrainingEnd, _ trainer: Trainer) -> String {
        let after =
            "after \(trainer.step) steps, \(HumanFormat.count(trainer.tokens)) tokens, \(HumanFormat.duration(trainer.seconds))"
        return switch end {
        case .finished: "done \(after)"
        case .stoppedEarly: "stopped early \(after): the evaluations got no better"
        case .timeLimit: "time is up \(after)"
        case .interrupted: "interrupted and saved \(after); continue with --resume"
        }
    }
}
