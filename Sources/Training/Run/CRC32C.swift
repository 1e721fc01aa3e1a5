/// The CRC-32C checksum (Castagnoli), of TensorBoard's records and of checkpoint files.
///
/// Eight table look-ups for eight bytes at a time: fast enough that checking a checkpoint costs less than reading it.
struct CRC32C {
    private var remainder: UInt32 = ~0

    /// The checksum of all bytes so far.
    var value: UInt32 { ~remainder }

    static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        var crc = CRC32C()
        crc.update(bytes)
        return crc.value
    }

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        var crc = remainder
        let whole = bytes.count / 8 * 8
        Self.tables.withUnsafeBufferPointer { table in
            for offset in stride(from: 0, to: whole, by: 8) {
                let word = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
                let low = UInt32(truncatingIfNeeded: word) ^ crc
                let high = UInt32(truncatingIfNeeded: word >> 32)
                crc =
                    table[0x700 + Int(low & 0xFF)] ^ table[0x600 + Int(low >> 8 & 0xFF)]
                    ^ table[0x500 + Int(low >> 16 & 0xFF)] ^ table[0x400 + Int(low >> 24)]
                crc ^=
                    table[0x300 + Int(high & 0xFF)] ^ table[0x200 + Int(high >> 8 & 0xFF)]
                    ^ table[0x100 + Int(high >> 16 & 0xFF)] ^ table[Int(high >> 24)]
            }
            for byte in bytes[whole...] {
                crc = crc >> 8 ^ table[Int((crc ^ UInt32(byte)) & 0xFF)]
            }
        }
        remainder = crc
    }

    /// Table k says what a byte does to the remainder k bytes later; all eight in one array.
    private static let tables: [UInt32] = {
        var tables = (0..<256).map { byte in
            (0..<8).reduce(UInt32(byte)) { crc, _ in crc >> 1 ^ (crc & 1 == 1 ? 0x82F6_3B78 : 0) }
        }
        for index in 256..<2048 {
            let previous = tables[index - 256]
            tables.append(previous >> 8 ^ tables[Int(previous & 0xFF)])
        }
        return tables
    }()
}
