import Foundation
import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

/// The reversible stack against the plain graph of the same function, around many mixers.
@Suite struct ReversibleEncoderTests {
    enum Mixer: CaseIterable {
        case softmax, linear, momentum, lsh, local, pattern

        func configuration() throws -> MixerConfiguration {
            var options = ReformerOptions()
            (options.chunk, options.buckets) = (4, BucketFactors(4))
            switch self {
            case .softmax: return try MixerConfiguration("softmax")
            case .linear: return try MixerConfiguration("linear")
            case .momentum: return try MixerConfiguration("momentum", MomentumOptions(momentum: 0.9, stepSize: 0.5))
            case .lsh: return try MixerConfiguration("reformer", options)
            case .pattern:
                options.layers = [.local, .lsh]
                return try MixerConfiguration("reformer", options)
            case .local:
                options.attention = .local
                options.buckets = nil
                return try MixerConfiguration("reformer", options)
            }
        }
    }

    private func configuration(_ mixer: MixerConfiguration, layers: Int = 3) -> ModelConfiguration {
        var configuration = smallConfiguration(mixer)
        configuration.layers = layers
        configuration.residual = ResidualConfiguration(.reversible)
        return configuration
    }

    private func randomNormal(_ shape: [Int], seed: UInt64, _ dtype: DType = .float64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: dtype)
    }

    /// Output and gradients of one training step, from one state of the generator.
    private func step(
        _ encoder: SequenceEncoder, _ generator: RandomGenerator, _ state: Tensor, _ x: Tensor, _ mask: Tensor?,
        keepsActivations: Bool
    ) -> [Tensor] {
        generator.state = state
        encoder.keepsActivations = keepsActivations
        let leaf = x.requiringGrad()
        let y = encoder(leaf, paddingMask: mask)
        let kept = mask.map { y.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? y
        let parameters = encoder.parameters().filter(\.isTrainable).map(\.value)
        let found = gradients(
            of: [kept], weightedBy: [randomNormal(y.shape, seed: 9)], withRespectTo: [leaf] + parameters)
        return [kept] + found.map { $0 ?? .zeros([1]) } + [generator.state]
    }

    /// Rotations are drawn and dropout is on: the second computation of a block must repeat both.
    @Test(arguments: Mixer.allCases, [0, 0.3]) func gradientsAreThoseOfThePlainGraph(_ mixer: Mixer, _ dropout: Double)
        throws
    {
        for (slice, frozen) in [(nil, false), (5, true), (1, false)] as [(Int?, Bool)] {
            var configuration = configuration(try mixer.configuration())
            (configuration.dropout, configuration.feedForwardSlice) = (dropout, slice)
            let generator = RandomGenerator(seed: 3)
            let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
            encoder.to(.float64)
            if frozen { encoder.blocks[1].freeze() }
            let x = randomNormal([2, 13, 8], seed: 4)
            let mask = Tensor.arange(0..<13).unsqueezed(0) .< Tensor([13, 7]).unsqueezed(1)
            for mask in [nil, mask] {
                let state = generator.state
                let plain = step(encoder, generator, state, x, mask, keepsActivations: true)
                let found = step(encoder, generator, state, x, mask, keepsActivations: false)
                #expect(found.count == plain.count && plain[0].shape == [2, 13, 16])
                for (index, (found, expected)) in zip(found, plain).enumerated() {
                    let difference = (found.to(.float64) - expected.to(.float64)).abs().maximum().item()
                    let size = max(1, expected.to(.float64).abs().maximum().item())
                    #expect(difference <= 1e-10 * size, "\(index), slice \(slice ?? 0)")
                }
            }
        }
    }

    /// In float32 a block's inputs come back with rounding errors, which may not change a bucket.
    @Test func bucketsAreNotHashedAgain() throws {
        var configuration = configuration(try Mixer.lsh.configuration(), layers: 8)
        configuration.dropout = 0.1
        let generator = RandomGenerator(seed: 5)
        let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
        let x = randomNormal([2, 200, 8], seed: 6, .float32)
        let state = generator.state
        let plain = step(encoder, generator, state, x, nil, keepsActivations: true)
        let found = step(encoder, generator, state, x, nil, keepsActivations: false)
        for (found, expected) in zip(found.dropLast(), plain.dropLast()) {
            let size = max(1, expected.abs().maximum().item())
            #expect((found - expected).abs().maximum().item() < 1e-3 * size)
        }
    }

    @Test func itIsTheRecurrence() throws {
        let configuration = configuration(try MixerConfiguration("softmax"), layers: 2)
        let encoder = try SequenceEncoder(configuration, isCausal: true, using: RandomGenerator(seed: 7))
        let x = randomNormal([1, 5, 8], seed: 8, .float32)
        var (x1, x2) = (x, x)
        for block in encoder.blocks {
            let mixerNorm = try #require(block.mixerNorm)
            let feedForwardNorm = try #require(block.feedForwardNorm)
            let feedForward = try #require(block.feedForward)
            x1 = x1 + block.mixer(mixerNorm(x2))
            x2 = x2 + feedForward(feedForwardNorm(x1))
        }
        let norm = try #require(encoder.norm)
        let expected = norm(concatenate([x1, x2], dim: 2))
        let found = encoder(x)
        #expect(found.deviation(from: expected) < 1e-6)
        #expect(encoder.stateDictionary()["norm.weight"]?.shape == [16])
    }

    /// A weight that all layers share gets the sum of its gradients.
    @Test func sharedWeightsGetAllTheirGradients() throws {
        let configuration = configuration(try MixerConfiguration("softmax"))
        let generator = RandomGenerator(seed: 10)
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: generator)
        let mixer = try configuration.mixer.build(context)
        let encoder = SequenceEncoder(configuration, mixers: [mixer, mixer, mixer], using: generator)
        encoder.to(.float64)
        let x = randomNormal([2, 6, 8], seed: 11)
        let plain = step(encoder, generator, generator.state, x, nil, keepsActivations: true)
        let found = step(encoder, generator, generator.state, x, nil, keepsActivations: false)
        for (found, expected) in zip(found.dropLast(), plain.dropLast()) {
            #expect(found.deviation(from: expected) < 1e-9 || expected.abs().maximum().item() < 1e-12)
        }
    }

    @Test func aGraphCanBeUsedTwice() throws {
        let encoder = try SequenceEncoder(
            configuration(try Mixer.pattern.configuration()), isCausal: true, using: RandomGenerator(seed: 12))
        let x = randomNormal([1, 9, 8], seed: 13, .float32).requiringGrad()
        let y = encoder(x)
        let weight = randomNormal(y.shape, seed: 14, .float32)
        let first = gradients(of: [y], weightedBy: [weight], withRespectTo: [x], keepGraph: true)[0]
        let second = gradients(of: [y], weightedBy: [weight], withRespectTo: [x])[0]
        #expect(try #require(first).isIdentical(to: try #require(second)))
    }

    @Test func activationsDoNotGrowWithTheDepth() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            /// Bytes between the forward and the backward pass.
            func kept(_ layers: Int, _ kind: ResidualConfiguration.Kind) throws -> Int {
                var options = ReformerOptions()
                (options.chunk, options.buckets) = (32, BucketFactors(16))
                var configuration = ModelConfiguration(mixer: try MixerConfiguration("reformer", options))
                (configuration.layers, configuration.modelDim, configuration.heads) = (layers, 64, 4)
                configuration.residual = ResidualConfiguration(kind)
                let generator = RandomGenerator(seed: 1)
                let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
                let x = Tensor.randomNormal([1, 8192, 64], using: generator)
                let before = TorchRuntime.cachedMemory.inUse
                let y = encoder(x)
                let kept = TorchRuntime.cachedMemory.inUse - before
                y.sum().backward()
                return kept
            }
            let stream = 8192 * 64 * 4
            let (shallow, deep) = (try kept(2, .reversible), try kept(10, .reversible))
            // Bucket ids, 2 rounds · 4 heads · 4 bytes a token, are an eighth of a stream for each layer.
            precondition(deep - shallow <= 8 * stream / 8 + stream / 2, "\(shallow), \(deep), stream \(stream)")
            let plain = try kept(10, .plain)
            precondition(plain > 40 * stream && deep < plain / 8, "\(deep), \(plain)")
        }
    }

    // MARK: Models

    @Test(arguments: [Mixer.softmax, .linear, .momentum, .local]) func streamingIsTheParallelForm(_ mixer: Mixer) throws
    {
        var configuration = configuration(try mixer.configuration())
        configuration.feedForwardSlice = 3
        let model = try LanguageModel(configuration, vocabulary: 11, maximumLength: 20, using: RandomGenerator(seed: 3))
        model.to(.float64)
        model.evaluate()
        #expect(model.head.weight.value.shape == [11, 16])
        let ids = randomIds([2, 20], seed: 4)
        try withNoGrad {
            let expected = model(ids)
            var state = try model.initialState(batch: 2)
            let first = model.prefill(ids.sliced(1, 0..<13), state: &state)
            #expect(first.deviation(from: expected.selected(1, 12)) < 1e-9)
            for index in 13..<20 {
                let logits = model.step(ids.selected(1, index), state: &state)
                #expect(logits.deviation(from: expected.selected(1, index)) < 1e-9, "token \(index)")
            }
        }
    }

    @Test func classifiersReadBothStreams() throws {
        let configuration = configuration(try Mixer.lsh.configuration())
        let model = try SequenceClassifier(
            configuration, vocabulary: 11, classes: 3, maximumLength: 16, using: RandomGenerator(seed: 6))
        model.evaluate()
        #expect(model.head.weight.value.shape == [3, 16])
        #expect(model(randomIds([2, 16], seed: 7)).shape == [2, 3])
    }

    @Test func lshSaysWhyItCannotStream() throws {
        let model = try LanguageModel(
            configuration(try Mixer.lsh.configuration()), vocabulary: 11, maximumLength: 9,
            using: RandomGenerator(seed: 3))
        let error = #expect(throws: ConfigurationError.self) { _ = try model.initialState() }
        let text = "the mixer of block 0, LSHAttention, cannot go token by token as it was configured: "
        #expect(error?.description == text + "whom a token meets depends on the hashes of all tokens, later ones too")
    }
}

/// Feed-forward layers that take a slice of the length at a time.
@Suite struct FeedForwardSliceTests {
    @Test(arguments: NormPlacement.allCases) func numbersAreTheSame(_ norm: NormPlacement) throws {
        func run(_ slice: Int?, gated: Bool) throws -> [Tensor] {
            var configuration = smallConfiguration(try MixerConfiguration("softmax"))
            (configuration.norm, configuration.feedForwardSlice) = (norm, slice)
            configuration.gatedFeedForward = gated
            let generator = RandomGenerator(seed: 3)
            let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
            encoder.to(.float64)
            let x = Tensor.randomNormal([2, 11, 8], using: generator, dtype: .float64).requiringGrad()
            let y = encoder(x)
            y.backward(gradient: .randomNormal(y.shape, using: generator, dtype: .float64))
            return [y, try #require(x.grad)] + encoder.parameters().compactMap(\.grad)
        }
        for gated in [false, true] {
            let whole = try run(nil, gated: gated)
            for slice in [1, 4, 11, 100] {
                let sliced = try run(slice, gated: gated)
                #expect(sliced.count == whole.count)
                for (found, expected) in zip(sliced, whole) {
                    let difference = (found.detached() - expected.detached()).abs().maximum().item()
                    #expect(difference <= 1e-10 * max(1, expected.detached().abs().maximum().item()))
                }
            }
        }
    }

    /// With dropout the second computation of a slice must draw what the first drew: the gradients are those of the
    /// function that the forward pass was.
    @Test func dropoutIsRepeated() throws {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        (configuration.dropout, configuration.feedForwardSlice, configuration.layers) = (0.4, 3, 1)
        let generator = RandomGenerator(seed: 5)
        let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
        encoder.to(.float64)
        let x = Tensor.randomNormal([1, 8, 8], using: generator, dtype: .float64)
        let state = generator.state
        let deviation = gradientCheck([x]) {
            generator.state = state
            return encoder($0[0])
        }
        #expect(deviation < 1e-6)
    }

    @Test func hiddenValuesOfOneSliceAreKept() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            func kept(_ slice: Int?, _ activation: Activation) throws -> Int {
                var configuration = ModelConfiguration(mixer: try MixerConfiguration("linear"))
                configuration.activation = activation
                (configuration.layers, configuration.modelDim, configuration.heads) = (1, 32, 4)
                (configuration.feedForwardDim, configuration.feedForwardSlice) = (1024, slice)
                let generator = RandomGenerator(seed: 1)
                let encoder = try SequenceEncoder(configuration, isCausal: true, using: generator)
                let x = Tensor.randomNormal([1, 4096, 32], using: generator)
                let before = TorchRuntime.cachedMemory.inUse
                let y = encoder(x)
                let kept = TorchRuntime.cachedMemory.inUse - before
                y.sum().backward()
                return kept
            }
            let hidden = 4096 * 1024 * 4
            // Composed, a layer keeps its hidden values before and after the activation; fused, those before it alone.
            for (activation, tensors) in [(Activation.softplus, 2), (.gelu, 1)] {
                let (whole, sliced) = (try kept(nil, activation), try kept(256, activation))
                let fits = whole > tensors * hidden && whole < (tensors + 1) * hidden && sliced < hidden
                precondition(fits, "\(activation): \(whole), \(sliced) of \(hidden)")
            }
        }
    }
}

@Suite struct AxialPositionTests {
    private func refusal(_ change: (inout ModelConfiguration) -> Void, maximumLength: Int = 20) throws -> String {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        configuration.position = .axial
        change(&configuration)
        let error = #expect(throws: ConfigurationError.self) {
            try LanguageModel(
                configuration, vocabulary: 11, maximumLength: maximumLength, using: RandomGenerator(seed: 1))
        }
        return error?.description ?? ""
    }

    @Test func whatDoesNotFitIsRefused() throws {
        #expect(
            try refusal { $0.axialShape = [3, 6] } == "axialShape [3, 6] has no room for 20 positions")
        #expect(
            try refusal { $0.axialDims = [3, 4] } == "axialDims [3, 4] must be 8 in all, as modelDim")
        #expect(
            try refusal { ($0.axialShape, $0.axialDims) = ([4, 5, 2], [4, 4]) }
                == "axialShape [4, 5, 2] and axialDims [4, 4] must be as many positive numbers")
        #expect(
            try refusal { $0.axialShape = [0, 5] }
                == "axialShape [0, 5] and axialDims [4, 4] must be as many positive numbers")
        #expect(
            try refusal { ($0.position, $0.axialShape) = (.learned, [4, 5]) }
                == "axialShape belongs to position axial, not learned")
        #expect(
            try refusal { ($0.position, $0.axialDims) = (.none, [4, 4]) }
                == "axialDims belongs to position axial, not none")
    }

    @Test func aModelHasItsTables() throws {
        for (shape, dims, tables) in [
            (nil, nil, [[5, 4], [4, 4]]), ([3, 3, 3], nil, [[3, 3], [3, 3], [3, 2]]),
            ([2, 10], [6, 2], [[2, 6], [10, 2]]),
        ] as [([Int]?, [Int]?, [[Int]])] {
            var configuration = smallConfiguration(try MixerConfiguration("softmax"))
            (configuration.position, configuration.axialShape, configuration.axialDims) = (.axial, shape, dims)
            let model = try LanguageModel(
                configuration, vocabulary: 11, maximumLength: 20, using: RandomGenerator(seed: 1))
            #expect(try #require(model.embedding.axial).axes.map(\.value.shape) == tables)
            #expect(model.embedding.maximumLength == 20)
            #expect(model(randomIds([1, 20], seed: 2)).shape == [1, 20, 11])
        }
    }
}

@Suite struct ReversibleConfigurationTests {
    private func refusal(_ change: (inout ModelConfiguration) throws -> Void) throws -> String {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        configuration.residual = ResidualConfiguration(.reversible)
        try change(&configuration)
        let error = #expect(throws: ConfigurationError.self) {
            try SequenceEncoder(configuration, isCausal: true, using: RandomGenerator(seed: 1))
        }
        return error?.description ?? ""
    }

    @Test func whatCannotBeReversedIsRefused() throws {
        #expect(try refusal { $0.norm = .post } == "residual: kind reversible needs norm pre, not post")
        #expect(
            try refusal { $0.feedForwardDim = 0 }
                == "residual: kind reversible needs feed-forward layers, so feedForwardDim above 0")
        #expect(
            try refusal { $0.residual.stepSize = 0.5 }
                == "residual: stepSize 0.5 belongs to kinds constant and adaptive, not reversible")
        #expect(
            try refusal { $0.residual.momentum = 0.5 }
                == "residual: momentum 0.5 belongs to kind constant, not reversible")
        #expect(try refusal { $0.feedForwardSlice = 0 } == "feedForwardSlice must be at least 1, not 0")
        #expect(
            try refusal { $0.mixer = try MixerConfiguration("r-transformer") }
                == "residual: kind reversible needs a mixer without a connection of its own, which 'r-transformer' has")
    }
}
