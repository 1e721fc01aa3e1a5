import Datasets
import Foundation
import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// A recipe made real: its data opened and its model built.
public struct Experiment {
    public let recipe: Recipe
    public let dataset: any TokenDataset
    public let description: ModelDescription
    public let model: TaskModel
    /// Drew the initial weights, and draws dropout during training.
    public let generator: RandomGenerator

    /// - Throws: `DatasetError` for data that cannot be read, ``RecipeError`` or `ConfigurationError` for a model that cannot
    ///   be built.
    public init(_ recipe: Recipe) throws {
        self.recipe = recipe
        let configuration = try recipe.decodeModel(ModelConfiguration.self)
        try configuration.validate()
        dataset = try recipe.data.open(seed: UInt64(recipe.seed))
        description = ModelDescription(dataset, configuration)
        generator = RandomGenerator(seed: UInt64(recipe.seed))
        model = try description.build(using: generator)
    }

    /// The model of a finished or running experiment with its best weights.
    ///
    /// - Throws: ``RunError``, `SafetensorsError` or a loading error that says which file does not fit.
    public static func load(_ run: RunDirectory) throws -> (description: ModelDescription, model: TaskModel) {
        let description: ModelDescription
        do {
            description = try JSONDecoder().decode(ModelDescription.self, from: Data(contentsOf: run.configuration))
        } catch {
            let reason = (error as? ConfigurationError)?.description ?? "it is missing or not a model's description"
            throw RunError.damaged(path: run.configuration.relativePath, reason: reason)
        }
        guard FileManager.default.fileExists(atPath: run.model.path) else {
            throw RunError.damaged(
                path: run.model.relativePath,
                reason: "it is missing: the run has not come to its first evaluation or end")
        }
        let model = try description.build(using: RandomGenerator(seed: 0))
        _ = try model.module.load(try SafetensorsFile(run.model).tensors(), matching: .strict)
        model.module.evaluate()
        return (description, model)
    }
}

extension ModelDescription {
    init(_ dataset: any TokenDataset, _ configuration: ModelConfiguration) {
        switch dataset.objective {
        case .nextToken:
            self.init(
                kind: .languageModel, vocabulary: dataset.vocabularySize, maximumLength: dataset.maximumLength,
                model: configuration)
        case .classification(let classes):
            self.init(
                kind: .classifier, vocabulary: dataset.vocabularySize, classes: classes,
                maximumLength: dataset.maximumLength,
                model: configuration)
        }
    }
}

extension DataRecipe {
    /// Opens or generates the data.
    ///
    /// - Throws: `DatasetError`.
    public func open(seed: UInt64) throws -> any TokenDataset {
        switch self {
        case .bytes(let data):
            let fractions = SplitFractions(train: data.splits[0], validation: data.splits[1], test: data.splits[2])
            let corpus = try ByteCorpus(
                contentsOf: URL(fileURLWithPath: data.path), extensions: data.extensions, fractions: fractions)
            return try ByteLanguageModeling(corpus, length: data.length)
        case .enwik8(let data):
            let corpus = try ByteCorpus(contentsOf: URL(fileURLWithPath: data.path))
            return try ByteLanguageModeling(corpus, length: data.length)
        case .copy(let data): return try CopyTask(length: data.length, symbols: data.symbols)
        case .listops(let data):
            if let path = data.path {
                return try ClassificationDataset.listOps(
                    contentsOf: URL(fileURLWithPath: path), maximumLength: data.length,
                    grouping: .similarLengths(pool: 8))
            }
            return try ClassificationDataset.listOps(
                generating: data.configuration(seed: seed), grouping: .similarLengths(pool: 8))
        }
    }
}

extension DataRecipe.ListOps {
    /// The generator's settings, whose length bounds are exclusive.
    func configuration(seed: UInt64) -> ListOpsConfiguration {
        var configuration = ListOpsConfiguration()
        configuration.maximumDepth = maximumDepth
        configuration.maximumArguments = maximumArguments
        configuration.lengthAbove = minimumLength - 1
        configuration.lengthBelow = length + 1
        configuration.trainCount = trainingExamples
        configuration.validationCount = validationExamples
        configuration.testCount = testExamples
        configuration.seed = seed
        return configuration
    }
}

extension TokenBatch {
    var inputTensor: Tensor { Tensor(inputs, shape: [batch, length]).to(.int64) }
    var targetTensor: Tensor { Tensor(targets).to(.int64) }
    var maskTensor: Tensor? { paddingMask.map { Tensor($0, shape: [batch, length]) } }
}
