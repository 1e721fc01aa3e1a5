import SequenceMixers
import Torch
import TorchNN

/// Everything needed to build a model again: as `config.json` in a run directory.
public struct ModelDescription: Codable, Sendable {
    public enum Kind: String, Codable, Sendable {
        case languageModel = "language-model"
        case classifier
    }

    public var kind: Kind
    /// Token ids are `0 ..< vocabulary`.
    public var vocabulary: Int
    /// Of a classifier.
    public var classes: Int?
    /// The longest sequence the model was made for; learned positions end there.
    public var maximumLength: Int
    public var model: ModelConfiguration

    public init(kind: Kind, vocabulary: Int, classes: Int? = nil, maximumLength: Int, model: ModelConfiguration) {
        self.kind = kind
        self.vocabulary = vocabulary
        self.classes = classes
        self.maximumLength = maximumLength
        self.model = model
    }

    /// The model with newly drawn weights.
    ///
    /// - Throws: `ConfigurationError` naming what cannot be built.
    public func build(using generator: RandomGenerator) throws -> TaskModel {
        guard vocabulary > 0, maximumLength > 0 else {
            throw ConfigurationError("vocabulary \(vocabulary) and maximumLength \(maximumLength) must be above 0")
        }
        switch kind {
        case .languageModel:
            return .language(
                try LanguageModel(model, vocabulary: vocabulary, maximumLength: maximumLength, using: generator))
        case .classifier:
            guard let classes else {
                throw ConfigurationError("a classifier's description needs its number of classes")
            }
            return .classifier(
                try SequenceClassifier(
                    model, vocabulary: vocabulary, classes: classes, maximumLength: maximumLength, using: generator))
        }
    }
}

/// A model by what it is for.
public enum TaskModel {
    case language(LanguageModel)
    case classifier(SequenceClassifier)

    public var module: Module {
        switch self {
        case .language(let model): model
        case .classifier(let model): model
        }
    }

    /// Logits of the next token `[batch, length, vocabulary]`, or of the class `[batch, classes]`, for ids `[batch, length]`.
    public func callAsFunction(_ ids: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        switch self {
        case .language(let model): model(ids, paddingMask: paddingMask)
        case .classifier(let model): model(ids, paddingMask: paddingMask)
        }
    }
}
