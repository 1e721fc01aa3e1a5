import Foundation

/// A logarithmic axis: numbers to places, and which numbers get a mark.
struct LogAxis {
    let lowest: Double
    let highest: Double
    /// Places of the two ends, in points.
    let places: (from: Double, to: Double)

    /// Around positive values, with a little room at either end.
    init(around values: [Double], from: Double, to: Double) {
        let (low, high) = (values.min() ?? 1, values.max() ?? 10)
        let room = high > low ? pow(high / low, 0.06) : 2
        lowest = low / room
        highest = high * room
        places = (from, to)
    }

    func place(_ value: Double) -> Double {
        places.from + (places.to - places.from) * log(value / lowest) / log(highest / lowest)
    }

    func contains(_ value: Double) -> Bool { value >= lowest && value <= highest }

    /// Numbers 1, 2, 5, 10, …, as dense as at most `limit` of them allow.
    func marks(limit: Int = 9) -> [Double] {
        for digits in [[1.0, 2, 5], [1.0, 3], [1.0]] {
            let found = decades.flatMap { decade in digits.map { $0 * pow(10, Double(decade)) } }.filter(contains)
            if found.count <= limit { return found }
        }
        let step = max(1, (decades.count + limit - 1) / limit)
        return decades.filter { $0.isMultiple(of: step) }.map { pow(10, Double($0)) }.filter(contains)
    }

    /// The values themselves where they are few, else round numbers.
    func marks(at values: [Double], limit: Int = 7) -> [Double] {
        let distinct = Set(values).sorted()
        let span = log(highest / lowest)
        let isClear = zip(distinct, distinct.dropFirst()).allSatisfy { log($1 / $0) > span / Double(limit + 1) }
        return isClear ? distinct : marks(limit: limit)
    }

    private var decades: ClosedRange<Int> { Int(log10(lowest).rounded(.down))...Int(log10(highest).rounded(.up)) }

    /// Whole, or with the digits that a small number needs.
    static func text(_ value: Double) -> String {
        if value >= 1e6 { return String(format: "%.4gM", value / 1e6) }
        return value >= 1 ? String(format: "%.0f", value) : String(format: "%.2g", value)
    }
}
