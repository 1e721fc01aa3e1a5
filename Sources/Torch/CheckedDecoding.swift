/// The values a setting may have, with words for the message that refuses others.
public struct Bounds<Value: Comparable & Sendable>: Sendable, CustomStringConvertible {
    private var lower: Value?
    private var upper: Value?
    private var includesLower = true
    private var includesUpper = true

    /// `lower` and above.
    public static func atLeast(_ lower: Value) -> Bounds { Bounds(lower: lower) }
    /// Above `lower`, itself left out.
    public static func above(_ lower: Value) -> Bounds { Bounds(lower: lower, includesLower: false) }
    /// From `lower` to `upper`, both included.
    public static func between(_ lower: Value, and upper: Value) -> Bounds { Bounds(lower: lower, upper: upper) }
    /// At least `lower` and less than `upper`.
    public static func from(_ lower: Value, below upper: Value) -> Bounds {
        Bounds(lower: lower, upper: upper, includesUpper: false)
    }

    /// Whether the value lies within; NaN never does.
    public func contains(_ value: Value) -> Bool {
        // Written so that a NaN is outside every bound.
        if let lower { guard includesLower ? value >= lower : value > lower else { return false } }
        if let upper { guard includesUpper ? value <= upper : value < upper else { return false } }
        return true
    }

    public var description: String {
        let from = lower.map { includesLower ? "at least \($0)" : "more than \($0)" }
        let to = upper.map { includesUpper ? "at most \($0)" : "less than \($0)" }
        return [from, to].compactMap { $0 }.joined(separator: " and ")
    }
}

extension KeyedDecodingContainer {
    /// The value of `key`, or `standard` where it is absent or null.
    public func value<Value: Decodable>(_ key: Key, default standard: Value) throws -> Value {
        try decodeIfPresent(Value.self, forKey: key) ?? standard
    }

    /// The value of `key`, or `standard` where it is absent or null, refused when out of bounds.
    ///
    /// - Throws: `DecodingError.dataCorrupted` with the key's path and a text such as
    ///   `expected at least 1, found 0`, besides what decoding throws. Infinite numbers are out of every bound.
    public func value<Value: Decodable & Comparable & Sendable>(
        _ key: Key, default standard: Value, _ bounds: Bounds<Value>
    ) throws -> Value {
        guard let value = try decodeIfPresent(Value.self, forKey: key) else { return standard }
        return try checked(value, key, bounds)
    }

    /// The value of a key that must be there, refused when out of bounds.
    public func value<Value: Decodable & Comparable & Sendable>(_ key: Key, _ bounds: Bounds<Value>) throws -> Value {
        try checked(decode(Value.self, forKey: key), key, bounds)
    }

    private func checked<Value: Comparable>(_ value: Value, _ key: Key, _ bounds: Bounds<Value>) throws -> Value {
        let infinite = (value as? any BinaryFloatingPoint)?.isFinite == false
        guard bounds.contains(value), !infinite else {
            throw DecodingError.dataCorruptedError(
                forKey: key, in: self, debugDescription: "expected \(bounds), found \(value)")
        }
        return value
    }
}

/// An enumeration of names, as in `norm: pre`, that refuses another name by listing its own.
///
/// Declare it as `enum Norm: String, NamedChoice { case pre, post }`.
public protocol NamedChoice: RawRepresentable, CaseIterable, Codable, Hashable, Sendable where RawValue == String {}

extension NamedChoice {
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let name = try container.decode(String.self)
        guard let choice = Self(rawValue: name) else {
            let names = Self.allCases.map(\.rawValue)
            var text = "expected one of \(names.joined(separator: ", ")), found '\(name.prefix(60))'"
            if let nearest = NearestName.find(for: name, among: names) { text += "; did you mean '\(nearest)'?" }
            throw DecodingError.dataCorruptedError(in: container, debugDescription: text)
        }
        self = choice
    }
}
