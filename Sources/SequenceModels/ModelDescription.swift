import Foundation
import SequenceMixers
import Torch
import TorchNN

/// Everything needed to build a model again: as `config.json` in a run directory.
public struct ModelDescription: Codable, Sendable {
    public enum Kind: String, NamedChoice {
        case languageModel = "language-model"
        case classifier
        case imageClassifier = "image-classifier"
        case forecaster

        fileprivate var owner: String {
            switch self {
            case .languageModel: "a language model's"
            case .classifier: "a classifier's"
            case .imageClassifier: "an image classifier's"
            case .forecaster: "a forecaster's"
            }
        }
    }

    public var kind: Kind
    /// Of a model of tokens: ids are `0 ..< vocabulary`.
    public var vocabulary: Int?
    /// Of a classifier.
    public var classes: Int?
    /// Of an image classifier.
    public var image: ImageShape?
    /// Of a forecaster.
    public var series: ForecastShape?
    /// The longest sequence the model was made for; learned positions end there.
    public var maximumLength: Int
    public var model: ModelConfiguration

    /// Of a model of tokens.
    public init(kind: Kind, vocabulary: Int, classes: Int? = nil, maximumLength: Int, model: ModelConfiguration) {
        self.kind = kind
        self.vocabulary = vocabulary
        self.classes = classes
        self.maximumLength = maximumLength
        self.model = model
    }

    /// Of an image classifier.
    ///
    /// - Throws: `ConfigurationError` where the patches do not divide the image.
    public init(image: ImageShape, classes: Int, model: ModelConfiguration) throws {
        kind = .imageClassifier
        self.image = image
        self.classes = classes
        maximumLength = try image.patches(of: model.patchSize)
        self.model = model
    }

    /// Of a forecaster.
    public init(series: ForecastShape, model: ModelConfiguration) {
        kind = .forecaster
        self.series = series
        maximumLength = series.channels
        self.model = model
    }

    /// Checks what can be checked without building anything, memory included.
    ///
    /// - Throws: `ConfigurationError` naming the first value that is out of range.
    public func validate() throws {
        try model.validate()
        guard vocabulary ?? 1 > 0, maximumLength > 0, classes ?? 1 > 0 else {
            throw ConfigurationError(
                "vocabulary \(vocabulary ?? 1), classes \(classes ?? 1) and maximumLength \(maximumLength) must be "
                    + "above 0")
        }
        try series?.validate()
        _ = try image?.patches(of: model.patchSize)
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
        let entrance =
            Double(vocabulary ?? 0) + Double(image.map { $0.channels * model.patchSize * model.patchSize } ?? 0)
        let ends = entrance + Double(classes ?? vocabulary ?? series?.horizon ?? 0)
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
            let vocabulary = try needed(vocabulary, "its vocabulary")
            return .language(
                try LanguageModel(model, vocabulary: vocabulary, maximumLength: maximumLength, using: generator))
        case .classifier:
            let vocabulary = try needed(vocabulary, "its vocabulary")
            let classes = try needed(classes, "its number of classes")
            return .classifier(
                try SequenceClassifier(
                    model, vocabulary: vocabulary, classes: classes, maximumLength: maximumLength, using: generator))
        case .imageClassifier:
            let image = try needed(image, "the sizes of its images")
            let classes = try needed(classes, "its number of classes")
            return .image(try PatchClassifier(model, image, classes: classes, using: generator))
        case .forecaster:
            return .forecaster(try Forecaster(model, needed(series, "the sizes of its series"), using: generator))
        }
    }

    private func needed<Value>(_ value: Value?, _ what: String) throws -> Value {
        guard let value else { throw ConfigurationError("\(kind.owner) description needs \(what)") }
        return value
    }
}

/// A model by what it is for.
public enum TaskModel {
    case language(LanguageModel)
    case classifier(SequenceClassifier)
    case image(PatchClassifier)
    case forecaster(Forecaster)

    public var module: Module {
        switch self {
        case .language(let model): model
        case .classifier(let model): model
        case .image(let model): model
        case .forecaster(let model): model
        }
    }

    /// Logits of the next token `[batch, length, vocabulary]`, or of the class `[batch, classes]`, for ids `[batch,
    /// length]` or pixels `[batch, pixels]`; the future `[batch, channels, horizon]` for a history `[batch, channels,
    /// lookback]`.
    public func callAsFunction(_ input: Tensor, paddingMask: Tensor? = nil) -> Tensor {
        switch self {
        case .language(let model): model(input, paddingMask: paddingMask)
        case .classifier(let model): model(input, paddingMask: paddingMask)
        case .image(let model): model(input)
        case .forecaster(let model): model(input)
        }
    }
}
