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
    public let dataset: any TrainingDataset
    public let description: ModelDescription
    public let model: TaskModel
    /// Drew the initial weights, and draws dropout during training.
    public let generator: RandomGenerator

    /// The model is built first: a mistake in it is told before a large data set is read.
    ///
    /// - Throws: ``RecipeError`` for a model that cannot be built, `DatasetError` for data that cannot be read or is too
    ///   little for a batch, `TorchError` when the memory does not suffice.
    public init(_ recipe: Recipe) throws {
        self.recipe = recipe
        let generator = RandomGenerator(seed: UInt64(recipe.seed))
        let description = try recipe.modelDescription()
        do {
            model = try withTorchErrors { try description.build(using: generator) }
        } catch let error as ConfigurationError {
            throw RecipeError(.invalid("\(error)"), keyPath: "model", place: recipe.model.place)
        }
        self.generator = generator
        self.description = description
        dataset = try recipe.data.open(seed: UInt64(recipe.seed))
        // Found missing now, not at the first evaluation.
        _ = try dataset.anyTrainingBatches(batchSize: recipe.training.batchSize, seed: UInt64(recipe.seed))
        _ = try dataset.evaluationBatchCount(of: .validation, batchSize: recipe.training.batchSize)
    }

    /// The model of a finished or running experiment with its best weights.
    ///
    /// - Throws: ``RunError``, `SafetensorsError` or a loading error that says which file does not fit.
    public static func load(_ run: RunDirectory) throws -> (description: ModelDescription, model: TaskModel) {
        let (description, model) = try build(run.configuration)
        guard FileManager.default.fileExists(atPath: run.model.path) else {
            throw RunError.damaged(
                path: run.model.relativePath,
                reason: "it is missing: the run has not come to its first evaluation or end")
        }
        let file = try SafetensorsFile(run.model)
        let tensors = try file.tensors()
        if let stated = file.metadata[WeightsChecksum.key], stated != WeightsChecksum.text(of: tensors) {
            throw RunError.damaged(path: run.model.relativePath, reason: "its checksum is wrong")
        }
        do {
            _ = try model.module.load(tensors, matching: .strict)
        } catch let error as LoadError {
            throw RunError.damaged(path: run.model.relativePath, reason: "\(error)")
        }
        model.module.evaluate()
        return (description, model)
    }

    private static func build(_ file: URL) throws -> (ModelDescription, TaskModel) {
        func damaged(_ reason: String) -> RunError { .damaged(path: file.relativePath, reason: reason) }
        guard let data = try? Data(contentsOf: file) else { throw damaged("it is missing or cannot be read") }
        do {
            let description = try JSONDecoder().decode(ModelDescription.self, from: data)
            return (description, try withTorchErrors { try description.build(using: RandomGenerator(seed: 0)) })
        } catch let error as ConfigurationError {
            throw damaged("\(error)")
        } catch let error as DecodingError {
            throw damaged(error.sentence)
        }
    }
}

/// Finds bits of `model.safetensors` that have changed on the disk; other programs ignore it.
enum WeightsChecksum {
    static let key = "crc32c"

    /// Of the tensors' bytes, in the order of their names.
    static func text(of tensors: [String: Tensor]) -> String {
        var crc = CRC32C()
        for (_, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
            tensor.detached().withBytes { crc.update($0) }
        }
        return String(crc.value, radix: 16)
    }
}

extension DecodingError {
    /// What JSONDecoder found wrong, and where, in a sentence.
    fileprivate var sentence: String {
        func place(_ context: Context) -> String {
            context.codingPath.isEmpty ? "" : "'\(context.codingPath.map(\.stringValue).joined(separator: "."))': "
        }
        return switch self {
        case .keyNotFound(let key, let context): "\(place(context))missing key '\(key.stringValue)'"
        case .typeMismatch(let type, let context): "\(place(context))expected \(type)"
        case .valueNotFound(let type, let context): "\(place(context))expected \(type), found nothing"
        case .dataCorrupted(let context) where context.codingPath.isEmpty: "it is no JSON"
        case .dataCorrupted(let context): "\(place(context))\(context.debugDescription)"
        @unknown default: "it is not a model's description"
        }
    }
}

extension Recipe {
    /// The model that the recipe asks for, without opening its data.
    ///
    /// - Throws: ``RecipeError``.
    public func modelDescription() throws -> ModelDescription {
        let configuration = try decodeModel(ModelConfiguration.self)
        return switch data {
        case .bytes(let data): Self.languageModel(256, data.length, configuration)
        case .enwik8(let data): Self.languageModel(256, data.length, configuration)
        case .copy(let data): Self.languageModel(data.symbols + 1, data.length, configuration)
        case .listops(let data):
            ModelDescription(
                kind: .classifier, vocabulary: ListOpsToken.vocabularySize, classes: ListOpsToken.classes,
                maximumLength: data.length, model: configuration)
        case .mnist: try images(ImageShape(channels: 1, height: 28, width: 28), configuration)
        case .cifar10: try images(ImageShape(channels: 3, height: 32, width: 32), configuration)
        case .ett(let data), .series(let data):
            ModelDescription(
                series: ForecastShape(channels: data.channels, lookback: data.lookback, horizon: data.horizon),
                model: configuration)
        }
    }

    /// Of ten classes, as both sets have; pixel by pixel, or in patches.
    private func images(_ image: ImageShape, _ configuration: ModelConfiguration) throws -> ModelDescription {
        guard task == .imageClassification else {
            return ModelDescription(
                kind: .classifier, vocabulary: 256, classes: 10,
                maximumLength: image.channels * image.height * image.width, model: configuration)
        }
        do {
            return try ModelDescription(image: image, classes: 10, model: configuration)
        } catch let error as ConfigurationError {
            throw RecipeError(.invalid("\(error)"), keyPath: "model", place: model.place)
        }
    }

    private static func languageModel(
        _ vocabulary: Int, _ length: Int, _ configuration: ModelConfiguration
    ) -> ModelDescription {
        ModelDescription(kind: .languageModel, vocabulary: vocabulary, maximumLength: length, model: configuration)
    }
}

extension DataRecipe {
    /// Opens or generates the data.
    ///
    /// - Throws: `DatasetError`.
    public func open(seed: UInt64) throws -> any TrainingDataset {
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
        case .mnist(let data):
            let images = try ImageDataset.mnist(
                contentsOf: URL(fileURLWithPath: data.path), validationCount: data.validationExamples)
            guard images.size == ImageSize(channels: 1, height: 28, width: 28) else {
                throw DatasetError.malformedFile(
                    path: data.path,
                    reason: "its images are \(images.size.height) by \(images.size.width), expected 28 by 28")
            }
            return images
        case .cifar10(let data):
            return try ImageDataset.cifar10(
                contentsOf: URL(fileURLWithPath: data.path), validationCount: data.validationExamples)
        case .ett(let data): return try data.open(split: .ett)
        case .series(let data): return try data.open(split: .shares(train: data.splits[0], test: data.splits[2]))
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

extension DataRecipe.Series {
    fileprivate func open(split: SeriesSplit) throws -> ForecastingSeries {
        try ForecastingSeries(
            contentsOf: URL(fileURLWithPath: path), split: split, channels: channels, lookback: lookback,
            horizon: horizon)
    }
}

extension SeriesBatch {
    var historyTensor: Tensor { Tensor(history, shape: [batch, channels, lookback]) }
    var futureTensor: Tensor { Tensor(future, shape: [batch, channels, horizon]) }
}

extension TokenBatch {
    var inputTensor: Tensor { Tensor(inputs, shape: [batch, length]).to(.int64) }
    var targetTensor: Tensor { Tensor(targets).to(.int64) }
    var maskTensor: Tensor? { paddingMask.map { Tensor($0, shape: [batch, length]) } }
}
