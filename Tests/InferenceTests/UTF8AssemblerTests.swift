import Inference
import Testing

@Suite struct UTF8AssemblerTests {
    private func assembled(_ bytes: [UInt8]) -> String {
        var assembler = UTF8Assembler()
        let text = bytes.map { assembler.append($0) }.joined()
        return text + assembler.flush()
    }

    /// The bytes at which the rules of UTF-8 change.
    private static let edges: [UInt8] = [
        0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
        0xEF,
        0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
    ]

    @Test func everyThreeBytesAreDecodedAsAWhole() {
        for a in Self.edges {
            for b in Self.edges {
                for c in Self.edges where assembled([a, b, c]) != String(decoding: [a, b, c], as: UTF8.self) {
                    Issue.record("\([a, b, c])")
                }
            }
        }
    }

    @Test func randomBytesAreDecodedAsAWhole() {
        var generator = SplitMix(state: 42)
        for round in 0..<3000 {
            let bytes = (0..<Int.random(in: 0...24, using: &generator)).map { _ in
                Bool.random(using: &generator)
                    ? Self.edges.randomElement(using: &generator) ?? 0 : UInt8.random(in: 0...255, using: &generator)
            }
            if assembled(bytes) != String(decoding: bytes, as: UTF8.self) { Issue.record("round \(round): \(bytes)") }
        }
    }

    @Test func charactersComeWithTheirLastByte() {
        var assembler = UTF8Assembler()
        for scalar in "aé€😀\u{10FFFF}\u{800}\u{10000}z".unicodeScalars {
            let bytes = Array(String(scalar).utf8)
            for byte in bytes.dropLast() { #expect(assembler.append(byte) == "") }
            #expect(assembler.append(bytes[bytes.count - 1]) == String(scalar))
        }
        #expect(assembler.flush() == "")
    }
}

/// Random numbers that are the same everywhere.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
