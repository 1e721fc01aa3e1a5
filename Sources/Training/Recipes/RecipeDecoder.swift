import Torch

/// Decodes recipes strictly: a key that nobody reads, a value of the wrong type or a missing key is an error with the
/// key's path and line.
///
/// The valid keys of a section are those that the decoding asked for, and all cases of a `CodingKeys` that is
/// `CaseIterable`. So a type may read the name of a mechanism and hand its decoder on to that mechanism's options: both
/// then share the section's keys. Errors that an `init(from:)` throws keep their text and gain path and place.
public enum RecipeDecoder {
    /// - Parameters:
    ///   - path: the keys that lead from the recipe's root to the node, as in `["model"]`.
    ///   - ignoring: keys of the node itself that someone else reads.
    /// - Throws: ``RecipeError``.
    public static func decode<Value: Decodable>(
        _ type: Value.Type, from node: RecipeNode, at path: [String] = [], ignoring: Set<String> = []
    ) throws -> Value {
        let decoder = NodeDecoder(node: node, codingPath: path.map { AnyKey($0) })
        decoder.usage.asked = ignoring.sorted()
        return try decoder.decode(type)
    }
}

/// The keys that were asked for in one section, and the sections inside it that have no decoder of their own.
final class KeyUsage {
    var asked: [String] = []
    var nested: [NodeDecoder] = []
}

struct NodeDecoder: Decoder {
    let node: RecipeNode
    let codingPath: [any CodingKey]
    let usage = KeyUsage()
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func container<Key: CodingKey>(keyedBy type: Key.Type) throws -> KeyedDecodingContainer<Key> {
        guard case .section(let entries) = node.content else { throw mismatch("a section of keys") }
        if let type = type as? any CaseIterable.Type { usage.asked += Self.names(of: type) }
        return KeyedDecodingContainer(SectionDecoder<Key>(decoder: self, entries: entries))
    }

    func unkeyedContainer() throws -> any UnkeyedDecodingContainer {
        guard case .list(let values) = node.content else { throw mismatch("a list") }
        return ListDecoder(decoder: self, values: values)
    }

    func singleValueContainer() throws -> any SingleValueDecodingContainer { ScalarDecoder(decoder: self) }

    /// The value at this node, with every key below it accounted for.
    func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        if let value = try plainValue(type) { return value }
        do {
            let value = try Value(from: self)
            try refuseUnknownKeys()
            return value
        } catch let error as RecipeError {
            throw error
        } catch let error as DecodingError {
            throw located(error)
        } catch {
            throw self.error(.invalid("\(error)"))
        }
    }

    func error(_ problem: RecipeError.Problem) -> RecipeError {
        RecipeError(problem, keyPath: Self.text(of: codingPath), place: node.place)
    }

    func mismatch(_ expected: String) -> RecipeError {
        error(.invalid("expected \(expected), found \(node.summary)"))
    }

    func inner(_ node: RecipeNode, _ key: any CodingKey) -> NodeDecoder {
        NodeDecoder(node: node, codingPath: codingPath + [key])
    }

    static func text(of path: [any CodingKey]) -> String {
        path.reduce(into: "") { text, key in
            if let index = key.intValue {
                text += "[\(index)]"
            } else {
                text += text.isEmpty ? key.stringValue : ".\(key.stringValue)"
            }
        }
    }

    private func refuseUnknownKeys() throws(RecipeError) {
        for decoder in usage.nested { try decoder.refuseUnknownKeys() }
        guard !usage.asked.isEmpty, case .section(let entries) = node.content else { return }
        guard let unknown = entries.first(where: { !usage.asked.contains($0.key) }) else { return }
        var valid: [String] = []
        for key in usage.asked where !valid.contains(key) { valid.append(key) }
        throw unknownKey(unknown, valid: valid)
    }

    func unknownKey(_ entry: RecipeNode.Entry, valid: [String]) -> RecipeError {
        RecipeError(
            .unknownKey(hint: NearestName.hint(for: entry.key, among: valid)),
            keyPath: Self.text(of: codingPath + [AnyKey(entry.key)]), place: entry.place)
    }

    /// An error of a type's own checks, moved to the value that it speaks of.
    private func located(_ error: DecodingError) -> RecipeError {
        let (context, text): (DecodingError.Context, String) =
            switch error {
            case .keyNotFound(let key, let context): (context, "missing key '\(key.stringValue)'")
            case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
                (context, context.debugDescription)
            @unknown default: (DecodingError.Context(codingPath: codingPath, debugDescription: ""), "\(error)")
            }
        var place = node.place
        var current = node
        for key in context.codingPath.dropFirst(codingPath.count) {
            let next: RecipeNode? =
                if case .list(let values) = current.content, let index = key.intValue, values.indices.contains(index) {
                    values[index]
                } else {
                    current[key.stringValue]
                }
            guard let next else { break }
            current = next
            if !next.place.isEmpty { place = next.place }
        }
        let path = context.codingPath.count >= codingPath.count ? context.codingPath : codingPath
        return RecipeError(.invalid(text), keyPath: Self.text(of: path), place: place)
    }

    private static func names<Keys: CaseIterable>(of type: Keys.Type) -> [String] {
        type.allCases.compactMap { ($0 as? any CodingKey)?.stringValue }
    }
}

// MARK: - Scalars

extension NodeDecoder {
    /// The value where its type is one of YAML's own; `nil` where the type decodes itself.
    private func plainValue<Value>(_ type: Value.Type) throws(RecipeError) -> Value? {
        switch type {
        case is RecipeNode.Type: return node as? Value
        case is String.Type:
            guard case .text(let text) = node.content else {
                throw mismatch(isScalarButText ? "text (put it in quotes)" : "text")
            }
            return text as? Value
        case is Bool.Type:
            guard case .boolean(let value) = node.content else { throw mismatch("true or false") }
            return value as? Value
        case is Double.Type: return try number() as? Value
        case is Float.Type: return Float(try number()) as? Value
        default:
            guard let type = type as? any FixedWidthInteger.Type else { return nil }
            return try integer(type) as? Value
        }
    }

    private var isScalarButText: Bool {
        switch node.content {
        case .boolean, .integer, .number: true
        default: false
        }
    }

    private func number() throws(RecipeError) -> Double {
        switch node.content {
        case .number(let value):
            guard value.isFinite else { throw mismatch("a finite number") }
            return value
        case .integer(let value): return Double(value)
        default: throw mismatch("a number")
        }
    }

    private func integer<Integer: FixedWidthInteger>(_ type: Integer.Type) throws(RecipeError) -> Integer {
        let value: Integer? =
            switch node.content {
            case .integer(let value): Integer(exactly: value)
            case .number(let value): Integer(exactly: value)
            default: nil
            }
        if let value { return value }
        guard case .integer = node.content else { throw mismatch("an integer") }
        throw mismatch("an integer from \(type.min) to \(type.max)")
    }
}
