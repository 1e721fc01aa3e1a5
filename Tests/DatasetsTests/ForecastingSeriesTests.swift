import Foundation
import Testing

@testable import Datasets

@Suite struct ForecastingSeriesTests {
    let folder: TemporaryFolder

    init() throws { folder = try TemporaryFolder() }

    /// `rows` hours of two channels: the row's number, and ten less its triple.
    private func table(_ rows: Int, header: String? = "date,up,down", minutes: Int? = 60) -> String {
        var lines = header.map { [$0] } ?? []
        for row in 0..<rows {
            let time = (minutes ?? 0) * row
            let day = 1 + time / 1440 % 28
            let date =
                "2016-07-\(day < 10 ? "0" : "")\(day) \(time / 60 % 24):\(time % 60 < 10 ? "0" : "")\(time % 60):00"
            lines.append((minutes == nil ? "" : "\(date),") + "\(row),\(10 - 3 * row)")
        }
        return lines.joined(separator: "\n") + "\n"
    }

    private func series(
        _ text: String, _ split: SeriesSplit = .shares(train: 0.6, test: 0.2), lookback: Int = 5, horizon: Int = 3,
        channels: Int? = nil
    ) throws -> ForecastingSeries {
        try ForecastingSeries(
            contentsOf: folder.write(text, to: "x.csv"), split: split, channels: channels, lookback: lookback,
            horizon: horizon)
    }

    @Test func numbersAreStandardizedByTheRowsForTraining() throws {
        let data = try series(table(50))
        #expect(data.channels == 2 && data.means == [14.5, 10 - 3 * 14.5])
        let deviation = (899.0 / 12).squareRoot()  // of 0 ..< 30
        #expect(abs(data.deviations[0] - deviation) < 1e-12 && abs(data.deviations[1] - 3 * deviation) < 1e-12)
        let batch = try data.evaluationBatches(of: .train, batchSize: 1)[2]
        let expected = (2..<7).map { Float((Double($0) - 14.5) / deviation) }
        #expect(zip(batch.history, expected + expected.map { -$0 }).allSatisfy { abs($0 - $1) < 1e-6 })
        #expect(abs(batch.future[2] - Float((9 - 14.5) / deviation)) < 1e-6)
    }

    /// The windows of validation and test look back into what is before; those for training stay in their part.
    @Test func splitsHaveTheirWindows() throws {
        let data = try series(table(50))
        #expect(data.windows(of: .train) == 0..<23)
        #expect(data.windows(of: .validation) == 25..<33)
        #expect(data.windows(of: .test) == 35..<43)
        for (split, count) in [(DatasetSplit.train, 23), (.validation, 8), (.test, 8)] {
            let batches = try data.evaluationBatches(of: split, batchSize: 5)
            #expect(batches.map(\.batch).reduce(0, +) == count)
            #expect(batches.map(\.countedTargets).reduce(0, +) == count * 2 * 3)
            #expect(batches.first?.realTokens == 10)
        }
        // One of the other splits may look further back than there is anything.
        #expect(try series(table(20), .shares(train: 0.1, test: 0.4), lookback: 4).windows(of: .validation) == 0..<6)
    }

    /// 12, 4 and 4 months of 30 days, whatever the step: the counts of the literature for 512 and 96 hours.
    @Test(arguments: [60, 30]) func theCalendarOfETTIsKept(_ minutes: Int) throws {
        let day = 1440 / minutes
        let data = try series(table(601 * day, minutes: minutes), .ett, lookback: 512, horizon: 96)
        #expect(data.windows(of: .train).count == 360 * day - 607)
        #expect(data.windows(of: .validation).count == 120 * day - 95)
        #expect(data.windows(of: .test) == 480 * day - 512..<600 * day - 607)
        if minutes == 60 {
            #expect(DatasetSplit.allCases.map { data.windows(of: $0).count } == [8033, 2785, 2785])
        }
    }

    @Test func trainingTakesEachWindowOnceInAnEpochAndResumes() throws {
        let data = try series(table(50))
        var source = try data.trainingBatches(batchSize: 4, seed: 7)
        #expect(source.batchesPerEpoch == 5)
        var starts: [[Float]] = []
        var third: SeriesBatch?
        for index in 0..<5 {
            let batch = try source.next()
            #expect(batch.batch == 4)
            starts += (0..<4).map { [batch.history[$0 * 10]] }
            if index == 2 { third = batch }
        }
        #expect(Set(starts).count == 20 && source.position.epoch == 1)
        try source.resume(at: BatchPosition(seed: 7, epoch: 0, index: 2))
        #expect(try source.next() == third)
        #expect(throws: DatasetError.self) { try source.resume(at: BatchPosition(seed: 7, epoch: 0, index: 5)) }
        #expect(throws: DatasetError.self) { try data.trainingBatches(batchSize: 24, seed: 7) }
        #expect(throws: DatasetError.self) { try data.trainingBatches(batchSize: 0, seed: 7) }
    }

    @Test func tablesMayBeWrittenInSeveralWays() throws {
        let plain = try series(table(30))
        for text in [
            table(30, header: nil), table(30, header: nil, minutes: nil), table(30, header: "up,down", minutes: nil),
            table(30).replacing("\n", with: "\r\n"), String(table(30).dropLast()),
        ] {
            let other = try series(text)
            #expect(other.channels == 2 && other.means == plain.means)
            #expect(other.windows(of: .test) == plain.windows(of: .test))
        }
        let packed = try folder.write(try folder.gzip(Array(table(30).utf8)), to: "y.csv.gz")
        let data = try ForecastingSeries(
            contentsOf: packed, split: .shares(train: 0.6, test: 0.2), lookback: 5, horizon: 3)
        #expect(data.means == plain.means)
    }

    @Test func aConstantChannelStaysFinite() throws {
        let data = try series((0..<30).map { "\($0),4" }.joined(separator: "\n"))
        #expect(data.deviations[1] == 1)
        let batch = try data.evaluationBatches(of: .test, batchSize: 99)[0]
        #expect(batch.history[5..<10].allSatisfy { $0 == 0 })
    }

    @Test(arguments: [
        ("", "is empty, expected at least one byte of data"),
        ("date,a,b\n", ":2: expected a row of numbers, found the end of the file"),
        ("1,2\n3\n", ":2: expected 2 columns, found 1"),
        ("1,2\n3,4,5\n", ":2: expected 2 columns, found 3"),
        ("1,2\n3,x\n", ":2: expected a finite number, found 'x'"),
        ("1,2\n3,nan\n", ":2: expected a finite number, found 'nan'"),
        ("1,2\n\n3,4\n", ":2: expected 2 columns, found 1"),
        ("a,b\nc\n", ":2: expected 2 columns, found 1"),
        ("1,2\n3,inf\n", ":2: expected a finite number, found 'inf'"),
    ]) func tablesThatAreNone(_ text: String, _ reason: String) throws {
        let error = #expect(throws: DatasetError.self) { try series(text) }
        #expect(error?.description.hasSuffix(reason) == true, "\(error?.description ?? "")")
    }

    @Test func tablesThatDoNotFit() throws {
        func reason(_ body: () throws -> Void) -> String {
            (#expect(throws: DatasetError.self) { try body() })?.description ?? ""
        }
        #expect(reason { _ = try series(table(50), channels: 7) }.hasSuffix("it has 2 channels, expected 7"))
        #expect(
            reason { _ = try series(table(50), .ett) }.hasSuffix("it has 50 rows, needs at least 14400 for 20 months"))
        for text in [table(50, minutes: nil), table(50, minutes: 7), "x,1\ny,2\n"] {
            #expect(reason { _ = try series(text, .ett) }.contains("expected dated rows some minutes apart"))
        }
        #expect(reason { _ = try series(table(50), lookback: 0) }.hasPrefix("lookback: is 0"))
        #expect(reason { _ = try series(table(50), horizon: 0) }.hasPrefix("horizon: is 0"))
        #expect(reason { _ = try series(table(50), .shares(train: 0.9, test: 0.2)) }.hasPrefix("series split: is"))
        let short = try series(table(50), lookback: 40, horizon: 20)
        #expect(reason { _ = try short.trainingBatches(batchSize: 1, seed: 1) }.contains("windows of 40 + 20 rows"))
        #expect(
            reason { _ = try short.evaluationBatches(of: .test, batchSize: 1) }.hasSuffix(
                "has 0 examples, needs at least 1"))
    }
}
