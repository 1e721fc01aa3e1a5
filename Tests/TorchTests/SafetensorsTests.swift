import Foundation
import Testing

@testable import Torch

@Suite struct SafetensorsTests {
    static var samples: [String: Tensor] {
        [
            "matrix": normal([3, 5], dtype: .float32), "double": normal([2, 2, 2]), "scalar": Tensor(2.5),
            "half": normal([3]).to(.float16), "brain": normal([5]).to(.bfloat16), "empty": Tensor.zeros([0, 4]),
            "bytes": Tensor([UInt8(1), 255, 0]), "int8": Tensor([-5, 5]).to(.int8), "int16": Tensor([-300]).to(.int16),
            "int32": Tensor([Int32.min, 7]), "int64": Tensor([Int.min, Int.max]), "mask": Tensor([true, false, true]),
            "complex": normal([4], dtype: .float32).rfft(), "späti\n\"\\": Tensor([1.0]),
            "turned": normal([3, 4]).transposed(),
        ]
    }

    @Test func everyTypeComesBack() throws {
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("all.safetensors")
            let metadata = ["format": "pt", "note": "tab\t \"quotes\" \u{1} ∑ 🙂"]
            try Safetensors.write(Self.samples, metadata: metadata, to: url)
            let file = try SafetensorsFile(url)
            #expect(file.metadata == metadata)
            #expect(file.names == Self.samples.keys.sorted())
            for (name, tensor) in try file.tensors() {
                #expect(Self.samples[name]?.contiguous().isIdentical(to: tensor) == true, "\(name)")
            }
            #expect(file.entries["matrix"]?.shape == [3, 5])
            #expect(file.entries["matrix"]?.dtype == .float32)
            #expect(throws: SafetensorsError.self) { try file.tensor("missing") }

            // The same tensors give the same bytes, aligned, whatever order the dictionary has.
            let first = try Data(contentsOf: url)
            try Safetensors.write(Self.samples, metadata: metadata, to: url)
            #expect(try Data(contentsOf: url) == first)
            let start = Int(first.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) })
            #expect(start.isMultiple(of: 8))
            for entry in file.entries.values {
                #expect(entry.bytes.lowerBound.isMultiple(of: min(8, entry.dtype.size)))
            }
            try Safetensors.write([:], to: url)
            #expect(try SafetensorsFile(url).entries.isEmpty)
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["all.safetensors"])
        }
    }

    /// Tensors outlive the file that they came from, and a file that is replaced while it is open.
    @Test func tensorsAreCopies() throws {
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x.safetensors")
            try Safetensors.write(["x": Tensor([1.0, 2.0])], to: url)
            let old = try SafetensorsFile(url)
            let x = try old.tensor("x")
            x.fillInPlace(9)
            try Safetensors.write(["x": Tensor([3.0])], to: url)
            #expect(try old.tensor("x").scalars() == [1.0, 2.0])
            #expect(try SafetensorsFile(url).tensor("x").scalars() == [3.0])
        }
    }

    /// Written by the format's reference implementation (the Python package safetensors 0.8.0).
    @Test func readsTheReferencesFiles() throws {
        let json =
            #"{"__metadata__":{"format":"pt","quote":"a\"b\\c\né"},"a":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},"#
            + #""s":{"dtype":"F64","shape":[],"data_offsets":[24,32]},"b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[32,48]},"#
            + #""empty":{"dtype":"F32","shape":[0,3],"data_offsets":[48,48]},"h":{"dtype":"BF16","shape":[2],"data_offsets":[48,52]},"#
            + #""mask":{"dtype":"BOOL","shape":[3],"data_offsets":[52,55]}}      "#
        let hex =
            "010000000000000002000000000000000300000000000000" + "0000000000001c40"
            + "0000c03f000000c00000803e00004040" + "803f0040" + "010001"
        let digits = Array(hex)
        let data = stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("reference.safetensors")
            try Self.bytes(json, data).write(to: url)
            let file = try SafetensorsFile(url.path)
            #expect(file.metadata == ["format": "pt", "quote": "a\"b\\c\né"])
            #expect(try file.tensor("b.weight").scalars() == [Float(1.5), -2, 0.25, 3])
            #expect(try file.tensor("a").scalars() == [1, 2, 3])
            #expect(try file.tensor("s").item() == 7)
            #expect(try file.tensor("h").scalars() == [Float(1), 2])
            #expect(try file.tensor("mask").scalars() == [true, false, true])
            #expect(try file.tensor("empty").shape == [0, 3])
        }
    }

    static func bytes(_ json: String, _ data: [UInt8] = []) -> Data {
        withUnsafeBytes(of: UInt64(json.utf8.count).littleEndian) { Data($0) } + Data(json.utf8) + Data(data)
    }

    private static func entry(_ type: String = "\"F32\"", _ shape: String = "[1]", _ offsets: String = "[0,4]")
        -> String
    {
        "{\"dtype\":\(type),\"shape\":\(shape),\"data_offsets\":\(offsets)}"
    }

    /// What is wrong in the header of a file with four bytes of data, and a part of the message.
    static let refused: [(json: String, message: String)] = [
        ("", "not a JSON object"), ("[]", "expected '{'"), ("null", "expected '{'"), ("{", "expected a key"),
        ("{} x", "expected nothing more"), ("{\"x\"}", "expected ':'"), ("{\"x\":1,}", "expected a key"),
        ("{\"x\":\(entry()) \"y\":1}", "expected ',' or '}'"), ("{\"x\":nul}", "expected a value"),
        ("{\"x\":01}", "expected a number"), ("{\"x\":1.}", "expected digits"),
        ("{\"x\":\"\u{1}\"}", "control character"),
        ("{\"x\":\"\\ud800\"}", "surrogate"), ("{\"x\":\"\\q\"}", "escape"), ("{\"x\":\"\\u12\"}", "hexadecimal"),
        ("{\"x", "without an end"), (String(repeating: "{\"x\":", count: 100_000), "nested deeper"),
        ("{\"x\":\(String(repeating: "[", count: 100_000))", "nested deeper"),
        ("{\"x\":\(entry()),\"x\":\(entry())}", "twice"), ("{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", "twice"),
        ("{\"x\":\(entry()),\"\\u0078\":\(entry())}", "twice"),
        ("{\"x\":5}", "'x': is the number 5, expected an object"), ("{\"x\":{}}", "has no 'dtype'"),
        ("{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}", "has no 'data_offsets'"),
        ("{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "has no 'shape'"),
        ("{\"x\":\(entry("5"))}", "dtype is the number 5"),
        ("{\"x\":\(entry("\"F8_E4M3\""))}", "'F8_E4M3', expected one of U8"),
        ("{\"x\":\(entry("\"U32\""))}", "'U32'"), ("{\"x\":\(entry("\"f32\""))}", "'f32'"),
        ("{\"x\":\(entry("\"F32\"", "1"))}", "shape is the number 1"),
        ("{\"x\":\(entry("\"F32\"", "[-1]"))}", "the number -1"),
        ("{\"x\":\(entry("\"F32\"", "[1.0]"))}", "the number 1.0"),
        ("{\"x\":\(entry("\"F32\"", "[1e0]"))}", "the number 1e0"),
        ("{\"x\":\(entry("\"F32\"", "[true]"))}", "holds true"),
        ("{\"x\":\(entry("\"F32\"", "[\"1\"]"))}", "holds a string"),
        ("{\"x\":\(entry("\"F32\"", "[99999999999999999999]"))}", "99999999999999999999, expected whole numbers"),
        ("{\"x\":\(entry("\"F32\"", "[4611686018427387904,4611686018427387904]"))}", "too many elements"),
        ("{\"x\":\(entry("\"F32\"", "[9223372036854775807,0]"))}", "too many elements"),
        ("{\"x\":\(entry("\"F32\"", "[2]"))}", "span 4 bytes, but float32 [2] takes 8"),
        ("{\"x\":\(entry("\"F32\"", "[1]", "[4,0]"))}", "data_offsets are [4, 0]"),
        ("{\"x\":\(entry("\"F32\"", "[1]", "[0]"))}", "data_offsets are [0]"),
        ("{\"x\":\(entry("\"F32\"", "[1]", "[0,4,8]"))}", "data_offsets are [0, 4, 8]"),
        ("{\"x\":\(entry("\"F32\"", "[1]", "[-4,0]"))}", "holds the number -4"),
        ("{\"x\":\(entry("\"F32\"", "[1]", "[4,8]"))}", "ends at byte 8 of the data, which has 4 (truncated?)"),
        ("{\"x\":\(entry("\"F32\"", "[2]", "[0,8]"))}", "truncated?"),
        ("{\"x\":\(entry("\"U8\"", "[2]", "[1,3]"))}", "after a hole"),
        ("{\"x\":\(entry("\"U8\"", "[2]", "[0,2]"))}", "2 bytes after"),
        ("{\"x\":\(entry()),\"y\":\(entry())}", "inside what ends at 4"),
        (
            "{\"x\":\(entry("\"U8\"", "[3]", "[0,3]")),\"y\":\(entry("\"U8\"", "[2]", "[2,4]"))}",
            "'y': starts at byte 2"
        ),
        ("{}", "4 bytes after its last tensor"),
        ("{\"__metadata__\":5,\"x\":\(entry())}", "__metadata__ is the number 5"),
        ("{\"__metadata__\":{\"a\":1},\"x\":\(entry())}", "the number 1 under 'a', expected a string"),
        ("{\"__metadata__\":{\"a\":null},\"x\":\(entry())}", "null under 'a'"),
    ]

    @Test(arguments: refused.indices) func headersAreRefused(_ index: Int) throws {
        let (json, message) = Self.refused[index]
        let error = #expect(throws: SafetensorsError.self) { try Self.parse([UInt8](Self.bytes(json, [1, 2, 3, 4]))) }
        let text = error?.description ?? ""
        #expect(text.contains(message))
        #expect(text.hasPrefix("a file") && !text.contains("\n") && text.count < 500)
    }

    static func parse(_ bytes: [UInt8]) throws -> SafetensorsHeader {
        try bytes.withUnsafeBytes { try SafetensorsHeader($0, file: "a file") }
    }

    @Test func filesAreRefused() throws {
        try withTemporaryFolder { (folder: URL) throws in
            func message(_ bytes: [UInt8]?) throws -> String {
                let url = folder.appendingPathComponent("x.safetensors")
                if let bytes { try Data(bytes).write(to: url) }
                let error = #expect(throws: SafetensorsError.self) { try SafetensorsFile(url) }
                return error?.description ?? ""
            }
            #expect(try message(nil).contains("No such file"))
            #expect(try message([]).contains("has 0 bytes"))
            #expect(try message([1, 2, 3]).contains("has 3 bytes"))
            #expect(try message([9, 0, 0, 0, 0, 0, 0, 0, 123]).contains("states a header of 9 bytes, but only 1"))
            #expect(try message([UInt8](repeating: 255, count: 16)).contains("at most 100000000"))
            #expect(try message([2, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFE]).contains("not UTF-8"))
            let error = #expect(throws: SafetensorsError.self) { try SafetensorsFile(folder) }
            #expect(error?.reason == "is not a regular file")
        }
    }

    @Test func bytesOfABoolAreMadeOne() throws {
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x.safetensors")
            try Self.bytes("{\"x\":\(Self.entry("\"BOOL\"", "[4]"))}", [0, 1, 2, 255]).write(to: url)
            #expect(try SafetensorsFile(url).tensor("x").scalars(as: UInt8.self) == [0, 1, 1, 1])
        }
    }

    @Test func writerRefusesWhatTheFormatCannotHold() throws {
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x.safetensors")
            #expect(throws: SafetensorsError.self) { try Safetensors.write(["x": normal([4]).rfft()], to: url) }
            #expect(throws: SafetensorsError.self) { try Safetensors.write(["__metadata__": normal([4])], to: url) }
            #expect(throws: FileWriteError.self) {
                try Safetensors.write([:], to: folder.appendingPathComponent("no/such/folder"))
            }
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
        }
    }

    #if os(Linux)
        /// In a process of its own, whose files may grow to a limit as a disk does.
        @Test func aFullDiskKeepsTheOldFile() async {
            await #expect(processExitsWith: .success) {
                try withTemporaryFolder { (folder: URL) throws in
                    let url = folder.appendingPathComponent("x.safetensors")
                    try Safetensors.write(["x": Tensor([1.0])], to: url)
                    signal(SIGXFSZ, SIG_IGN)
                    var limit = rlimit(rlim_cur: 100_000, rlim_max: 100_000)
                    setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit)
                    #expect(throws: FileWriteError.self) {
                        try Safetensors.write(["x": Tensor.zeros([1_000_000])], to: url)
                    }
                    #expect(try SafetensorsFile(url).tensor("x").item() == 1)
                    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["x.safetensors"])
                }
            }
        }
    #endif
}

/// Damage of any kind either still makes a file of the format or is refused with an error.
@Suite struct SafetensorsFuzzTests {
    private static func whole() throws -> [UInt8] {
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x.safetensors")
            try Safetensors.write(SafetensorsTests.samples, metadata: ["a": "b"], to: url)
            return [UInt8](try Data(contentsOf: url))
        }
    }

    /// Loads what the parser accepts, in full.
    private static func load(_ bytes: [UInt8], at url: URL) throws -> Bool {
        do {
            _ = try SafetensorsTests.parse(bytes)
        } catch is SafetensorsError {
            return false
        }
        try Data(bytes).write(to: url)
        let file = try SafetensorsFile(url)
        for name in file.names { #expect(try file.tensor(name).shape == file.entries[name]?.shape) }
        return true
    }

    @Test(arguments: 0..<4) func bytesFlipped(_ seed: Int) throws {
        var numbers = SeededNumbers(seed)
        let whole = try Self.whole()
        let header = 8 + Int(whole.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) })
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x")
            var accepted = 0
            for _ in 0..<1500 {
                var bytes = whole
                for _ in 0..<Int.random(in: 1...3, using: &numbers) {
                    bytes[Int.random(in: 0..<header, using: &numbers)] = UInt8.random(in: 0...255, using: &numbers)
                }
                accepted += try Self.load(bytes, at: url) ? 1 : 0
            }
            #expect(accepted > 0 && accepted < 1500)
        }
    }

    @Test func cutAnywhere() throws {
        let whole = try Self.whole()
        for count in whole.indices {
            #expect(throws: SafetensorsError.self) { try SafetensorsTests.parse(Array(whole[..<count])) }
        }
        #expect(throws: SafetensorsError.self) { try SafetensorsTests.parse(whole + [0]) }
    }

    /// Pieces of the header replaced by what often hurts parsers.
    @Test(arguments: 0..<4) func headersMutated(_ seed: Int) throws {
        var numbers = SeededNumbers(seed + 100)
        let whole = try Self.whole()
        let header = 8 + Int(whole.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) })
        let json = Array(whole[8..<header])
        let pieces = [
            "{", "}", "[", "]", ",", ":", "\"", "\\", "-", "-1", "1e999", "0", "9223372036854775807",
            "18446744073709551616",
            "null", "\"F64\"", "\"BOOL\"", "[]", "{}", "\\u0000", "\\ud83d", " ", "[0,0]", "\"data_offsets\":",
            "\u{FEFF}",
        ].map { [UInt8]($0.utf8) }
        try withTemporaryFolder { (folder: URL) throws in
            let url = folder.appendingPathComponent("x")
            for _ in 0..<1500 {
                var mutated = json
                for _ in 0..<Int.random(in: 1...2, using: &numbers) {
                    let start = Int.random(in: 0..<mutated.count, using: &numbers)
                    let end = min(mutated.count, start + Int.random(in: 0...4, using: &numbers))
                    mutated.replaceSubrange(start..<end, with: pieces.randomElement(using: &numbers) ?? [])
                }
                let size = withUnsafeBytes(of: UInt64(mutated.count).littleEndian) { [UInt8]($0) }
                _ = try Self.load(size + mutated + whole[header...], at: url)
            }
        }
    }

    @Test func sizesOfTheHeaderMutated() throws {
        let whole = try Self.whole()
        let size = whole.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
        for wrong in [0, 1, size - 1, size + 1, UInt64(whole.count), UInt64(Int.max), .max, 100_000_000, 100_000_001] {
            let bytes = withUnsafeBytes(of: wrong.littleEndian) { [UInt8]($0) } + whole[8...]
            #expect(throws: SafetensorsError.self) { try SafetensorsTests.parse(bytes) }
        }
    }
}
