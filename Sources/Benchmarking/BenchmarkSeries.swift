import Foundation

/// What one mechanism took at each of several lengths.
public struct BenchmarkSeries: Sendable {
    /// What the mechanism is called where several are compared.
    public let name: String
    /// Whether it is the reference form that was measured.
    public let isReference: Bool
    public var results: [BenchmarkResult] = []

    public init(name: String, isReference: Bool = false, results: [BenchmarkResult] = []) {
        self.name = name
        self.isReference = isReference
        self.results = results
    }

    /// e of time ≈ c Nᵉ; nil for fewer than two lengths.
    public var timeExponent: Double? { exponent(of: times) }

    /// e of memory ≈ c Nᵉ, for what is needed beyond the base; nil for fewer than two lengths, or where it is too little to
    /// be told from what a process takes anyway.
    public var memoryExponent: Double? { exponent(of: memories) }

    /// Lengths and median milliseconds.
    var times: [(x: Double, y: Double)] { results.map { (Double($0.length), $0.medianMilliseconds) } }

    /// Lengths and megabytes, where there are at least a few pages' worth.
    var memories: [(x: Double, y: Double)] {
        results.compactMap { result in
            result.extraMegabytes.flatMap { $0 >= 0.5 ? (Double(result.length), $0) : nil }
        }
    }

    private func exponent(of points: [(x: Double, y: Double)]) -> Double? {
        guard points.count == results.count, Set(points.map(\.x)).count > 1 else { return nil }
        return fittedExponent(points)
    }
}

/// The exponent e of the best fit y = c xᵉ: the slope of a line through the logarithms. At least two different x.
public func fittedExponent(_ points: [(x: Double, y: Double)]) -> Double {
    let logs = points.map { (log($0.x), log($0.y)) }
    let count = Double(logs.count)
    let (meanX, meanY) = (logs.map(\.0).reduce(0, +) / count, logs.map(\.1).reduce(0, +) / count)
    let covariance = logs.map { ($0.0 - meanX) * ($0.1 - meanY) }.reduce(0, +)
    return covariance / logs.map { ($0.0 - meanX) * ($0.0 - meanX) }.reduce(0, +)
}
