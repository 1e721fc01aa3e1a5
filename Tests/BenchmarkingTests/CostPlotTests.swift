import Foundation
import Testing

@testable import Benchmarking

#if canImport(FoundationXML)
    import FoundationXML
#endif

@Suite struct CostPlotTests {
    /// Times and memories that follow powers of the length.
    static func series(_ name: String, _ exponent: Double, lengths: [Int] = [1024, 2048, 8192]) -> BenchmarkSeries {
        let results = lengths.map { length in
            let cost = 1e-4 * pow(Double(length), exponent)
            var result = BenchmarkResult(
                mechanism: name, causal: true, batch: 1, heads: 1, length: length, headDim: 1, pass: "forward",
                threads: 1, medianMilliseconds: cost, minimumMilliseconds: cost / 2,
                peakResidentMegabytes: 100 + 20 * cost)
            result.baseResidentMegabytes = 100
            return result
        }
        return BenchmarkSeries(name: name, results: results)
    }

    @Test(arguments: [0.9, 1, 1.5, 2]) func exponentsAreFitted(_ exponent: Double) throws {
        let series = Self.series("a", exponent)
        #expect((try #require(series.timeExponent) - exponent).magnitude < 1e-9)
        #expect((try #require(series.memoryExponent) - exponent).magnitude < 1e-6)
    }

    @Test func oneLengthHasNoExponent() {
        #expect(Self.series("a", 1, lengths: [64]).timeExponent == nil)
        #expect(Self.series("a", 1, lengths: [64, 64]).timeExponent == nil)
        #expect(BenchmarkSeries(name: "a").timeExponent == nil)
    }

    /// What a process takes anyway is no memory of the mechanism.
    @Test func tooLittleMemoryHasNoExponent() {
        let series = Self.series("a", 1, lengths: [2, 4])
        #expect(series.timeExponent != nil && series.memoryExponent == nil)
    }

    @Test(arguments: [1, 3, 12]) func everySeriesHasItsCurvesAndLegends(count: Int) {
        let all = (0..<count).map { Self.series("<m\($0) & \"n\">", 1 + Double($0) / 10) }
        let svg = CostPlot(title: "T", subtitle: "S", timeLabel: "time, ms", series: all).svg
        #expect(XMLParser(data: Data(svg.utf8)).parse())
        #expect(svg.ranges(of: "<polyline").count == 2 * count)
        #expect(svg.ranges(of: "&lt;m0 &amp; &quot;n&quot;&gt;").count == 2)
        for series in all {
            let exponent = String(format: "%.2f", series.timeExponent ?? 0)
            #expect(svg.contains(">\(exponent)</tspan>"))
        }
        #expect(svg.contains(">1024<") && svg.contains(">8192<") && svg.contains("time, ms") && svg.contains("MB"))
    }

    /// Every place of the picture lies in it, whatever the figures.
    @Test(arguments: [[1, 1_000_000], [1024, 1025], [3, 5, 7, 11, 13, 17, 19, 23, 29, 31]])
    func placesAreFinite(lengths: [Int]) throws {
        let svg = CostPlot(
            title: "", subtitle: "", timeLabel: "", series: [Self.series("a", 3, lengths: lengths)]
        ).svg
        #expect(!svg.contains("nan") && !svg.contains("inf"))
        for match in svg.matches(of: /cx="([-0-9.]+)" cy="([-0-9.]+)"/) {
            let (x, y) = (try #require(Double(match.1)), try #require(Double(match.2)))
            #expect((0...940).contains(x) && (0...500).contains(y))
        }
    }
}
