/// A random generator whose numbers depend on its seed alone, on every platform and in every release.
///
/// The algorithm is xoshiro256** (Blackman and Vigna, 2018), its state filled by SplitMix64. The standard library
/// promises no fixed algorithm behind `shuffled(using:)` and `random(in:using:)`, so what data sets need is here:
/// ``next(below:)``, ``nextUnit()`` and ``permutation(of:)``.
///
/// Its state is `Codable`: a decoded generator goes on exactly where the encoded one stood.
public struct SeededGenerator: RandomNumberGenerator, Codable, Hashable, Sendable {
    private var s0: UInt64
    private var s1: UInt64
    private var s2: UInt64
    private var s3: UInt64

    /// A generator for `seed`, or for one of the independent streams that `path` names below that seed.
    ///
    /// Streams let a batch be a pure function of seed, epoch and index, so that resuming needs no replay.
    public init(seed: UInt64, path: UInt64...) {
        var mixer = SplitMix64(state: seed)
        for element in path {
            mixer = SplitMix64(state: mixer.next() ^ element)
        }
        self.init(state: (mixer.next(), mixer.next(), mixer.next(), mixer.next()))
    }

    init(state: (UInt64, UInt64, UInt64, UInt64)) {
        (s0, s1, s2, s3) = state
    }

    /// The next 64 random bits.
    public mutating func next() -> UInt64 {
        let result = Self.rotate(s1 &* 5, by: 7) &* 9
        let shifted = s1 << 17
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= shifted
        s3 = Self.rotate(s3, by: 45)
        return result
    }

    /// A uniform integer in `0..<bound`, without bias (Lemire, 2019).
    ///
    /// - Precondition: `bound` is positive.
    public mutating func next(below bound: Int) -> Int {
        precondition(bound > 0, "next(below:): the bound must be positive, is \(bound)")
        let range = UInt64(bound)
        var product = next().multipliedFullWidth(by: range)
        if product.low < range {
            let threshold = (0 &- range) % range
            while product.low < threshold {
                product = next().multipliedFullWidth(by: range)
            }
        }
        return Int(product.high)
    }

    /// A uniform number in `0..<1`, a multiple of 2⁻⁵³.
    public mutating func nextUnit() -> Double {
        Double(next() >> 11) * 0x1p-53
    }

    /// The numbers `0..<count` in random order (Fisher and Yates). O(count) time.
    public mutating func permutation(of count: Int) -> [Int] {
        var order = Array(0..<count)
        shuffle(&order)
        return order
    }

    /// Puts `elements` into random order (Fisher and Yates). O(count) time.
    public mutating func shuffle<Element>(_ elements: inout [Element]) {
        for last in stride(from: elements.count - 1, to: 0, by: -1) {
            elements.swapAt(last, next(below: last + 1))
        }
    }

    private static func rotate(_ value: UInt64, by count: UInt64) -> UInt64 {
        value << count | value >> (64 - count)
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): turns any seed, even 0 or 1, into well-mixed state.
struct SplitMix64 {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}
