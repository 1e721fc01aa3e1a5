import Foundation
import SequenceMixers
import Torch
import TorchNN

/// Everything needed to build a model again: as `config.json` in a run directory.
public struct ModelDescription: Codable, Sendable {
    public enum Kind: String, NamedChoice {
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

    /// Checks what can be checked without building anything, memory included.
    ///
    /// - Throws: `ConfigurationError` naming the first value that is out of range.
    public func validate() throws {
        try model.validate()
        guard vocabulary > 0, maximumLength > 0, classes ?? 1 > 0 else {
            throw ConfigurationError(
                "vocabulary \(vocabulary), classes \(classes ?? 1) and maximumLength \(maximumLength) must be above 0")
        }
        // Asked of the system, so many bytes would end the process rather than throw.
        let memory = Double(ProcessInfo.processInfo.physicalMemory)
        guard 4 * approximateParameterCount <= memory else {
            throw ConfigurationError(
                String(format: "the model would have about %.1e parameters, too many for ", approximateParameterCount)
                    + String(format: "this machine's %.0f GB of memory", memory / 1e9))
        }
    }

    /// Without the mixers' own extras. A real number, since a description may ask for anything.
    private var approximateParameterCount: Double {
        let (d, feedForward) = (Double(model.modelDim), Double(model.resolvedFeedForwardDim))
        let ends = Double(vocabulary) + Double(classes ?? vocabulary)
        let positions = model.position == .learned ? Double(maximumLength) : 0
        return Double(model.layers) * (4 * d * d + 2 * d * feedForward) + (ends + positions) * d
    }

    /// The model with newly drawn weights.
    ///
    /// - Throws: `ConfigurationError` naming what cannot be built.
    public func build(using generator: RandomGenerator) throws -> TaskModel {
        try validate()
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
