import Torch
import TorchNN

/// A setting that cannot be built, in one sentence that says which, and what was expected.
public struct ConfigurationError: Error, Equatable, Sendable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// What the model around a mixer decides for it.
public struct MixerContext {
    public var modelDim: Int
    public var heads: Int
    public var isCausal: Bool
    /// The longest sequence the model will be given, where the model has a limit.
    public var maximumLength: Int?
    /// Whether queries and keys get rotary positions.
    public var usesRotary: Bool
    /// Draws initial weights, and random features where the mechanism has them.
    public var generator: RandomGenerator
    /// Which of the stack's blocks the mixer stands in, from 0, for mechanisms that change with the depth.
    public var layer = 0
    /// How many blocks the stack has.
    public var layers = 1
    /// What the mixers of one stack share.
    public var shared = SharedParts()

    public init(
        modelDim: Int, heads: Int, isCausal: Bool, maximumLength: Int? = nil, usesRotary: Bool = false,
        generator: RandomGenerator
    ) throws {
        guard modelDim > 0 else { throw ConfigurationError("modelDim must be above 0, not \(modelDim)") }
        guard heads > 0 else { throw ConfigurationError("heads must be above 0, not \(heads)") }
        guard modelDim.isMultiple(of: heads) else {
            throw ConfigurationError("modelDim \(modelDim) is not a multiple of heads \(heads)")
        }
        self.modelDim = modelDim
        self.heads = heads
        self.isCausal = isCausal
        self.maximumLength = maximumLength
        self.usesRotary = usesRotary
        self.generator = generator
    }

    public var headDim: Int { modelDim / heads }

    func rotaryEmbedding() throws -> RotaryEmbedding? {
        guard usesRotary else { return nil }
        guard headDim.isMultiple(of: 2) else {
            throw ConfigurationError("rotary positions need an even number of channels a head, not \(headDim)")
        }
        return RotaryEmbedding(headDim)
    }
}

/// What the mixers of one stack hold in common, such as a projection shared by all layers: made by the first that asks.
///
/// A module reached over several paths is counted, saved and trained once.
public final class SharedParts {
    private var parts: [String: Any] = [:]

    public init() {}

    public func part<Part>(_ name: String, _ make: () throws -> Part) rethrows -> Part {
        if let part = parts[name] as? Part { return part }
        let part = try make()
        parts[name] = part
        return part
    }
}

/// The settings of one mechanism: plain values that can be written in a recipe, and that build the mixer.
public protocol MixerOptions: Codable, Sendable {
    /// Without anything written, the mechanism's defaults.
    init()

    /// - Throws: ``ConfigurationError`` for a value out of range, or a mode the mechanism does not have.
    func build(_ context: MixerContext) throws -> any SequenceMixer
}

/// A mechanism's name with its options, as a recipe's `mixer:` has them, in one flat mapping.
public struct MixerConfiguration: Codable, Sendable {
    public let name: String
    public let options: any MixerOptions

    /// - Throws: ``ConfigurationError`` when no mechanism has the name.
    public init(_ name: String, _ options: (any MixerOptions)? = nil) throws {
        let entry = try MixerCatalogue.entry(named: name)
        if let options, type(of: options) != entry.options {
            throw ConfigurationError("mixer '\(name)' takes \(entry.options), not \(type(of: options))")
        }
        self.name = name
        self.options = options ?? entry.options.init()
    }

    private enum CodingKeys: String, CodingKey { case name }

    public init(from decoder: any Decoder) throws {
        let name = try decoder.container(keyedBy: CodingKeys.self).decode(String.self, forKey: .name)
        try self.init(name, MixerCatalogue.entry(named: name).options.init(from: decoder))
    }

    public func encode(to encoder: any Encoder) throws {
        try options.encode(to: encoder)
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(name, forKey: .name)
    }

    /// - Throws: ``ConfigurationError`` when the mechanism cannot be built so.
    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let entry = try MixerCatalogue.entry(named: name)
        if context.isCausal && !entry.causal {
            let reason = entry.whyNotCausal.map { ": \($0)" } ?? ""
            throw ConfigurationError("mixer '\(name)' has no causal form\(reason)")
        }
        if !context.isCausal && !entry.bidirectional {
            throw ConfigurationError("mixer '\(name)' has no bidirectional form")
        }
        if context.usesRotary && !entry.rotary {
            throw ConfigurationError("mixer '\(name)' takes no rotary positions; use position: learned or sinusoidal")
        }
        return try options.build(context)
    }
}
