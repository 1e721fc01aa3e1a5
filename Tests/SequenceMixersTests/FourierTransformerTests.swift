import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct FourierTransformerTests {
    private func normal(_ shape: [Int], seed: UInt64 = 4) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    /// Every length to every length: one, even, odd, prime.
    @Test(arguments: [1, 2, 3, 4, 5, 8, 9, 17, 30]) func fastTransformsAreTheMatrices(_ length: Int) throws {
        let x = normal([2, length, 3]).requiringGrad()
        for kept in 1...length {
            for keepsFirst in [false, true] {
                let filter = SpectralFilter(.length(kept), keepsFirst: keepsFirst)
                let (fast, slow) = (filter(x), filter(x, usesReference: true))
                #expect(fast.shape == [2, filter.outputLength(length), 3])
                #expect(fast.deviation(from: slow) < 1e-13, "\(kept) of \(length)")
                let weight = normal(fast.shape, seed: 5)
                let found = [fast, slow].compactMap {
                    gradients(of: [$0], weightedBy: [weight], withRespectTo: [x])[0]
                }
                #expect(found.count == 2 && found[0].deviation(from: found[1]) < 1e-13, "\(kept) of \(length)")
            }
        }
    }

    @Test func lowFrequenciesPass() {
        // Of a cosine of one of the kept frequencies, the filter gives the same cosine at fewer places.
        func wave(_ k: Int, _ n: Int) -> Tensor {
            let places = Tensor.arange(0..<n, dtype: .float64) * 2 + 1
            return (places * (Double.pi * Double(k) / Double(2 * n))).cos().reshaped(1, n, 1)
        }
        let filter = SpectralFilter(.length(6), keepsAmplitude: true)
        for k in 0..<6 { #expect(filter(wave(k, 20)).deviation(from: wave(k, 6)) < 1e-13) }
        for k in 6..<20 { #expect(filter(wave(k, 20)).abs().maximum().item() < 1e-13) }
    }

    @Test func constantsGrowByTheRootOfTheRatio() {
        let ones = Tensor.ones([1, 16, 1], dtype: .float64)
        let grown = SpectralFilter(.ratio(0.25))(ones)
        #expect(grown.deviation(from: Tensor.full([1, 4, 1], 2, dtype: .float64)) < 1e-14)
        let kept = SpectralFilter(.ratio(0.25), keepsAmplitude: true)(ones)
        #expect(kept.deviation(from: Tensor.ones([1, 4, 1], dtype: .float64)) < 1e-14)
    }

    @Test func allCoefficientsAreTheSequence() {
        let x = normal([2, 9, 3])
        #expect(SpectralFilter(.ratio(1))(x).isIdentical(to: x))
        #expect(SpectralFilter(.ratio(1))(x, usesReference: true).deviation(from: x) < 1e-13)
        // A ratio counts the class token that stays out of the transform.
        #expect(SpectralFilter(.ratio(1), keepsFirst: true)(x).isIdentical(to: x))
    }

    @Test func lengths() {
        let cases: [(SpectralFilter.Kept, Bool, Int, Int)] = [
            (.ratio(0.2), false, 17, 4), (.ratio(0.2), true, 26, 7), (.ratio(0.4), false, 33, 14),
            (.ratio(0.001), false, 5, 1), (.ratio(0.5), false, 1, 1), (.ratio(0.5), true, 1, 1),
            (.ratio(0.5), true, 2, 2), (.length(8), false, 29, 8), (.length(8), false, 3, 3), (.length(8), true, 29, 9),
        ]
        for (kept, keepsFirst, length, expected) in cases {
            let filter = SpectralFilter(kept, keepsFirst: keepsFirst)
            #expect(filter.outputLength(length) == expected)
            #expect(filter(normal([1, length, 2])).size(1) == expected)
        }
    }

    @Test func stretchingTakesTheNearestToTheLeft() {
        func places(_ count: Int, to length: Int, keepsFirst: Bool = false) -> [Int64] {
            let y = Tensor.arange(0..<count, dtype: .float64).reshaped(1, count, 1)
            return SpectralFilter(.ratio(0.5), keepsFirst: keepsFirst).upsampled(y, to: length)
                .to(.int64).flattened().scalars()
        }
        #expect(places(3, to: 3) == [0, 1, 2])
        #expect(places(2, to: 5) == [0, 0, 0, 1, 1])
        #expect(places(3, to: 7) == [0, 0, 0, 1, 1, 2, 2])
        #expect(places(1, to: 4) == [0, 0, 0, 0])
        #expect(places(3, to: 6, keepsFirst: true) == [0, 1, 1, 1, 2, 2])
        #expect(places(1, to: 1, keepsFirst: true) == [0])
    }

    @Test func halfPrecisionIsTransformedInSingle() {
        let x = normal([1, 64, 3])
        let filter = SpectralFilter(.ratio(0.5))
        for dtype in [DType.float16, .bfloat16] {
            let y = filter(x.to(dtype))
            #expect(y.dtype == dtype)
            #expect(y.deviation(from: filter(x)) < 0.02)
        }
    }

    @Test func groupsAreEvaluatedAlone() {
        let x = normal([4, 6, 2])
        let places = [[0, 1, 2], [], [1, 3, 5], [0, 1, 2, 3, 4, 5]]
        let mask = Tensor(places.flatMap { row in (0..<6).map { row.contains($0) } }, shape: [4, 6])
        let groups = LengthGroups(mask)
        #expect(groups.lengths == [3, 0, 3, 6])
        var calls: [[Int]] = []
        let sums = groups.mapped(x) {
            calls.append($0.shape)
            return $0.cumulativeSum(1)
        }
        #expect(calls == [[2, 3, 2], [1, 6, 2]])
        for (row, places) in places.enumerated() where !places.isEmpty {
            let expected = x.sliced(0, row..<row + 1).indexed(1, Tensor(places)).cumulativeSum(1)
            #expect(sums.sliced(0, row..<row + 1).indexed(1, Tensor(places)).deviation(from: expected) < 1e-15)
        }
        #expect(sums.masked(where: mask.unsqueezed(2), with: 0).abs().maximum().item() == 0)
        let firsts = groups.evaluated(x, paddedTo: 2) { $0.sliced(1, 0..<1) }
        #expect(firsts.shape == [4, 2, 2])
        #expect(firsts.selected(1, 1).abs().maximum().item() == 0)
        #expect(firsts.selected(1, 0).selected(0, 2).isIdentical(to: x.selected(0, 2).selected(0, 1)))
    }

    @Test(arguments: [
        ("\"ratio\": 0", "fourier-transformer: ratio must be above 0 and at most 1, not 0.0"),
        ("\"ratio\": 1.5", "fourier-transformer: ratio must be above 0 and at most 1, not 1.5"),
        ("\"kept\": 0", "fourier-transformer: kept must be at least 1, not 0"),
        (
            "\"kept\": 4, \"ratio\": 0.5",
            "fourier-transformer: ratio would be ignored: kept says how many coefficients stay"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        #expect(throws: ConfigurationError(text)) {
            try MixerConfiguration("fourier-transformer", json: json).build(.small(causal: false))
        }
    }

    @Test func causalFormsAreRefused() throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
        var text = "mixer 'fourier-transformer' has no causal form: its cosine transform mixes the whole sequence"
        #expect(throws: ConfigurationError(text)) { try MixerConfiguration("fourier-transformer").build(context) }
        text = "fourier-transformer: the cosine transform mixes the whole sequence, so there is no causal form"
        #expect(throws: ConfigurationError(text)) { try FourierTransformerOptions().build(context) }
    }
}
