/// Makes text of bytes that arrive one by one: a character is given out when its last byte is there.
public struct UTF8Assembler {
    private var pending: [UInt8] = []

    public init() {}

    /// The text that the byte completes; empty while a character is incomplete. Bytes that can belong to none become U+FFFD.
    public mutating func append(_ byte: UInt8) -> String {
        if let lead = pending.first, !mayFollow(lead, byte) { return flush() + append(byte) }
        pending.append(byte)
        return expectedLength(pending[0]) == pending.count ? flush() : ""
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

    /// Whether the byte can be the next of the pending character. The second byte tells the overlong forms, the surrogates
    /// and what is beyond U+10FFFF from characters; none of these is waited for.
    private func mayFollow(_ lead: UInt8, _ byte: UInt8) -> Bool {
        switch (pending.count, lead) {
        case (1, 0xE0): 0xA0...0xBF ~= byte
        case (1, 0xED): 0x80...0x9F ~= byte
        case (1, 0xF0): 0x90...0xBF ~= byte
        case (1, 0xF4): 0x80...0x8F ~= byte
        default: 0x80...0xBF ~= byte
        }
    }
}
