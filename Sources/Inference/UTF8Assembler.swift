/// Makes text of bytes that arrive one by one: a character is given out when its last byte is there.
public struct UTF8Assembler {
    private var pending: [UInt8] = []

    public init() {}

    /// The text that the byte completes; empty while a character is incomplete. Bytes that can belong to none become U+FFFD.
    public mutating func append(_ byte: UInt8) -> String {
        pending.append(byte)
        if expectedLength(pending[0]) > pending.count && (pending.count == 1 || isContinuation(byte)) { return "" }
        return flush()
    }

    /// What is left of an incomplete character.
    public mutating func flush() -> String {
        defer { pending.removeAll(keepingCapacity: true) }
        return String(decoding: pending, as: UTF8.self)
    }

    private func expectedLength(_ lead: UInt8) -> Int {
        switch lead {
        case 0xC2...0xDF: 2
        case 0xE0...0xEF: 3
        case 0xF0...0xF4: 4
        default: 1
        }
    }

    private func isContinuation(_ byte: UInt8) -> Bool { byte & 0xC0 == 0x80 }
}
