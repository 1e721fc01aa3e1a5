/// A value of a header's JSON. Numbers other than whole ones that fit an `Int` from 0 on are kept as text, for messages.
enum JSONHeaderValue {
    case string(String)
    case integer(Int)
    case otherNumber(String)
    case literal(String)
    case array([JSONHeaderValue])
    case object([(String, JSONHeaderValue)])

    /// What it is, for a message about what was expected instead.
    var kind: String {
        switch self {
        case .string: "a string"
        case .integer(let value): "the number \(value)"
        case .otherNumber(let text): "the number \(SafetensorsHeader.shortened(text))"
        case .literal(let text): text
        case .array: "an array"
        case .object: "an object"
        }
    }
}

struct JSONHeaderError: Error {
    let position: Int
    let reason: String
}

/// Reads JSON strictly. Foundation's reader drops all but one of equal keys, which in a header of tensors is damage that must
/// not pass unseen.
struct JSONHeaderParser {
    private let bytes: [UInt8]
    private var position = 0
    private var depth = 0
    private static let deepest = 32

    /// - Parameter bytes: valid UTF-8.
    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The whole text as one object.
    mutating func object() throws -> [(String, JSONHeaderValue)] {
        skipSpace()
        guard next == UInt8(ascii: "{") else { throw error("expected '{'") }
        let members = try members()
        skipSpace()
        guard position == bytes.count else { throw error("expected nothing more") }
        return members
    }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private func error(_ reason: String) -> JSONHeaderError { JSONHeaderError(position: position, reason: reason) }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { position += 1 }
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    private mutating func value() throws -> JSONHeaderValue {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return .object(try members())
        case UInt8(ascii: "["): return .array(try elements())
        case UInt8(ascii: "\""): return .string(try string())
        case let byte? where byte == UInt8(ascii: "-") || Self.isDigit(byte): return try number()
        default:
            for word in ["true", "false", "null"] where bytes[position...].starts(with: word.utf8) {
                position += word.utf8.count
                return .literal(word)
            }
            throw error("expected a value")
        }
    }

    /// Calls `item` for what stands between the brackets, separated by commas.
    private mutating func list(until close: Unicode.Scalar, _ item: (inout Self) throws -> Void) throws {
        depth += 1
        defer { depth -= 1 }
        guard depth <= Self.deepest else { throw error("nested deeper than \(Self.deepest)") }
        position += 1
        if take(close) { return }
        repeat { try item(&self) } while take(",")
        guard take(close) else { throw error("expected ',' or '\(close)'") }
    }

    private mutating func elements() throws -> [JSONHeaderValue] {
        var found: [JSONHeaderValue] = []
        try list(until: "]") { found.append(try $0.value()) }
        return found
    }

    private mutating func members() throws -> [(String, JSONHeaderValue)] {
        var found: [(String, JSONHeaderValue)] = []
        var keys: Set<String> = []
        try list(until: "}") { parser in
            parser.skipSpace()
            guard parser.next == UInt8(ascii: "\"") else { throw parser.error("expected a key in quotes") }
            let key = try parser.string()
            guard keys.insert(key).inserted else {
                throw parser.error("the key '\(SafetensorsHeader.shortened(key))' stands there twice, the second time")
            }
            guard parser.take(":") else { throw parser.error("expected ':'") }
            found.append((key, try parser.value()))
        }
        return found
    }

    private mutating func number() throws -> JSONHeaderValue {
        let start = position
        if next == UInt8(ascii: "-") { position += 1 }
        let whole = digits()
        guard !whole.isEmpty, whole.count == 1 || whole.first != UInt8(ascii: "0") else {
            throw error("expected a number")
        }
        if next == UInt8(ascii: ".") {
            position += 1
            guard !digits().isEmpty else { throw error("expected digits") }
        }
        if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
            position += 1
            if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { position += 1 }
            guard !digits().isEmpty else { throw error("expected digits") }
        }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        guard whole.startIndex == start, whole.endIndex == position, let value = Int(text) else {
            return .otherNumber(text)
        }
        return .integer(value)
    }

    private mutating func digits() -> ArraySlice<UInt8> {
        let start = position
        while let byte = next, Self.isDigit(byte) { position += 1 }
        return bytes[start..<position]
    }

    private static func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }

    private mutating func string() throws -> String {
        position += 1
        var text: [UInt8] = []
        while let byte = next {
            switch byte {
            case UInt8(ascii: "\""):
                position += 1
                return String(decoding: text, as: UTF8.self)
            case UInt8(ascii: "\\"):
                position += 1
                text += try escape().utf8
            case 0..<0x20: throw error("a control character in a string")
            default:
                text.append(byte)
                position += 1
            }
        }
        throw error("a string without an end")
    }

    /// What stands after a backslash.
    private mutating func escape() throws -> String {
        guard let byte = next else { throw error("a string without an end") }
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return String(Unicode.Scalar(byte))
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            var units = [try codeUnit()]
            if UTF16.isLeadSurrogate(units[0]), bytes[position...].starts(with: "\\u".utf8) {
                position += 2
                units.append(try codeUnit())
            }
            guard let text = String(codeUnits: units) else { throw error("half a surrogate pair") }
            return text
        default: throw error("an unknown escape")
        }
    }

    private mutating func codeUnit() throws -> UInt16 {
        let text = bytes[position...].prefix(4)
        // UInt16 would take a sign, JSON does not.
        guard text.count == 4, text.first != UInt8(ascii: "+"),
            let unit = UInt16(String(decoding: text, as: UTF8.self), radix: 16)
        else { throw error("expected four hexadecimal digits") }
        position += 4
        return unit
    }
}

extension String {
    /// One character from its one or two UTF-16 code units; nil when they make none.
    fileprivate init?(codeUnits: [UInt16]) {
        var decoder = UTF16()
        var units = codeUnits.makeIterator()
        guard case .scalarValue(let scalar) = decoder.decode(&units), units.next() == nil else { return nil }
        self = String(scalar)
    }
}
