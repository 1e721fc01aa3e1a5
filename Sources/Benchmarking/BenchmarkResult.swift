import Foundation

/// Times and memory of one piece of work, as `subq bench --json` prints them.
public struct BenchmarkResult: Codable, Sendable {
    public var mechanism: String
    public var causal: Bool
    public var batch: Int
    public var heads: Int
    public var length: Int
    public var headDim: Int
    /// `forward`, `forward-backward`, `train-step` or `generate`.
    public var pass: String
    public var threads: Int
    public var medianMilliseconds: Double
    public var minimumMilliseconds: Double
    /// The most memory resident while it was measured, in units of 10⁶ bytes.
    public var peakResidentMegabytes: Double
    /// Tokens a second, of language models.
    public var tokensPerSecond: Double?

    private enum CodingKeys: String, CodingKey {
        case mechanism, causal, batch, heads, length, pass, threads
        case headDim = "head_dim"
        case medianMilliseconds = "median_ms"
        case minimumMilliseconds = "min_ms"
        case peakResidentMegabytes = "peak_rss_mb"
        case tokensPerSecond = "tokens_per_s"
    }
}

/// Runs work twice untimed, then `repeats` times timed.
struct Stopwatch {
    let median: Double
    let minimum: Double
    let peakMegabytes: Double

    init(repeats: Int, warmUp: Int = 2, _ work: () -> Void) {
        for _ in 0..<warmUp { work() }
        ProcessMemory.resetPeak()
        let times = (0..<repeats).map { _ in
            let start = ContinuousClock.now
            work()
            let time = (ContinuousClock.now - start).components
            return Double(time.seconds) * 1e3 + Double(time.attoseconds) * 1e-15
        }.sorted()
        minimum = times[0]
        median =
            times.count.isMultiple(of: 2)
            ? (times[times.count / 2 - 1] + times[times.count / 2]) / 2 : times[times.count / 2]
        peakMegabytes = ProcessMemory.peakMegabytes
    }
}

/// The exponent e of the best fit y = c xᵉ: the slope of a line through the logarithms.
public func fittedExponent(_ points: [(x: Double, y: Double)]) -> Double {
    let logs = points.map { (log($0.x), log($0.y)) }
    let count = Double(logs.count)
    let (meanX, meanY) = (logs.map(\.0).reduce(0, +) / count, logs.map(\.1).reduce(0, +) / count)
    let covariance = logs.map { ($0.0 - meanX) * ($0.1 - meanY) }.reduce(0, +)
    return covariance / logs.map { ($0.0 - meanX) * ($0.0 - meanX) }.reduce(0, +)
}
