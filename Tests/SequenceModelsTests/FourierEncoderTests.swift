import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct FourierEncoderTests {
    private func configuration(_ norm: NormPlacement = .pre) throws -> ModelConfiguration {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        configuration.norm = norm
        return configuration
    }

    private func encoder(_ shortening: FourierShortening, _ norm: NormPlacement = .pre) throws -> FourierEncoder {
        let encoder = try FourierEncoder(configuration(norm), shortening, using: RandomGenerator(seed: 6))
        encoder.to(.float64)
        return encoder
    }

    static let shortenings = [
        FourierShortening(layers: [1], filter: SpectralFilter(.ratio(0.5))),
        FourierShortening(layers: [0, 2], filter: SpectralFilter(.ratio(0.6), keepsFirst: true)),
        FourierShortening(layers: [0, 1, 2], filter: SpectralFilter(.ratio(0.5)), hasGlobalResidual: false),
        FourierShortening(
            layers: [0], filter: SpectralFilter(.length(4), keepsFirst: true), placement: .afterNorm,
            hasGlobalResidual: false),
    ]

    private func normal(_ shape: [Int], seed: UInt64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    @Test(arguments: shortenings.indices, NormPlacement.allCases)
    func sequencesAreAsIfAlone(_ index: Int, _ norm: NormPlacement) throws {
        let shortening = Self.shortenings[index]
        if shortening.placement == .afterNorm && norm == .post { return }
        let encoder = try encoder(shortening, norm)
        let x = normal([3, 11, 8], seed: 7)
        let lengths = [11, 1, 6]
        let mask = Tensor.arange(0..<11).unsqueezed(0) .< Tensor(lengths).unsqueezed(1)
        let (together, outputMask) = encoder(x, paddingMask: mask)
        let counts: [Int64] = try #require(outputMask).to(.int64).sum(1).scalars()
        for (row, length) in lengths.enumerated() {
            let (alone, noMask) = encoder(x.sliced(0, row..<row + 1).sliced(1, 0..<length))
            #expect(noMask == nil)
            #expect(alone.size(1) == encoder.outputLength(length) && Int(counts[row]) == alone.size(1))
            let found = together.sliced(0, row..<row + 1).sliced(1, 0..<alone.size(1))
            #expect(found.deviation(from: alone) < 1e-9, "sequence of \(length)")
        }
    }

    @Test(arguments: shortenings.indices) func efficientFormIsReferenceForm(_ index: Int) throws {
        let encoder = try encoder(Self.shortenings[index])
        let x = normal([2, 13, 8], seed: 8)
        let fast = encoder(x).output
        encoder.usesReference = true
        let slow = encoder(x).output
        #expect(fast.deviation(from: slow) < 1e-9)
    }

    @Test func lengthsShrinkFromFilterToFilter() throws {
        let encoder = try encoder(Self.shortenings[2])
        #expect(encoder.outputLength(13) == 2)
        #expect(encoder(normal([1, 13, 8], seed: 9)).output.shape == [1, 2, 8])
        #expect(try self.encoder(Self.shortenings[0]).outputLength(13) == 13)
    }

    /// With all coefficients kept, and the first block's input added once more, it is the ordinary stack.
    @Test(arguments: NormPlacement.allCases) func withoutFiltersItIsTheOrdinaryStack(_ norm: NormPlacement) throws {
        let none = FourierShortening(layers: [], filter: SpectralFilter(.ratio(0.5)))
        let all = FourierShortening(layers: [1], filter: SpectralFilter(.ratio(1)), hasGlobalResidual: false)
        let ordinary = try SequenceEncoder(configuration(norm), isCausal: false, using: RandomGenerator(seed: 6))
        ordinary.to(.float64)
        let x = normal([2, 9, 8], seed: 10)
        for shortening in [none, all] {
            let found = try encoder(shortening, norm)(x).output
            #expect(found.deviation(from: ordinary(x)) < 1e-12)
        }
    }

    @Test func whatCannotBeBuiltIsRefused() throws {
        let filter = SpectralFilter(.ratio(0.5))
        func refusal(
            _ shortening: FourierShortening, _ change: (inout ModelConfiguration) throws -> Void = { _ in }
        ) throws -> String {
            var configuration = try self.configuration(.post)
            try change(&configuration)
            let error = #expect(throws: ConfigurationError.self) {
                try FourierEncoder(configuration, shortening, using: RandomGenerator(seed: 6))
            }
            return try #require(error).description
        }
        let usual = FourierShortening(layers: [1], filter: filter)
        #expect(
            try refusal(FourierShortening(layers: [0, 3], filter: filter))
                == "filter layer 3 is not one of 3 layers, counted from 0")
        #expect(
            try refusal(FourierShortening(layers: [1, 1], filter: filter)) == "filter layers [1, 1] name a layer twice")
        #expect(
            try refusal(FourierShortening(layers: [1], filter: filter, placement: .afterNorm))
                == "a filter after the norm needs norm: pre")
        #expect(
            try refusal(usual) { $0.feedForwardDim = 0 }
                == "a shortened stack needs feed-forward layers: feedForwardDim must be above 0")
        #expect(
            try refusal(usual) { $0.residual = ResidualConfiguration(.constant) }
                == "residual 'constant' cannot cross a filter, which changes the length")
        #expect(
            try refusal(usual) { $0.mixer = try MixerConfiguration("r-transformer") }
                == "mixer 'r-transformer' has no bidirectional form")
    }
}
