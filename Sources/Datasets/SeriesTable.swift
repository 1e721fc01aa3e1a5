import Foundation

/// A table of numbers over time as it is published: comma-separated, a row for each point in time.
///
/// The first line may name the columns. The first column may be a date, as in `2016-07-01 00:00:00`; every other cell
/// is a finite number.
struct SeriesTable {
    let path: String
    /// Row by row: `[rows, channels]`.
    private(set) var values: [Double] = []
    private(set) var channels = 0
    /// The dates of the first two rows, where there are dates.
    private(set) var firstDates: [String] = []
    private var hasDates = false

    var rows: Int { channels == 0 ? 0 : values.count / channels }

    /// - Parameter url: the table; `.gz` is unpacked.
    /// - Throws: ``DatasetError`` with the number of the first line that is not in the format.
    init(contentsOf url: URL) throws(DatasetError) {
        path = url.path(percentEncoded: false)
        let bytes = try ByteFiles.readFile(url)
        guard !bytes.isEmpty else { throw .empty(path: path) }
        let lines = [UInt8](bytes).split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        for (index, line) in lines.enumerated() {
            if line.isEmpty && index == lines.count - 1 { break }
            try add(line.last == UInt8(ascii: "\r") ? line.dropLast() : line, number: index + 1)
        }
        guard rows > 0 else {
            throw .malformedLine(
                path: path, line: lines.count, reason: "expected a row of numbers, found the end of the file")
        }
    }

    private mutating func add(_ line: ArraySlice<UInt8>, number: Int) throws(DatasetError) {
        let cells = line.split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false)
            .map { String(decoding: $0, as: UTF8.self) }
        let numbers = cells.map { Double($0) }
        if number == 1, numbers.allSatisfy({ $0 == nil }), !Self.isDate(cells[0]) { return }
        if channels == 0 {
            hasDates = numbers[0] == nil
            channels = cells.count - (hasDates ? 1 : 0)
        }
        let width = channels + (hasDates ? 1 : 0)
        guard cells.count == width, channels > 0 else {
            throw .malformedLine(
                path: path, line: number, reason: "expected \(max(width, 2)) columns, found \(cells.count)")
        }
        if hasDates && firstDates.count < 2 { firstDates.append(cells[0]) }
        for (cell, value) in zip(cells, numbers).dropFirst(hasDates ? 1 : 0) {
            guard let value, value.isFinite else {
                throw .malformedLine(
                    path: path, line: number,
                    reason: "expected a finite number, found '\(cell.prefix(30))'")
            }
            values.append(value)
        }
    }

    private static func isDate(_ cell: String) -> Bool { cell.contains("-") && cell.first?.isNumber == true }

    /// Minutes from the first row to the second, where their dates have times of day less than a day apart.
    var minutesBetweenRows: Int? {
        let times = firstDates.compactMap { date -> Int? in
            let clock = date.split(separator: " ").last?.split(separator: ":") ?? []
            guard clock.count >= 2, let hours = Int(clock[0]), let minutes = Int(clock[1]) else { return nil }
            return 60 * hours + minutes
        }
        guard times.count == 2 else { return nil }
        let difference = (times[1] - times[0] + 1440) % 1440
        return difference > 0 ? difference : nil
    }
}
