import Foundation
import Torch

/// What an experiment is: the task, its data, the model and how it is trained, as a YAML file says it.
///
/// Every key but `task`, `data` and `model` has a default. Unknown keys, wrong types and values out of range are
/// refused with a ``RecipeError`` that names the key's path and line.
public struct Recipe: Codable, Equatable, Sendable {
    /// What is learned.
    public enum Task: String, NamedChoice {
        case languageModel = "language-model"
        case classification
        case imageClassification = "image-classification"
        case forecasting
        case copy

        /// The kinds of data that the task can be trained on.
        var dataKinds: [DataRecipe.Kind] {
            switch self {
            case .languageModel: [.bytes, .enwik8]
            case .classification: [.listops, .mnist, .cifar10]
            case .imageClassification: [.mnist, .cifar10]
            case .forecasting: [.ett, .series]
            case .copy: [.copy]
            }
        }
    }

    /// The run's name; that of the file where the recipe gives none.
    public var name: String
    public var task: Task
    /// Of initial weights, batches and dropout.
    public var seed: Int
    public var data: DataRecipe
    /// The model's section as it was written; ``decodeModel(_:)`` gives it a type.
    public var model: RecipeNode
    public var optimizer: OptimizerRecipe
    public var schedule: ScheduleRecipe
    public var training: TrainingRecipe

    public init(
        name: String, task: Task, seed: Int = 0, data: DataRecipe, model: RecipeNode,
        optimizer: OptimizerRecipe = OptimizerRecipe(), schedule: ScheduleRecipe = ScheduleRecipe(),
        training: TrainingRecipe = TrainingRecipe()
    ) {
        self.name = name
        self.task = task
        self.seed = seed
        self.data = data
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.training = training
    }

    enum CodingKeys: String, CodingKey, CaseIterable {
        case name, task, seed, data, model, optimizer, schedule, training
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        name = try values.value(.name, default: "")
        task = try values.decode(Task.self, forKey: .task)
        seed = try values.value(.seed, default: 0, .atLeast(0))
        data = try values.decode(DataRecipe.self, forKey: .data)
        model = try values.decode(RecipeNode.self, forKey: .model)
        optimizer = try values.value(.optimizer, default: OptimizerRecipe())
        schedule = try values.value(.schedule, default: ScheduleRecipe())
        training = try values.value(.training, default: TrainingRecipe())
        guard task.dataKinds.contains(data.kind) else {
            let kinds = task.dataKinds.map(\.rawValue).joined(separator: " or ")
            throw DecodingError.dataCorrupted(
                DecodingError.Context(
                    codingPath: decoder.codingPath + [CodingKeys.data, AnyKey("kind")],
                    debugDescription: "expected \(kinds) for the task \(task.rawValue), found \(data.kind.rawValue)"))
        }
        guard case .section = model.content else {
            throw DecodingError.dataCorruptedError(
                forKey: .model, in: values, debugDescription: "expected a section of keys, found \(model.summary)")
        }
    }
}

extension Recipe {
    /// Reads a recipe file and applies overrides such as `model.layers=2` in their order.
    ///
    /// - Throws: ``RecipeError``.
    public init(contentsOf url: URL, overrides: [String] = []) throws {
        let node = try RecipeNode(contentsOf: url)
        let name = url.deletingPathExtension().lastPathComponent
        self = try Self.decode(node, overrides: overrides, defaultName: name)
    }

    /// Reads a recipe from YAML text; `name` stands for the file in error texts.
    ///
    /// - Throws: ``RecipeError``.
    public init(yaml text: String, name: String, overrides: [String] = []) throws {
        self = try Self.decode(RecipeNode(yaml: text, name: name), overrides: overrides, defaultName: name)
    }

    /// The recipe with all defaults written out, as `recipe.yaml` of a run holds it.
    public func yaml() throws -> String {
        try RecipeEncoder.encode(self).yaml()
    }

    /// The model's section as a configuration type, with errors that name `model.…` and the line.
    ///
    /// - Throws: ``RecipeError``.
    public func decodeModel<Configuration: Decodable>(_ type: Configuration.Type) throws -> Configuration {
        try RecipeDecoder.decode(type, from: model, at: ["model"])
    }

    /// The key paths at which this recipe differs from another, defaults written out.
    public func differences(from other: Recipe) throws -> [String] {
        try RecipeEncoder.encode(self).differences(from: RecipeEncoder.encode(other))
    }

    private static func decode(_ node: RecipeNode, overrides: [String], defaultName: String) throws -> Recipe {
        var node = node
        guard case .section = node.content else {
            throw RecipeError(.invalid("expected a section of keys, found \(node.summary)"), place: node.place)
        }
        for override in overrides { try node.set(override) }
        var recipe = try RecipeDecoder.decode(Recipe.self, from: node)
        if recipe.name.isEmpty { recipe.name = defaultName }
        return recipe
    }
}
