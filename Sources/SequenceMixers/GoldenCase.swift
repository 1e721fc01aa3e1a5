import Foundation
import Torch
import TorchNN

/// What a golden file says of itself: the system, the variant, the settings, and given tensors such as random features.
///
/// A mechanism's catalogue entry reads it and builds the subject of the comparison. What nobody asked for is remembered, so
/// that a setting or tensor that was not understood is noticed.
public final class GoldenCase {
    public let system: String
    public let variant: String
    public let settings: GoldenSettings
    private let tensors: [String: Tensor]
    private var read: Set<String> = []

    /// - Parameter tensors: in the type that the comparison runs in.
    public init(system: String, variant: String, settings: GoldenSettings, tensors: [String: Tensor]) {
        self.system = system
        self.variant = variant
        self.settings = settings
        self.tensors = tensors
    }

    /// Refuses a variant that the mechanism does not know.
    public func expect(variants: [String]) throws {
        guard variants.contains(variant) else {
            throw ConfigurationError(
                "unknown variant '\(variant)' of \(system); known: \(variants.joined(separator: ", "))")
        }
    }

    public func optionalTensor(_ name: String) -> Tensor? {
        read.insert(name)
        return tensors[name]
    }

    public func tensor(_ name: String) throws -> Tensor {
        guard let tensor = optionalTensor(name) else { throw ConfigurationError("the file has no tensor '\(name)'") }
        return tensor
    }

    /// The tensors whose names begin so, by the rest of their names.
    public func tensors(prefixed prefix: String) -> [String: Tensor] {
        var found: [String: Tensor] = [:]
        for (name, tensor) in tensors where name.hasPrefix(prefix) {
            read.insert(name)
            found[String(name.dropFirst(prefix.count))] = tensor
        }
        return found
    }

    /// `padding_mask` `[batch, length]`, true for a real token; checked against the setting `padding`.
    public func paddingMask() throws -> Tensor? {
        let mask = optionalTensor("padding_mask").map { $0 .!= 0 }
        if let padding = try settings.optionalBool("padding"), padding != (mask != nil) {
            throw ConfigurationError(
                "setting 'padding' is \(padding), but the file has \(mask == nil ? "no" : "a") padding_mask")
        }
        return mask
    }

    /// Refuses a file whose setting, if it has it, contradicts the shapes of its tensors.
    public func check(_ key: String, _ size: Int) throws {
        if let value = try settings.optionalInt(key), value != size {
            throw ConfigurationError("setting '\(key)' is \(value), but the tensors say \(size)")
        }
    }

    /// The tensors that were never asked for, in order.
    public var unreadTensors: [String] { tensors.keys.filter { !read.contains($0) }.sorted() }
}

/// What a golden file's numbers are compared with.
public enum GoldenSubject {
    /// A core for q, k, v; layers and encoders of the file are built around it. The file's `param.NAME` of a core are its
    /// own parameters, under the names that `parameterName` gives.
    case core(any AttentionCore, parameterName: (String) -> String = { $0 })
    /// Anything else: the mechanism says itself what its inputs and outputs are.
    case evaluation(GoldenEvaluation)
}

/// A comparison of a mechanism that is more than a core between projections.
public struct GoldenEvaluation {
    /// What the file's `param.NAME` are loaded into; nil when it has none.
    public var module: Module?
    /// From the `NAME` of a file's `param.NAME` to the property path of the module's parameter.
    public var parameterName: (String) -> String
    /// The file's tensors that go in, in the order that `outputs` takes them; they have gradients `grad.NAME`.
    public var inputs: [String]
    /// Everything to compare, by its name in the file. `out` is what the file's `cotangent` belongs to: the gradients of
    /// inputs and parameters are taken from it.
    public var outputs: (_ inputs: [Tensor], _ usesReference: Bool) throws -> [String: Tensor]

    public init(
        _ module: Module? = nil, inputs: [String] = ["x"], parameterName: @escaping (String) -> String = { $0 },
        outputs: @escaping (_ inputs: [Tensor], _ usesReference: Bool) throws -> [String: Tensor]
    ) {
        self.module = module
        self.parameterName = parameterName
        self.inputs = inputs
        self.outputs = outputs
    }

    /// A mixer on the file's `x`, to its `out`.
    public init(
        _ mixer: any SequenceMixer, paddingMask: Tensor? = nil, parameterName: @escaping (String) -> String = { $0 }
    ) {
        self.init(mixer, parameterName: parameterName) { inputs, usesReference in
            (mixer as? any ReferenceEvaluating)?.usesReference = usesReference
            return ["out": mixer(inputs[0], paddingMask: paddingMask)]
        }
    }
}

/// A golden file's settings. Remembers which were read, so that one nobody understood is noticed.
public final class GoldenSettings {
    private let values: [String: GoldenValue]
    private var read: Set<String> = []

    public init(_ values: [String: GoldenValue]) { self.values = values }

    /// The keys that were never asked for, in order.
    public var unread: [String] { values.keys.filter { !read.contains($0) }.sorted() }

    public func string(_ key: String) throws -> String {
        guard case .string(let value) = try required(key) else { throw mistyped(key, "a string") }
        return value
    }

    public func bool(_ key: String) throws -> Bool {
        guard case .bool(let value) = try required(key) else { throw mistyped(key, "true or false") }
        return value
    }

    public func double(_ key: String) throws -> Double {
        guard case .number(let value) = try required(key) else { throw mistyped(key, "a number") }
        return value
    }

    public func int(_ key: String) throws -> Int {
        guard let value = Int(exactly: try double(key)) else { throw mistyped(key, "a whole number") }
        return value
    }

    /// Whether there is a value; `null` is none.
    public func contains(_ key: String) -> Bool {
        if case .null? = values[key] { read.insert(key) }
        switch values[key] {
        case nil, .null?: return false
        default: return true
        }
    }

    /// Settings that only describe, to a person, what others say already.
    public func describe(_ keys: String...) { read.formUnion(keys) }

    public func array(_ key: String) throws -> [GoldenValue] {
        guard case .array(let values) = try required(key) else { throw mistyped(key, "a list") }
        return values
    }

    public func ints(_ key: String) throws -> [Int] {
        try array(key).map {
            guard case .number(let value) = $0, let number = Int(exactly: value) else {
                throw mistyped(key, "a list of whole numbers")
            }
            return number
        }
    }

    public func strings(_ key: String) throws -> [String] {
        try array(key).map {
            guard case .string(let value) = $0 else { throw mistyped(key, "a list of strings") }
            return value
        }
    }

    public func optionalDouble(_ key: String) throws -> Double? { contains(key) ? try double(key) : nil }
    public func optionalInt(_ key: String) throws -> Int? { contains(key) ? try int(key) : nil }
    public func optionalBool(_ key: String) throws -> Bool? { contains(key) ? try bool(key) : nil }
    public func optionalString(_ key: String) throws -> String? { contains(key) ? try string(key) : nil }

    /// A setting of which only some values are supported.
    public func double(_ key: String, or standard: Double, expecting supported: [Double]) throws -> Double {
        let value = try optionalDouble(key) ?? standard
        guard supported.contains(value) else { throw unsupported(key, "\(value)", supported.map { "\($0)" }) }
        return value
    }

    public func string(_ key: String, or standard: String, expecting supported: [String]) throws -> String {
        let value = try optionalString(key) ?? standard
        guard supported.contains(value) else { throw unsupported(key, value, supported) }
        return value
    }

    private func required(_ key: String) throws -> GoldenValue {
        guard let value = values[key] else { throw ConfigurationError("the settings have no key '\(key)'") }
        read.insert(key)
        return value
    }

    private func mistyped(_ key: String, _ expected: String) -> ConfigurationError {
        ConfigurationError("setting '\(key)' should be \(expected)")
    }

    private func unsupported(_ key: String, _ value: String, _ supported: [String]) -> ConfigurationError {
        ConfigurationError("setting '\(key)' is '\(value)'; known: \(supported.joined(separator: ", "))")
    }
}

/// A value in a golden file's settings.
public enum GoldenValue: Decodable, Sendable {
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([GoldenValue])
    case object([String: GoldenValue])
    case null

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([GoldenValue].self) {
            self = .array(value)
        } else if let value = try? container.decode([String: GoldenValue].self) {
            self = .object(value)
        } else {
            self = .null
        }
    }
}
