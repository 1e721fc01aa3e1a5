import Torch

/// A section being read key by key.
struct SectionDecoder<Key: CodingKey>: KeyedDecodingContainerProtocol {
    let decoder: NodeDecoder
    let entries: [RecipeNode.Entry]

    var codingPath: [any CodingKey] { decoder.codingPath }
    var allKeys: [Key] { entries.compactMap { Key(stringValue: $0.key) } }

    func contains(_ key: Key) -> Bool { entry(key) != nil }

    func decodeNil(forKey key: Key) throws -> Bool {
        guard case .null = try inner(key).node.content else { return false }
        return true
    }

    func decode<Value: Decodable>(_ type: Value.Type, forKey key: Key) throws -> Value {
        try inner(key).decode(type)
    }

    func nestedContainer<NestedKey: CodingKey>(
        keyedBy type: NestedKey.Type, forKey key: Key
    ) throws -> KeyedDecodingContainer<NestedKey> {
        let nested = try inner(key)
        decoder.usage.nested.append(nested)
        return try nested.container(keyedBy: type)
    }

    func nestedUnkeyedContainer(forKey key: Key) throws -> any UnkeyedDecodingContainer {
        let nested = try inner(key)
        decoder.usage.nested.append(nested)
        return try nested.unkeyedContainer()
    }

    func superDecoder() throws -> any Decoder { decoder }

    func superDecoder(forKey key: Key) throws -> any Decoder {
        let nested = try inner(key)
        decoder.usage.nested.append(nested)
        return nested
    }

    private func entry(_ key: Key) -> RecipeNode.Entry? {
        decoder.usage.asked.append(key.stringValue)
        return entries.first { $0.key == key.stringValue }
    }

    private func inner(_ key: Key) throws(RecipeError) -> NodeDecoder {
        if let entry = entry(key) { return decoder.inner(entry.value, key) }
        // A key that is missing because it was misspelled: the misspelling is the better message.
        let unread = entries.filter { !decoder.usage.asked.contains($0.key) }
        if let typo = unread.first(where: { NearestName.find(for: $0.key, among: [key.stringValue]) != nil }) {
            throw decoder.unknownKey(typo, valid: [key.stringValue])
        }
        throw RecipeError(
            .missingKey, keyPath: NodeDecoder.text(of: codingPath + [key]), place: decoder.node.place)
    }
}

/// A list being read from its start.
struct ListDecoder: UnkeyedDecodingContainer {
    let decoder: NodeDecoder
    let values: [RecipeNode]
    private(set) var currentIndex = 0

    init(decoder: NodeDecoder, values: [RecipeNode]) {
        self.decoder = decoder
        self.values = values
    }

    var codingPath: [any CodingKey] { decoder.codingPath }
    var count: Int? { values.count }
    var isAtEnd: Bool { currentIndex >= values.count }

    mutating func decodeNil() throws -> Bool {
        guard !isAtEnd, case .null = values[currentIndex].content else { return false }
        currentIndex += 1
        return true
    }

    mutating func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        try next().decode(type)
    }

    mutating func nestedContainer<NestedKey: CodingKey>(
        keyedBy type: NestedKey.Type
    ) throws -> KeyedDecodingContainer<NestedKey> {
        let nested = try next()
        decoder.usage.nested.append(nested)
        return try nested.container(keyedBy: type)
    }

    mutating func nestedUnkeyedContainer() throws -> any UnkeyedDecodingContainer {
        let nested = try next()
        decoder.usage.nested.append(nested)
        return try nested.unkeyedContainer()
    }

    mutating func superDecoder() throws -> any Decoder {
        let nested = try next()
        decoder.usage.nested.append(nested)
        return nested
    }

    private mutating func next() throws(RecipeError) -> NodeDecoder {
        guard !isAtEnd else {
            throw decoder.error(.invalid("expected more than \(values.count) values in the list"))
        }
        defer { currentIndex += 1 }
        return decoder.inner(values[currentIndex], AnyKey(intValue: currentIndex))
    }
}

/// One value that a type reads as a whole.
struct ScalarDecoder: SingleValueDecodingContainer {
    let decoder: NodeDecoder

    var codingPath: [any CodingKey] { decoder.codingPath }

    func decodeNil() -> Bool {
        if case .null = decoder.node.content { true } else { false }
    }

    func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        try decoder.decode(type)
    }
}
