import ArgumentParser
import Datasets
import Foundation
import Torch
import Training

struct Evaluate: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Measure a run's best weights on its test split.")

    @Argument(help: ArgumentHelp("The run directory.", valueName: "run-dir"))
    var folder: String

    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: "The split to measure on: train, validation or test.")
    var split: String = "test"

    @OptionGroup var compute: ComputeOptions

    private struct Report: Encodable {
        let run, split: String
        let metrics: [String: Double]
    }

    func run() throws {
        try compute.apply()
        guard let split = DatasetSplit(rawValue: split) else {
            throw UsageError("--split must be train, validation or test, not '\(split)'")
        }
        let directory = try RunDirectory.open(at: URL(folder: folder, "the run directory"))
        let recipe = try Recipe(contentsOf: directory.recipe)
        let (_, model) = try Experiment.load(directory)
        let dataset = try recipe.data.open(seed: UInt64(recipe.seed))
        let result = try withTorchErrors {
            try model.evaluate(on: dataset, split: split, batchSize: recipe.training.batchSize)
        }
        var metrics = result.metrics(for: recipe.task)
        if let labeled = dataset as? ClassificationDataset { metrics["majority_share"] = labeled[split].majorityShare }
        if let images = dataset as? ImageDataset { metrics["majority_share"] = images.majorityShare(of: split) }
        if json { return try Report(run: folder, split: split.rawValue, metrics: metrics).printJSON() }
        for (name, value) in metrics.sorted(by: { $0.key < $1.key }) {
            print(
                "\(split.rawValue) \(name): \(name == "targets" ? HumanFormat.count(Int(value)) : String(format: "%.4f", value))"
            )
        }
    }
}
