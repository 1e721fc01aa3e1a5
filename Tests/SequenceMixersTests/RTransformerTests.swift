import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct RTransformerTests {
    private func rnn(_ cell: RecurrentCell, window: Int, dim: Int = 5) -> LocalRNN {
        let rnn = LocalRNN(cell, window: window, modelDim: dim, using: RandomGenerator(seed: 3))
        rnn.to(.float64)
        return rnn
    }

    private func normal(_ shape: [Int], seed: UInt64 = 4) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    /// Windows shorter than, as long as, and longer than the sequence, with real tokens anywhere.
    @Test(arguments: RecurrentCell.allCases, [1, 2, 6, 11]) func localRNNIsItsDefinition(
        _ cell: RecurrentCell, _ window: Int
    ) {
        let rnn = rnn(cell, window: window)
        for length in [1, 2, 6, 13] {
            let x = normal([3, length, 5]).requiringGrad()
            let random = normal([3, length], seed: 5) .> 0
            let right = Tensor.arange(0..<length).unsqueezed(0) .< Tensor([length, 0, (length + 1) / 2]).unsqueezed(1)
            for mask in [nil, right, right.flipped(1), random] {
                let found = [false, true].map { usesReference -> [Tensor] in
                    rnn.usesReference = usesReference
                    let y = rnn(x, paddingMask: mask)
                    // Where nothing is real nothing depends on x: a term of 0 then still does.
                    let kept = (mask.map { y.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? y) + x.sum() * 0
                    let parameters = rnn.parameters().map(\.value)
                    let weight = normal(y.shape, seed: 6)
                    let all = gradients(of: [kept], weightedBy: [weight], withRespectTo: [x] + parameters)
                    return [kept] + all.map { $0 ?? .zeros([1]) }
                }
                for (efficient, reference) in zip(found[0], found[1]) where efficient.shape == reference.shape {
                    let scale = max(reference.abs().maximum().item(), 1)
                    #expect((efficient - reference).abs().maximum().item() < 1e-12 * scale, "length \(length)")
                }
            }
        }
    }

    /// With biases, zero inputs change the state: the first token is not the first step.
    @Test func beforeTheFirstTokenStandZeroVectors() {
        let rnn = rnn(.gru, window: 4)
        let x = normal([1, 3, 5])
        let padded = rnn(x.padded(1, before: 5))
        #expect(padded.sliced(1, 5..<8).deviation(from: rnn(x)) < 1e-14)
        let short = self.rnn(.gru, window: 1)
        #expect(short(x).sliced(1, 0..<1).deviation(from: rnn(x).sliced(1, 0..<1)) > 1e-3)
    }

    /// A token reaches the window's tokens and no other.
    @Test func aWindowIsAsLongAsItSays() {
        let rnn = rnn(.lstm, window: 4)
        let x = normal([1, 12, 5])
        let other = x.cloned()
        other.copyInPlace(1, 3..<4, from: normal([1, 1, 5], seed: 9))
        let change = (rnn(other) - rnn(x)).abs().maximum(2).selected(0, 0)
        let changed: [Bool] = (change .> 1e-15).scalars()
        #expect(changed == (0..<12).map { (3..<7).contains($0) })
    }

    @Test(arguments: RecurrentCell.allCases, [1, 2, 7]) func localRNNStreams(_ cell: RecurrentCell, _ window: Int) {
        let rnn = rnn(cell, window: window)
        let x = normal([2, 19, 5])
        let whole = rnn(x)
        withNoGrad {
            for cut in [0, 1, 3, 18] {
                var state = rnn.initialState(batch: 2)
                let size = state.tensors.values.reduce(0) { $0 + $1.count }
                var pieces: [Tensor] = []
                if cut > 0 { pieces.append(rnn.prefill(x.sliced(1, 0..<cut), paddingMask: nil, state: &state)) }
                for place in cut..<19 { pieces.append(rnn.step(x.selected(1, place), state: &state).unsqueezed(1)) }
                #expect(concatenate(pieces, dim: 1).deviation(from: whole) < 1e-12, "cut at \(cut)")
                #expect(state.tensors.values.reduce(0) { $0 + $1.count } == size)
                #expect(size == 2 * (window - 1) * 5 * (cell == .lstm ? 2 : 1))
            }
        }
    }

    /// Padding at the start, in the middle and at the end of a piece is passed over.
    @Test func paddedPiecesGoOnAsIfAlone() {
        let rnn = rnn(.gru, window: 5)
        let x = normal([1, 10, 5])
        let garbage = Tensor.full([1, 2, 5], 1e4, dtype: .float64)
        let part = { (range: Range<Int>) in x.sliced(1, range) }
        let first = concatenate([garbage, part(0..<2), garbage, part(2..<4), garbage], dim: 1)
        let places = [2, 3, 6, 7]
        let mask = Tensor((0..<first.size(1)).map { places.contains($0) }, shape: [1, first.size(1)])
        withNoGrad {
            var state = rnn.initialState(batch: 1)
            let start = rnn.prefill(first, paddingMask: mask, state: &state).indexed(1, Tensor(places))
            let empty = Tensor.zeros([1, 2], dtype: .bool)
            _ = rnn.prefill(garbage, paddingMask: empty, state: &state)
            let rest = rnn.prefill(part(4..<10), paddingMask: nil, state: &state)
            #expect(concatenate([start, rest], dim: 1).deviation(from: rnn(x)) < 1e-12)
        }
    }

    @Test func normDividesByTheUnbiasedDeviation() {
        let norm = DeviationNorm(4, epsilon: 0.5)
        norm.to(.float64)
        norm.weight.value = Tensor([1, 2, 3, 4.0])
        norm.bias.value = Tensor([0, 0, 1, 1.0])
        let deviation = (20.0 / 3).squareRoot() + 0.5
        let expected = Tensor([-3, -1, 1, 3.0]) / deviation * norm.weight.value + norm.bias.value
        #expect(norm(Tensor([1, 3, 5, 7.0])).deviation(from: expected) < 1e-15)
    }

    /// The root's slope is infinite at 0; here it counts as 0.
    @Test(arguments: [1, 2, 6]) func normOfEqualNumbersIsTheBias(_ dim: Int) throws {
        let norm = DeviationNorm(dim)
        norm.bias.value = Tensor.full([dim], 0.25)
        let x = Tensor.full([2, dim], 7).requiringGrad()
        let y = norm(x)
        #expect(y.isIdentical(to: Tensor.full([2, dim], 0.25)))
        #expect(try #require(gradients(of: [y.sum()], withRespectTo: [x])[0]).isAllFinite)
    }

    /// Of a block within a model: the model adds neither norm nor sum.
    @Test func blocksAreWhole() throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
        var options = RTransformerOptions()
        options.attention = try MixerConfiguration("r-transformer")
        let block = try #require(options.build(context) as? RTransformerBlock)
        #expect(block.isWholeBlock && block.canStream)
        // An attention that is a whole block itself gets no second norm and sum.
        #expect(block.attentionNorm == nil)
        let x = Tensor.randomNormal([1, 5, 8], using: RandomGenerator(seed: 2))
        #expect(block(x).shape == [1, 5, 8])
        let plain = try #require(RTransformerOptions().build(context) as? RTransformerBlock)
        #expect(plain.attentionNorm != nil && plain.up?.outputs == 32)
    }

    @Test func dropoutComesFromTheGenerator() throws {
        func outputs(_ seed: UInt64) throws -> [Tensor] {
            let generator = RandomGenerator(seed: seed)
            let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: generator)
            var options = RTransformerOptions()
            options.dropout = 0.5
            let block = try options.build(context)
            let x = Tensor.randomNormal([1, 5, 8], using: RandomGenerator(seed: 2))
            let training = [block(x), block(x)]
            block.evaluate()
            return training + [block(x)]
        }
        let (first, again) = (try outputs(7), try outputs(7))
        #expect(!first[0].isIdentical(to: first[1]))
        #expect(zip(first, again).allSatisfy { $0.isIdentical(to: $1) })
    }

    @Test(arguments: [
        ("\"window\": 0", "r-transformer: window must be at least 1, not 0"),
        ("\"window\": 1000001", "r-transformer: window must be at most 1000000, not 1000001"),
        ("\"localLayers\": 0", "r-transformer: localLayers must be at least 1, not 0"),
        ("\"feedForwardDim\": -1", "r-transformer: feedForwardDim must be at least 0, not -1"),
        ("\"dropout\": 1", "r-transformer: dropout must be at least 0 and below 1, not 1.0"),
        ("\"normEpsilon\": 0", "r-transformer: normEpsilon must be above 0, not 0.0"),
        ("\"attention\": {\"name\": \"softmax\", \"scale\": 0}", "softmax: scale must be above 0, not 0.0"),
        (
            "\"attention\": {\"name\": \"fourier-transformer\"}",
            "mixer 'fourier-transformer' has no causal form: its cosine transform mixes the whole sequence"
        ),
    ]) func refusals(_ json: String, _ text: String) throws {
        #expect(throws: ConfigurationError(text)) {
            try MixerConfiguration("r-transformer", json: json).build(.small(causal: true))
        }
    }

    @Test func bidirectionalFormsAreRefused() throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: false, generator: RandomGenerator(seed: 1))
        #expect(throws: ConfigurationError("mixer 'r-transformer' has no bidirectional form")) {
            try MixerConfiguration("r-transformer").build(context)
        }
        let text = "r-transformer: the local RNN reads the past only, so there is no bidirectional form"
        #expect(throws: ConfigurationError(text)) { try RTransformerOptions().build(context) }
    }
}
