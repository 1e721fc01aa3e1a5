import Foundation

/// How a series is cut by time.
public enum SeriesSplit: Hashable, Sendable {
    /// That of the Electricity Transformer Temperature sets: 12, 4 and 4 months of 30 days; what comes after is not
    /// used. Rows must be dated, at steps that make up a day.
    case ett
    /// Shares of the rows: the first are for training, the last for testing, those between for validation.
    case shares(train: Double, test: Double)
}

/// Several series over time, to be foretold from their past: windows at every step, their numbers standardized.
///
/// Each channel has mean 0 and deviation 1 over the rows for training; errors are measured in that scale, as in the
/// literature. A window for validation or testing may look back into the part before its own.
public struct ForecastingSeries: TrainingDataset {
    /// What the data is called in messages: its path.
    public let name: String
    public let channels: Int
    /// Steps that the model sees, and steps that it foretells.
    public let lookback: Int
    public let horizon: Int
    /// The mean and population deviation of each channel over the rows for training; the deviation of a constant is 1.
    public let means: [Double]
    public let deviations: [Double]
    /// Standardized, channel by channel: `[channels, rows]`.
    private let values: [Float]
    private let rows: Int
    private let parts: [DatasetSplit: Range<Int>]

    /// Reads a table: comma-separated, a row for each point in time, `.gz` unpacked.
    ///
    /// The first line may name the columns. The first column may be a date, as in `2016-07-01 00:00:00`; every other
    /// cell is a finite number.
    ///
    /// - Parameter channels: how many there must be; nil for any number.
    /// - Throws: ``DatasetError`` for a file that cannot be read, or is too short for the split.
    public init(
        contentsOf url: URL, split: SeriesSplit, channels: Int? = nil, lookback: Int, horizon: Int
    ) throws(DatasetError) {
        let table = try SeriesTable(contentsOf: url)
        if let channels, channels != table.channels {
            throw .malformedFile(
                path: table.path, reason: "it has \(table.channels) channels, expected \(channels)")
        }
        try self.init(
            table.values, channels: table.channels, name: table.path,
            parts: split.parts(of: table), lookback: lookback, horizon: horizon)
    }

    /// - Parameters:
    ///   - values: row by row, `[rows, channels]`.
    ///   - parts: the rows of the splits.
    init(
        _ values: [Double], channels: Int, name: String, parts: [DatasetSplit: Range<Int>], lookback: Int, horizon: Int
    ) throws(DatasetError) {
        try DatasetError.check(lookback > 0, "lookback", lookback, expected: "a positive number of steps")
        try DatasetError.check(horizon > 0, "horizon", horizon, expected: "a positive number of steps")
        self.name = name
        self.channels = channels
        self.lookback = lookback
        self.horizon = horizon
        self.parts = parts
        let rows = values.count / channels
        self.rows = rows
        let training = parts[.train] ?? 0..<0
        var means: [Double] = []
        var deviations: [Double] = []
        var standardized: [Float] = []
        standardized.reserveCapacity(values.count)
        for channel in 0..<channels {
            let column = (0..<rows).map { values[$0 * channels + channel] }
            let count = Double(max(training.count, 1))
            let mean = column[training].reduce(0, +) / count
            let variance = column[training].reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / count
            let deviation = variance > 0 ? variance.squareRoot() : 1
            standardized += column.map { Float(($0 - mean) / deviation) }
            means.append(mean)
            deviations.append(deviation)
        }
        (self.means, self.deviations, self.values) = (means, deviations, standardized)
    }

    /// The first rows of a split's windows: those whose future lies in the split, with all of their past there is for
    /// training in it, and for the others before it.
    public func windows(of split: DatasetSplit) -> Range<Int> {
        guard let part = parts[split] else { return 0..<0 }
        let first = split == .train ? part.lowerBound : max(0, part.lowerBound - lookback)
        return first..<max(first, part.upperBound - lookback - horizon + 1)
    }

    public func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<SeriesBatch> {
        let first = windows(of: .train).lowerBound
        return try ShuffledBatches(
            windows(of: .train).count, name: "train split of \(name), windows of \(lookback) + \(horizon) rows",
            batchSize: batchSize, seed: seed
        ) { windows in batch(of: windows.map { first + $0 }) }
    }

    /// Every window once, in the order of time.
    public func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError)
        -> EvaluationBatches<SeriesBatch>
    {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of windows")
        let windows = windows(of: split)
        guard !windows.isEmpty else {
            throw .tooFewExamples(
                what: "\(split) split of \(name), windows of \(lookback) + \(horizon) rows", examples: 0, needed: 1)
        }
        return EvaluationBatches(rows: windows.count, batchSize: batchSize) { rows in
            batch(of: rows.map { windows.lowerBound + $0 })
        }
    }

    /// The windows that begin at these rows.
    private func batch(of starts: [Int]) -> SeriesBatch {
        var history: [Float] = []
        var future: [Float] = []
        history.reserveCapacity(starts.count * channels * lookback)
        future.reserveCapacity(starts.count * channels * horizon)
        for start in starts {
            for channel in 0..<channels {
                let first = channel * rows + start
                history.append(contentsOf: values[first..<first + lookback])
                future.append(contentsOf: values[first + lookback..<first + lookback + horizon])
            }
        }
        return SeriesBatch(
            history: history, future: future, batch: starts.count, channels: channels, lookback: lookback,
            horizon: horizon)
    }
}

extension SeriesSplit {
    /// The rows of each part.
    func parts(of table: SeriesTable) throws(DatasetError) -> [DatasetSplit: Range<Int>] {
        switch self {
        case .ett:
            guard let minutes = table.minutesBetweenRows, 1440 % minutes == 0 else {
                throw .malformedFile(
                    path: table.path,
                    reason: "expected dated rows some minutes apart, as 2016-07-01 00:15:00 after 2016-07-01 00:00:00")
            }
            let month = 30 * (1440 / minutes)
            guard table.rows >= 20 * month else {
                throw .malformedFile(
                    path: table.path, reason: "it has \(table.rows) rows, needs at least \(20 * month) for 20 months")
            }
            return [.train: 0..<12 * month, .validation: 12 * month..<16 * month, .test: 16 * month..<20 * month]
        case .shares(let train, let test):
            try DatasetError.check(
                train > 0 && test >= 0 && train + test <= 1 + 1e-9, "series split", [train, test],
                expected: "a positive share for training, one for testing, and at most 1 in all")
            // The small number is for products such as 0.29 · 100, which are just below the whole number they mean.
            let trainCount = Int(train * Double(table.rows) + 1e-6)
            let testCount = min(Int(test * Double(table.rows) + 1e-6), table.rows - trainCount)
            let testStart = table.rows - testCount
            return [
                .train: 0..<trainCount, .validation: trainCount..<testStart, .test: testStart..<table.rows,
            ]
        }
    }
}
