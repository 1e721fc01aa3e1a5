/// A value of a recipe before it has a type: what YAML says, and where it says so.
///
/// Sections keep the order of their keys. Two nodes are equal when their contents are, wherever they were written.
public struct RecipeNode: Sendable {
    public enum Content: Sendable {
        case null
        case boolean(Bool)
        case integer(Int)
        case number(Double)
        case text(String)
        case list([RecipeNode])
        case section([Entry])
    }

    /// A key of a section and its value.
    public struct Entry: Sendable {
        public var key: String
        /// Where the key was written, as in `demo.yaml:7`.
        public var place: String
        public var value: RecipeNode

        public init(key: String, place: String = "", value: RecipeNode) {
            self.key = key
            self.place = place
            self.value = value
        }
    }

    public var content: Content
    /// Where the value was written, as in `demo.yaml:7`; empty for one made by code.
    public var place: String

    public init(_ content: Content, place: String = "") {
        self.content = content
        self.place = place
    }

    /// The value of a key, where this is a section that has it.
    public subscript(key: String) -> RecipeNode? {
        guard case .section(let entries) = content else { return nil }
        return entries.first { $0.key == key }?.value
    }

    /// The content in words, for "expected an integer, found …".
    public var summary: String {
        switch content {
        case .null: "nothing"
        case .boolean(let value): "\(value)"
        case .integer(let value): "the integer \(value)"
        case .number(let value): "the number \(value)"
        case .text(let value): "the text '\(printable(value, limit: 60))'"
        case .list(let values): values.isEmpty ? "an empty list" : "a list of \(values.count)"
        case .section: "a section of keys"
        }
    }

    /// The key paths at which two nodes differ, in the order of this one, for "the recipe of the run has another …".
    public func differences(from other: RecipeNode, at path: String = "") -> [String] {
        guard case .section(let mine) = content, case .section(let theirs) = other.content else {
            return self == other ? [] : [path]
        }
        let added = theirs.map(\.key).filter { self[$0] == nil }
        return (mine.map(\.key) + added).flatMap { key -> [String] in
            let inner = path.isEmpty ? key : "\(path).\(key)"
            guard let left = self[key], let right = other[key] else { return [inner] }
            return left.differences(from: right, at: inner)
        }
    }
}

extension RecipeNode: Equatable {
    /// Equal contents, whatever their places and the order of keys.
    public static func == (a: RecipeNode, b: RecipeNode) -> Bool {
        switch (a.content, b.content) {
        case (.null, .null): true
        case (.boolean(let x), .boolean(let y)): x == y
        case (.integer(let x), .integer(let y)): x == y
        case (.number(let x), .number(let y)): x == y
        case (.integer(let x), .number(let y)), (.number(let y), .integer(let x)): Double(x) == y
        case (.text(let x), .text(let y)): x == y
        case (.list(let x), .list(let y)): x == y
        case (.section(let x), .section(let y)): x.count == y.count && x.allSatisfy { b[$0.key] == $0.value }
        default: false
        }
    }
}

extension RecipeNode: Codable {
    /// Any coding format will do: a node also travels through JSON.
    public init(from decoder: any Decoder) throws {
        if let container = try? decoder.container(keyedBy: AnyKey.self) {
            let entries = try container.allKeys.map {
                Entry(key: $0.stringValue, value: try container.decode(RecipeNode.self, forKey: $0))
            }
            self.init(.section(entries))
        } else if var container = try? decoder.unkeyedContainer() {
            var values: [RecipeNode] = []
            while !container.isAtEnd { values.append(try container.decode(RecipeNode.self)) }
            self.init(.list(values))
        } else {
            let container = try decoder.singleValueContainer()
            if container.decodeNil() {
                self.init(.null)
            } else if let value = try? container.decode(Bool.self) {
                self.init(.boolean(value))
            } else if let value = try? container.decode(Int.self) {
                self.init(.integer(value))
            } else if let value = try? container.decode(Double.self) {
                self.init(.number(value))
            } else {
                self.init(.text(try container.decode(String.self)))
            }
        }
    }

    public func encode(to encoder: any Encoder) throws {
        switch content {
        case .section(let entries):
            var container = encoder.container(keyedBy: AnyKey.self)
            for entry in entries { try container.encode(entry.value, forKey: AnyKey(entry.key)) }
        case .list(let values):
            var container = encoder.unkeyedContainer()
            for value in values { try container.encode(value) }
        default:
            var container = encoder.singleValueContainer()
            switch content {
            case .boolean(let value): try container.encode(value)
            case .integer(let value): try container.encode(value)
            case .number(let value): try container.encode(value)
            case .text(let value): try container.encode(value)
            default: try container.encodeNil()
            }
        }
    }
}

/// A key of any name or index.
struct AnyKey: CodingKey {
    var stringValue: String
    var intValue: Int?

    init(_ name: String) { stringValue = name }
    init(stringValue: String) { self.init(stringValue) }
    init(intValue: Int) {
        stringValue = "\(intValue)"
        self.intValue = intValue
    }
}
