import Foundation
import Testing

@testable import Datasets

@Suite struct SeededGeneratorTests {
    @Test func splitMixGivesItsPublishedNumbers() {
        var mixer = SplitMix64(state: 1_234_567)
        let expected: [UInt64] = [
            6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423,
            4_593_380_528_125_082_431, 16_408_922_859_458_223_821,
        ]
        #expect(expected.map { _ in mixer.next() } == expected)
    }

    @Test func xoshiroGivesItsPublishedNumbers() {
        var generator = SeededGenerator(state: (1, 2, 3, 4))
        let expected: [UInt64] = [
            11520, 0, 1_509_978_240, 1_215_971_899_390_074_240, 1_216_172_134_540_287_360, 607_988_272_756_665_600,
        ]
        #expect(expected.map { _ in generator.next() } == expected)
    }

    @Test func numbersOfASeedNeverChange() {
        var generator = SeededGenerator(seed: 7, path: 3, 1)
        #expect((0..<8).map { _ in generator.next(below: 1000) } == [133, 232, 582, 490, 44, 847, 952, 22])
    }

    @Test(arguments: 0..<10 as Range<UInt64>)
    func decodedGeneratorGoesOn(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<seed { _ = generator.next() }
        var copy = try JSONDecoder().decode(SeededGenerator.self, from: JSONEncoder().encode(generator))
        #expect((0..<100).map { _ in generator.next() } == (0..<100).map { _ in copy.next() })
    }

    @Test func streamsDiffer() {
        var streams = [
            SeededGenerator(seed: 1), SeededGenerator(seed: 2), SeededGenerator(seed: 1, path: 0),
            SeededGenerator(seed: 1, path: 1), SeededGenerator(seed: 1, path: 0, 1),
            SeededGenerator(seed: 1, path: 1, 0),
        ]
        #expect(Set(streams.indices.map { streams[$0].next() }).count == streams.count)
    }

    @Test(arguments: [0, 1, 2, 3, 10, 257, 1000])
    func permutationHoldsEachNumberOnce(count: Int) {
        var generator = SeededGenerator(seed: UInt64(count))
        let order = generator.permutation(of: count)
        #expect(order.sorted() == Array(0..<count))
        #expect(count < 10 || order != order.sorted())
    }

    @Test func numbersBelowABoundAreUniform() {
        var generator = SeededGenerator(seed: 11)
        var counts = [Int](repeating: 0, count: 7)
        for _ in 0..<70_000 { counts[generator.next(below: 7)] += 1 }
        // Standard deviation 93: six of them.
        #expect(counts.allSatisfy { abs($0 - 10_000) < 560 }, "\(counts)")
        let units = (0..<10_000).map { _ in generator.nextUnit() }
        #expect(units.allSatisfy { (0..<1).contains($0) })
        #expect(abs(units.reduce(0, +) / 10_000 - 0.5) < 0.02)
    }

    @Test func largestBoundWorks() {
        var generator = SeededGenerator(seed: 5)
        for _ in 0..<100 {
            #expect((0..<Int.max).contains(generator.next(below: .max)))
            #expect(generator.next(below: 1) == 0)
        }
    }
}
