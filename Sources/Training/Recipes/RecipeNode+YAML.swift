import Foundation
import Torch
import Yams

extension RecipeNode {
    /// Reads YAML text; JSON is YAML too.
    ///
    /// Plain scalars follow YAML 1.2: `true` and `false` are the only booleans, `yes` is text, `1e-3` is a number.
    /// Tags, merge keys and several documents in one file are refused.
    ///
    /// - Parameter name: the file's name, for error texts.
    public init(yaml text: String, name: String) throws(RecipeError) {
        let parsed: Node?
        do {
            parsed = try Parser(yaml: text).singleRoot()
        } catch {
            throw RecipeError(yaml: error, name: name)
        }
        guard let parsed else { throw RecipeError(.broken("it is empty, expected a recipe"), place: name) }
        var budget = Self.largestCount
        try self.init(parsed, name: name, depth: 0, budget: &budget)
    }

    /// Reads a YAML file of at most a megabyte.
    public init(contentsOf url: URL) throws(RecipeError) {
        func unreadable(_ text: String) -> RecipeError { RecipeError(.unreadable(text), place: url.relativePath) }
        func broken(_ text: String) -> RecipeError { RecipeError(.broken(text), place: url.relativePath) }
        let file = open(url.path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { throw unreadable(errno == ENOENT ? "no such file" : String(cString: strerror(errno))) }
        let handle = FileHandle(fileDescriptor: file, closeOnDealloc: true)
        var status = stat()
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT != S_IFDIR else {
            throw unreadable("it is a folder, expected a YAML file")
        }
        var data = Data()
        do {
            while let part = try handle.read(upToCount: 1 << 16), !part.isEmpty, data.count <= Self.largestFile {
                data += part
            }
        } catch {
            throw unreadable("it cannot be read")
        }
        guard data.count <= Self.largestFile else { throw broken("it is larger than any recipe (1 MB)") }
        guard let text = String(validating: data, as: UTF8.self) else {
            throw broken("it is not UTF-8 text, expected a YAML file")
        }
        try self.init(yaml: text, name: url.relativePath)
    }

    /// The node as YAML text: sections one key a line, lists of plain values in brackets.
    public func yaml() throws -> String {
        try Yams.serialize(node: yamlNode, width: -1, allowUnicode: true)
    }

    private static var largestFile: Int { 1 << 20 }
    /// Far more values than any recipe has: aliases of aliases grow without bound in a few lines.
    private static var largestCount: Int { 20_000 }
    private static var largestDepth: Int { 50 }
}

// MARK: - Reading

extension RecipeNode {
    private init(_ node: Node, name: String, depth: Int, budget: inout Int) throws(RecipeError) {
        let place = Self.place(of: node, name: name)
        budget -= 1
        guard depth <= Self.largestDepth, budget >= 0 else {
            throw RecipeError(.broken("nested too deeply, or too many values"), place: place)
        }
        switch node {
        case .scalar(let scalar):
            self.init(try Self.content(of: scalar, place: place), place: place)
        case .sequence(let sequence):
            var values: [RecipeNode] = []
            for value in sequence {
                values.append(try RecipeNode(value, name: name, depth: depth + 1, budget: &budget))
            }
            self.init(.list(values), place: place)
        case .mapping(let mapping):
            var entries: [Entry] = []
            for (key, value) in mapping {
                let keyPlace = Self.place(of: key, name: name)
                guard case .scalar(let keyName) = key else {
                    throw RecipeError(.broken("expected a name as key, found a list or section"), place: keyPlace)
                }
                // Yams compares keys with their quotes' tags, so `a` and `"a"` pass it.
                guard !entries.contains(where: { $0.key == keyName.string }) else {
                    throw RecipeError(.broken("the key '\(keyName.string)' is there twice"), place: keyPlace)
                }
                let inner = try RecipeNode(value, name: name, depth: depth + 1, budget: &budget)
                entries.append(Entry(key: keyName.string, place: keyPlace, value: inner))
            }
            self.init(.section(entries), place: place)
        case .alias:
            throw RecipeError(.broken("an alias that leads nowhere"), place: place)
        }
    }

    private static func place(of node: Node, name: String) -> String {
        node.mark.map { "\(name):\($0.line)" } ?? name
    }

    private static func content(of scalar: Node.Scalar, place: String) throws(RecipeError) -> Content {
        switch scalar.tag.rawValue {
        case Tag.Name.implicit.rawValue where scalar.style == .plain || scalar.style == .any:
            return content(ofPlain: scalar.string)
        case Tag.Name.implicit.rawValue, Tag.Name.nonSpecific.rawValue, Tag.Name.str.rawValue:
            return .text(scalar.string)
        case let tag:
            throw RecipeError(.broken("recipes have no tags such as '\(tag)'"), place: place)
        }
    }

    /// The type that a scalar without quotes has, as the core schema of YAML 1.2 says.
    static func content(ofPlain text: String) -> Content {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case "true", "True", "TRUE": return .boolean(true)
        case "false", "False", "FALSE": return .boolean(false)
        case ".nan", ".NaN", ".NAN": return .number(.nan)
        case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF": return .number(.infinity)
        case "-.inf", "-.Inf", "-.INF": return .number(-.infinity)
        default: break
        }
        if text.utf8.count <= 400, text.wholeMatch(of: /[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?/) != nil {
            if let integer = Int(text) { return .integer(integer) }
            // `1.` and `.5` are numbers of YAML, `1.` is none of Swift.
            let swift = text.replacing(/\.(?![0-9])/, with: "")
            if let number = Double(swift) { return .number(number) }
        }
        return .text(text)
    }
}

extension RecipeError {
    /// Yams' errors span several lines and repeat the file; of them, the position and the first line are kept.
    fileprivate init(yaml error: any Error, name: String) {
        let (text, mark): (String, Mark?) =
            switch error as? YamlError {
            case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
                .composer(_, let problem, let mark, _):
                (problem, mark)
            case .reader(let problem, _, _, _): (problem, nil)
            case .duplicatedKeysInMapping(let keys, let context):
                ("the key '\(keys.first ?? "")' is there twice", context.mark)
            default: ("it cannot be parsed", nil)
            }
        let place = mark.map { "\(name):\($0.line):\($0.column)" } ?? name
        self.init(.broken("broken YAML: \(text)"), place: place)
    }
}

// MARK: - Writing

extension RecipeNode {
    private var yamlNode: Node {
        switch content {
        case .null: Node("null", .implicit, .plain)
        case .boolean(let value): Node("\(value)", .implicit, .plain)
        case .integer(let value): Node("\(value)", .implicit, .plain)
        case .number(let value): Node(Self.yaml(value), .implicit, .plain)
        case .text(let value): Self.yaml(value)
        case .list(let values):
            Node(values.map(\.yamlNode), .implicit, values.allSatisfy(\.isScalar) ? .flow : .block)
        case .section(let entries):
            Node(
                entries.map { (Self.yaml($0.key), $0.value.yamlNode) }, .implicit, entries.isEmpty ? .flow : .block)
        }
    }

    private var isScalar: Bool {
        switch content {
        case .list, .section: false
        default: true
        }
    }

    private static func yaml(_ number: Double) -> String {
        if number.isNaN { return ".nan" }
        if number.isInfinite { return number < 0 ? "-.inf" : ".inf" }
        return "\(number)"
    }

    /// Text in quotes wherever a reader, ours or one of YAML 1.1, would take it for something else.
    private static func yaml(_ text: String) -> Node {
        let isPlain =
            if case .text = content(ofPlain: text) { Node(text).tag.rawValue == Tag.Name.str.rawValue } else { false }
        let hasBreaks = text.unicodeScalars.contains { $0.properties.generalCategory == .control }
        return Node(text, Tag(.str), hasBreaks ? .doubleQuoted : isPlain ? .any : .singleQuoted)
    }
}
