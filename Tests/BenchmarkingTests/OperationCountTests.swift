import Benchmarking
import SequenceMixers
import Testing
import Torch

@Suite struct OperationCountTests {
    static let shape = BenchmarkShape(batch: 2, heads: 3, length: 37, headDim: 5, layers: 2)

    static func count(
        _ work: BenchmarkTask.Work, _ name: String, _ options: (any MixerOptions)? = nil, causal: Bool,
        _ pass: BenchmarkPass = .forward
    ) throws -> Double? {
        OperationCount.of(
            BenchmarkTask(
                work, try MixerConfiguration(name, options), causal: causal, shape, pass: pass, repeats: 1))
    }

    /// Four operations for each channel of each pair that may be seen.
    static func ofPairs(_ isSeen: (Int, Int) -> Bool) -> Double {
        let places = 0..<shape.length
        let pairs = places.map { i in places.count { isSeen(i, $0) } }.reduce(0, +)
        return Double(4 * shape.batch * shape.heads * shape.headDim * pairs)
    }

    @Test func pairsAreThoseThatAreSeen() throws {
        func expect(_ count: Double?, _ expected: Double) {
            #expect(((count ?? 0) / expected - 1).magnitude < 1e-12, "\(count ?? 0), expected \(expected)")
        }
        expect(try Self.count(.attention, "softmax", causal: true), Self.ofPairs { $1 <= $0 })
        expect(try Self.count(.attention, "softmax", causal: false), Self.ofPairs { _, _ in true })
        expect(
            try Self.count(.attention, "ngram", NGramOptions(ngram: 6), causal: true),
            Self.ofPairs { (0...5).contains($0 - $1) })
        for (radius, causal) in [(4, true), (4, false), (36, false), (100, true), (0, false)] {
            let options = SparseOptions(.window(radius: radius))
            expect(
                try Self.count(.attention, "sparse", options, causal: causal),
                Self.ofPairs { abs($0 - $1) <= radius && (!causal || $1 <= $0) })
        }
    }

    /// Momentum carries a second state along, where its weights do not depend on the end.
    @Test func momentumHasTwoStates() throws {
        func momentum(_ weights: MomentumWeights?, causal: Bool) throws -> Double? {
            try Self.count(
                .attention, "momentum", MomentumOptions(momentum: nil, stepSize: 0.5, weights: weights), causal: causal)
        }
        let state = Double(4 * 2 * 3 * 37 * 5 * 5)
        let linear = try #require(try Self.count(.attention, "linear", causal: true))
        #expect(try momentum(nil, causal: true) == linear + state)
        #expect(try momentum(.final, causal: true) == linear)
        #expect(try momentum(nil, causal: false) == state)
        #expect(try momentum(.adaptive, causal: true) == nil)
    }

    @Test func backwardCountsTwice() throws {
        let forward = try #require(try Self.count(.layer, "linear", causal: true))
        #expect(try Self.count(.layer, "linear", causal: true, .forwardBackward) == 3 * forward)
    }

    @Test func layersHaveProjections() throws {
        let core = try #require(try Self.count(.attention, "softmax", causal: true))
        let layer = try #require(try Self.count(.layer, "softmax", causal: true))
        #expect(layer - core == Double(4 * 2 * 2 * 37 * 15 * 15))
    }

    @Test func productsCount() {
        let shape = BenchmarkShape(batch: 1, heads: 1, length: 10, headDim: 10)
        #expect(OperationCount.of(BenchmarkTask(.product, nil, shape, repeats: 1)) == 2000)
    }

    /// No number is better than a wrong one.
    @Test(arguments: ["aft", "mega", "r-transformer", "fourier-transformer", "samformer", "sparse-mlp"])
    func otherMechanismsHaveNoCount(_ name: String) throws {
        #expect(try Self.count(.attention, name, causal: false) == nil)
        #expect(try Self.count(.layer, name, causal: false) == nil)
    }
}
