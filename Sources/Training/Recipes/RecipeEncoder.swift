/// Turns values back into recipe nodes, with keys in the order in which they are encoded.
public enum RecipeEncoder {
    /// - Throws: what the value's `encode(to:)` throws.
    public static func encode(_ value: some Encodable) throws -> RecipeNode {
        let encoder = NodeEncoder(codingPath: [])
        try encoder.encode(value)
        return encoder.slot.node
    }
}

/// A node under construction. Containers of one encoder share it, as `Encodable` allows.
private final class Slot {
    var content: RecipeNode.Content?
    var keys: [String] = []
    var inner: [Slot] = []
    var isSection = false
    var isList = false

    var node: RecipeNode {
        if isSection {
            return RecipeNode(.section(zip(keys, inner).map { RecipeNode.Entry(key: $0, value: $1.node) }))
        }
        if isList { return RecipeNode(.list(inner.map(\.node))) }
        return RecipeNode(content ?? .null)
    }

    func slot(for key: String) -> Slot {
        if let index = keys.firstIndex(of: key) { return inner[index] }
        keys.append(key)
        inner.append(Slot())
        return inner[inner.count - 1]
    }

    func appended() -> Slot {
        inner.append(Slot())
        return inner[inner.count - 1]
    }
}

private struct NodeEncoder: Encoder, SingleValueEncodingContainer {
    var slot = Slot()
    let codingPath: [any CodingKey]
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func container<Key: CodingKey>(keyedBy type: Key.Type) -> KeyedEncodingContainer<Key> {
        slot.isSection = true
        return KeyedEncodingContainer(SectionEncoder<Key>(slot: slot, codingPath: codingPath))
    }

    func unkeyedContainer() -> any UnkeyedEncodingContainer {
        slot.isList = true
        return ListEncoder(slot: slot, codingPath: codingPath)
    }

    func singleValueContainer() -> any SingleValueEncodingContainer { self }

    func encodeNil() { slot.content = .null }

    func encode<Value: Encodable>(_ value: Value) throws {
        switch value {
        case let value as Bool: slot.content = .boolean(value)
        case let value as String: slot.content = .text(value)
        case let value as Double: slot.content = .number(value)
        // Through text, so that 0.1 does not become 0.10000000149011612.
        case let value as Float: slot.content = .number(Double("\(value)") ?? Double(value))
        case let value as any FixedWidthInteger:
            guard let integer = Int(exactly: value) else {
                let text = "\(value) does not fit into an integer of a recipe"
                throw EncodingError.invalidValue(
                    value, EncodingError.Context(codingPath: codingPath, debugDescription: text))
            }
            slot.content = .integer(integer)
        default: try value.encode(to: self)
        }
    }
}

private struct SectionEncoder<Key: CodingKey>: KeyedEncodingContainerProtocol {
    let slot: Slot
    let codingPath: [any CodingKey]

    func encodeNil(forKey key: Key) { slot.slot(for: key.stringValue).content = .null }

    func encode<Value: Encodable>(_ value: Value, forKey key: Key) throws {
        try encoder(key).encode(value)
    }

    func nestedContainer<NestedKey: CodingKey>(
        keyedBy type: NestedKey.Type, forKey key: Key
    ) -> KeyedEncodingContainer<NestedKey> {
        encoder(key).container(keyedBy: type)
    }

    func nestedUnkeyedContainer(forKey key: Key) -> any UnkeyedEncodingContainer { encoder(key).unkeyedContainer() }

    func superEncoder() -> any Encoder { NodeEncoder(slot: slot, codingPath: codingPath) }

    func superEncoder(forKey key: Key) -> any Encoder { encoder(key) }

    private func encoder(_ key: Key) -> NodeEncoder {
        NodeEncoder(slot: slot.slot(for: key.stringValue), codingPath: codingPath + [key])
    }
}

private struct ListEncoder: UnkeyedEncodingContainer {
    let slot: Slot
    let codingPath: [any CodingKey]

    var count: Int { slot.inner.count }

    func encodeNil() { slot.appended().content = .null }

    func encode<Value: Encodable>(_ value: Value) throws { try encoder().encode(value) }

    func nestedContainer<NestedKey: CodingKey>(keyedBy type: NestedKey.Type) -> KeyedEncodingContainer<NestedKey> {
        encoder().container(keyedBy: type)
    }

    func nestedUnkeyedContainer() -> any UnkeyedEncodingContainer { encoder().unkeyedContainer() }

    func superEncoder() -> any Encoder { encoder() }

    private func encoder() -> NodeEncoder {
        let key = AnyKey(intValue: slot.inner.count)
        return NodeEncoder(slot: slot.appended(), codingPath: codingPath + [key])
    }
}
