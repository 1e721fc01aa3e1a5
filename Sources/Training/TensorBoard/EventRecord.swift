import Foundation

/// The framing of TensorBoard's event files (TFRecord): length, checksum of the length, data, checksum of the data.
enum EventRecord {
    private static let headerSize = 12
    private static let footerSize = 4

    /// The bytes of one record.
    static func framed(_ data: Data) -> Data {
        var record = Data(capacity: data.count + headerSize + footerSize)
        append(UInt64(data.count), to: &record)
        append(maskedChecksum(record[...]), to: &record)
        record.append(data)
        append(maskedChecksum(data[...]), to: &record)
        return record
    }

    /// The whole records at the start of a file, and where they end: a killed writer may leave part of one behind them.
    static func read(_ file: Data) -> (records: [Data], end: Int) {
        var records: [Data] = []
        var end = file.startIndex
        while file.endIndex - end >= headerSize + footerSize {
            let header = file[end..<end + 8]
            let start = end + headerSize
            guard maskedChecksum(header) == load(UInt32.self, from: file, at: end + 8),
                let count = Int(exactly: load(UInt64.self, from: file, at: end)),
                count <= file.endIndex - start - footerSize,
                maskedChecksum(file[start..<start + count]) == load(UInt32.self, from: file, at: start + count)
            else { break }
            records.append(file[start..<start + count])
            end = start + count + footerSize
        }
        return (records, end - file.startIndex)
    }

    /// The format rotates and shifts checksums, since a checksum of data that holds checksums is a weak one.
    static func maskedChecksum(_ data: Data) -> UInt32 {
        let crc = data.withUnsafeBytes { CRC32C.checksum($0) }
        return (crc >> 15 | crc << 17) &+ 0xA282_EAD8
    }

    private static func append(_ value: some FixedWidthInteger, to data: inout Data) {
        withUnsafeBytes(of: value.littleEndian) { data.append(contentsOf: $0) }
    }

    private static func load<Integer: FixedWidthInteger>(_ type: Integer.Type, from data: Data, at index: Int)
        -> Integer
    {
        let size = MemoryLayout<Integer>.size
        return data[index..<index + size].reversed().reduce(0) { $0 << 8 | Integer($1) }
    }
}
