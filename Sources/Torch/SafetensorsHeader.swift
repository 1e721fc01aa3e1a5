import Foundation

/// What stands at the start of a safetensors file: eight bytes of size, little-endian, and that many bytes of JSON.
struct SafetensorsHeader {
    let metadata: [String: String]
    let entries: [String: SafetensorsFile.Entry]
    /// Where the tensors' bytes begin in the file.
    let dataStart: Int

    private static let sizeBytes = 8
    private static let largestHeader = 100_000_000
    private static let metadataKey = "__metadata__"

    /// Reads and checks the header of a file's bytes.
    init(_ bytes: UnsafeRawBufferPointer, file: String) throws {
        let json = try Self.json(in: bytes, file: file)
        dataStart = Self.sizeBytes + json.count
        let members: [(String, JSONHeaderValue)]
        do {
            var parser = JSONHeaderParser(json)
            members = try parser.object()
        } catch let error as JSONHeaderError {
            throw SafetensorsError(file, "the header is not a JSON object: \(error.reason) at byte \(error.position)")
        }
        var metadata: [String: String] = [:]
        var entries: [String: SafetensorsFile.Entry] = [:]
        for (name, value) in members {
            if name == Self.metadataKey {
                metadata = try Self.metadata(value, file: file)
            } else {
                entries[name] = try Self.entry(name, value, file: file)
            }
        }
        self.metadata = metadata
        self.entries = entries
        try Self.checkCoverage(entries, dataCount: bytes.count - dataStart, file: file)
    }

    private static func json(in bytes: UnsafeRawBufferPointer, file: String) throws -> [UInt8] {
        guard bytes.count >= sizeBytes else {
            throw SafetensorsError(file, "has \(bytes.count) bytes, too few for the header's size (8 bytes)")
        }
        let size = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard size <= UInt64(largestHeader) else {
            throw SafetensorsError(file, "states a header of \(size) bytes, expected at most \(largestHeader)")
        }
        guard size <= UInt64(bytes.count - sizeBytes) else {
            throw SafetensorsError(
                file, "states a header of \(size) bytes, but only \(bytes.count - sizeBytes) bytes follow (truncated?)")
        }
        let json = Array(bytes[sizeBytes..<sizeBytes + Int(size)])
        guard String(bytes: json, encoding: .utf8) != nil else {
            throw SafetensorsError(file, "the header is not UTF-8")
        }
        return json
    }

    private static func metadata(_ value: JSONHeaderValue, file: String) throws -> [String: String] {
        guard case .object(let members) = value else {
            throw SafetensorsError(file, "\(metadataKey) is \(value.kind), expected an object of strings")
        }
        return try Dictionary(
            uniqueKeysWithValues: members.map { key, value in
                guard case .string(let text) = value else {
                    throw SafetensorsError(
                        file, "\(metadataKey) has \(value.kind) under '\(shortened(key))', expected a string")
                }
                return (key, text)
            })
    }

    private static func entry(_ name: String, _ value: JSONHeaderValue, file: String) throws -> SafetensorsFile.Entry {
        func refused(_ reason: String) -> SafetensorsError { SafetensorsError(file, tensor: name, reason) }
        guard case .object(let members) = value else { throw refused("is \(value.kind), expected an object") }
        func member(_ key: String) throws -> JSONHeaderValue {
            guard let found = members.first(where: { $0.0 == key }) else { throw refused("has no '\(key)'") }
            return found.1
        }
        func sizes(_ key: String) throws -> [Int] {
            let value = try member(key)
            guard case .array(let elements) = value else { throw refused("\(key) is \(value.kind), expected an array") }
            return try elements.map { element in
                guard case .integer(let size) = element else {
                    throw refused("\(key) holds \(element.kind), expected whole numbers from 0 to \(Int.max)")
                }
                return size
            }
        }
        let type = try member("dtype")
        guard case .string(let typeName) = type else { throw refused("dtype is \(type.kind), expected a string") }
        guard let dtype = DType(safetensorsName: typeName) else {
            throw refused(
                "has the element type '\(shortened(typeName))', expected one of "
                    + DType.allCases.compactMap(\.safetensorsName).joined(separator: ", "))
        }
        let shape = try sizes("shape")
        let offsets = try sizes("data_offsets")
        guard offsets.count == 2, offsets[0] <= offsets[1] else {
            throw refused("data_offsets are \(shortened("\(offsets)")), expected a start and an end not before it")
        }
        var expected = dtype.size
        for size in shape {
            let (product, overflow) = expected.multipliedReportingOverflow(by: size)
            guard !overflow else { throw refused("shape \(shortened("\(shape)")) has too many elements") }
            expected = product
        }
        guard offsets[1] - offsets[0] == expected else {
            throw refused(
                "data_offsets span \(offsets[1] - offsets[0]) bytes, but \(dtype) \(shortened("\(shape)")) takes \(expected)"
            )
        }
        return SafetensorsFile.Entry(dtype: dtype, shape: shape, bytes: offsets[0]..<offsets[1])
    }

    /// The tensors must fill the data without holes or overlaps.
    private static func checkCoverage(_ entries: [String: SafetensorsFile.Entry], dataCount: Int, file: String) throws {
        var end = 0
        let ordered = entries.sorted {
            ($0.value.bytes.lowerBound, $0.value.bytes.upperBound, $0.key)
                < ($1.value.bytes.lowerBound, $1.value.bytes.upperBound, $1.key)
        }
        for (name, entry) in ordered {
            guard entry.bytes.upperBound <= dataCount else {
                throw SafetensorsError(
                    file, tensor: name,
                    "ends at byte \(entry.bytes.upperBound) of the data, which has \(dataCount) (truncated?)")
            }
            guard entry.bytes.lowerBound == end else {
                throw SafetensorsError(
                    file, tensor: name,
                    "starts at byte \(entry.bytes.lowerBound) of the data, \(entry.bytes.lowerBound < end ? "inside" : "after a hole behind")"
                        + " what ends at \(end)")
            }
            end = entry.bytes.upperBound
        }
        guard end == dataCount else {
            throw SafetensorsError(file, "has \(dataCount - end) bytes after its last tensor, expected none")
        }
    }

    /// Names out of a damaged file may be of any length and hold line breaks; messages are one line.
    static func shortened(_ text: String) -> String {
        let line = String(text.prefix(120).map { $0.isNewline ? " " : $0 })
        return line.count < text.count ? line + "…" : line
    }
}

// MARK: - Writing

extension SafetensorsHeader {
    /// The size and the JSON of a file that holds the tensors in this order, padded so that the data starts at a multiple of 8.
    static func encoded(_ tensors: [(key: String, value: Tensor)], _ metadata: [String: String], file: String) throws
        -> Data
    {
        var members: [String] = []
        if !metadata.isEmpty {
            let pairs = metadata.sorted { $0.key < $1.key }.map { "\(quoted($0.key)):\(quoted($0.value))" }
            members.append("\"\(metadataKey)\":{\(pairs.joined(separator: ","))}")
        }
        var end = 0
        for (name, tensor) in tensors {
            guard name != metadataKey else {
                throw SafetensorsError(file, tensor: name, "has the name that the format keeps for metadata")
            }
            guard let type = tensor.dtype.safetensorsName else {
                throw SafetensorsError(file, tensor: name, "is \(tensor.dtype), for which the format has no name")
            }
            let start = end
            end += tensor.count * tensor.dtype.size
            let sizes = tensor.shape.map(String.init).joined(separator: ",")
            members.append(
                "\(quoted(name)):{\"dtype\":\"\(type)\",\"shape\":[\(sizes)],\"data_offsets\":[\(start),\(end)]}")
        }
        var json = Data("{\(members.joined(separator: ","))}".utf8)
        json.append(contentsOf: repeatElement(UInt8(ascii: " "), count: (8 - json.count % 8) % 8))
        guard json.count <= largestHeader else {
            throw SafetensorsError(file, "would need a header of \(json.count) bytes, at most \(largestHeader) fit")
        }
        return withUnsafeBytes(of: UInt64(json.count).littleEndian) { Data($0) } + json
    }

    private static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case _ where scalar.value < 0x20: result += String(format: "\\u%04x", scalar.value)
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}

extension DType {
    /// The type's name in safetensors files; nil where the format has none.
    var safetensorsName: String? {
        switch self {
        case .uint8: "U8"
        case .int8: "I8"
        case .int16: "I16"
        case .int32: "I32"
        case .int64: "I64"
        case .float16: "F16"
        case .float32: "F32"
        case .float64: "F64"
        case .complex64: "C64"
        case .complex128: nil
        case .bool: "BOOL"
        case .bfloat16: "BF16"
        }
    }

    init?(safetensorsName name: String) {
        guard let found = DType.allCases.first(where: { $0.safetensorsName == name }) else { return nil }
        self = found
    }
}
