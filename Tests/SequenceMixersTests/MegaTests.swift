import Testing
import Torch
import TorchNN

@testable import SequenceMixers

/// The moving average's forms against each other.
@Suite struct MegaEMATests {
    private func ema(
        _ dim: Int, _ emaDim: Int, bidirectional: Bool, truncation: Int? = nil, _ seed: Int, _ dtype: DType = .float64
    ) -> MegaEMA {
        let ema = MegaEMA(
            modelDim: dim, emaDim: emaDim, isBidirectional: bidirectional, truncation: truncation,
            using: RandomGenerator(seed: UInt64(seed)))
        ema.to(dtype)
        return ema
    }

    @Test(arguments: [false, true]) func formsAgree(_ bidirectional: Bool) throws {
        for (seed, lengths) in [1...4, 5...70, 63...66, 127...130, 190...260].enumerated() {
            let trial = Trial(700 + seed, lengths: lengths)
            let ema = ema(trial.headDim, trial.heads, bidirectional: bidirectional, seed)
            let x = trial.normal([trial.batch, trial.length, trial.headDim]).requiringGrad()
            let weight = trial.normal(x.shape)
            let wanted = [x] + ema.parameters().map(\.value)
            let found = MegaEMA.Form.allCases.map { form in
                let out = ema(x, form: form)
                let gradients = gradients(of: [out], weightedBy: [weight], withRespectTo: wanted)
                return [out] + gradients.compactMap { $0 }
            }
            for form in found[1...] {
                #expect(form.count == 7)
                for (one, other) in zip(form, found[0]) { #expect(one.deviation(from: other) < 1e-10, "\(trial)") }
            }
            let states = [MegaEMA.Form.blocked, .recurrent, .scan].map { ema.state(after: x, form: $0) }
            for state in states[1...] { #expect(state.deviation(from: states[0]) < 1e-12, "\(trial)") }
        }
    }

    @Test(arguments: [1, 2, 7, 64, 65, 100]) func truncatedFormsAgree(_ taps: Int) throws {
        for bidirectional in [false, true] {
            let ema = ema(3, 2, bidirectional: bidirectional, truncation: taps, taps)
            for length in [1, taps, taps + 1, 150] {
                let x = Trial(taps).normal([2, length, 3])
                let expected = ema(x, form: .recurrent)
                #expect(ema(x).deviation(from: expected) < 1e-12)
                #expect(ema(x, form: .fourier).deviation(from: expected) < 1e-12)
                if length <= taps { #expect(ema(x, form: .blocked).deviation(from: expected) < 1e-12) }
            }
        }
    }

    @Test func truncatedKernelHasNoBlocks() {
        let ema = ema(2, 2, bidirectional: false, truncation: 3, 1)
        let error = #expect(throws: TorchError.self) {
            try withTorchErrors { ema(.ones([1, 4, 2], dtype: .float64), form: .blocked) }
        }
        #expect(error?.description.contains("truncated after 3 of 4 taps has no blocked form") == true)
    }

    /// Decays of a ten-thousandth beside fast ones: float32 stays close to the recurrence in float64.
    @Test func longSequencesInSinglePrecision() {
        let n = 16384
        let exact = ema(4, 5, bidirectional: false, 9)
        for parameter in [exact.alphaLogit, exact.deltaLogit] {
            parameter.value.copyInPlace(0, 0..<2, from: parameter.value.sliced(0, 0..<2) - 4.6)
        }
        let single = ema(4, 5, bidirectional: false, 9, .float32)
        for (parameter, source) in zip(single.parameters(), exact.parameters()) {
            parameter.value = source.value.to(.float32)
            source.value = parameter.value.to(.float64)
        }
        let x = Trial(9).normal([1, n, 4], .float32)
        withNoGrad {
            let expected = exact.average(x.to(.float64), form: .recurrent)
            for form in [MegaEMA.Form.fourier, .blocked, .scan] {
                #expect(single.average(x, form: form).deviation(from: expected) < 1e-5, "\(form)")
            }
            let state = exact.state(after: x.to(.float64), form: .recurrent)
            #expect(single.state(after: x).deviation(from: state) < 1e-5)
        }
    }

    /// Where α and δ have been rounded to 1 nothing is left of the past, and nothing is NaN.
    @Test(arguments: [DType.float32, .float64]) func saturatedDecaysForget(_ dtype: DType) {
        let ema = ema(2, 2, bidirectional: false, 3, dtype)
        ema.alphaLogit.value = .full([2, 2], 100, dtype: dtype)
        ema.deltaLogit.value = .full([2, 2], 100, dtype: dtype)
        let x = Trial(3).normal([1, 200, 2], dtype).requiringGrad()
        let expected = ema(x, form: .recurrent)
        for form in [MegaEMA.Form.fourier, .blocked, .scan] {
            let out = ema(x, form: form)
            #expect(out.deviation(from: expected) < 1e-5)
            let found = gradients(of: [out.sum()], withRespectTo: [x] + ema.parameters().map(\.value))
            #expect(found.allSatisfy { $0?.isAllFinite ?? true })
        }
    }
}

/// The attention's tiles, and the block's smaller parts.
@Suite struct MegaPartsTests {
    private func attention(
        _ function: MegaAttentionFunction, causal: Bool, chunk: Int?, _ bias: MegaBias, dropout: Double = 0
    ) -> MegaAttention {
        let generator = RandomGenerator(seed: 5)
        let bias = MegaRelativeBias(bias, queryDim: 4, maximumLength: chunk ?? 2000, using: generator)
        let attention = MegaAttention(
            function, relativeBias: bias, isCausal: causal, chunk: chunk, dropout: dropout, using: generator)
        attention.to(.float64)
        for parameter in attention.parameters() { parameter.value = parameter.value * 50 }
        return attention
    }

    /// More than a million weights, so that they are computed tile by tile: over rows, and over chunks.
    @Test(arguments: MegaAttentionFunction.allCases, [true, false])
    func tilesAreTheWhole(_ function: MegaAttentionFunction, _ causal: Bool) throws {
        for (lengths, chunk, bias) in [([1030], nil, .simple), ([4430, 4500], 130, .rotary)]
            as [([Int], Int?, MegaBias)]
        {
            let attention = attention(function, causal: causal, chunk: chunk, bias)
            let trial = Trial(800)
            let (batch, length) = (lengths.count, lengths.count == 1 ? 1100 : 4500)
            let inputs = [4, 4, 3].map { trial.normal([batch, length, $0]).requiringGrad() }
            let mask = rightPadding(lengths, of: length)
            let weight = trial.normal([batch, length, 3])
            let wanted = inputs + attention.parameters().map(\.value)
            let forms = [false, true].map { usesReference -> [Tensor] in
                let out =
                    usesReference
                    ? attention.reference(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                    : attention(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                return [out] + gradients(of: [out], weightedBy: [weight], withRespectTo: wanted).compactMap { $0 }
            }
            #expect(forms[0].count == forms[1].count && forms[0].count > 4)
            for (found, expected) in zip(forms[0], forms[1]) { #expect(found.deviation(from: expected) < 1e-9) }
        }
    }

    /// A V is linear in V for given weights: ⟨∂/∂V, V⟩ = ⟨A V, cotangent⟩ only if the gradient drops the same weights.
    @Test(arguments: [100, 1100]) func gradientsSeeTheSameDropout(_ length: Int) throws {
        let attention = attention(.softmax, causal: true, chunk: nil, .simple, dropout: 0.5)
        let trial = Trial(801)
        let inputs = [4, 4, 3].map { trial.normal([1, length, $0]).requiringGrad() }
        let out = attention(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        let weight = trial.normal(out.shape)
        let gradient = try #require(
            gradients(of: [out], weightedBy: [weight], withRespectTo: [inputs[2]], keepGraph: true)[0])
        let (one, other) = ((gradient * inputs[2]).sum().item(), (out * weight).sum().item())
        #expect(abs(one - other) < 1e-9 * abs(other))
        attention.evaluate()
        #expect(attention(inputs[0], inputs[1], inputs[2], paddingMask: nil).deviation(from: out) > 0.01)
    }

    /// Rotary biases are rotations of two vectors; a simple one is looked up by distance.
    @Test func biasesByDistance() {
        for kind in MegaBias.allCases {
            let bias = MegaRelativeBias(kind, queryDim: 6, maximumLength: 9, using: RandomGenerator(seed: 6))
            bias.to(.float64)
            let byDistance = bias.values(-8..<9)
            let matrix = bias.matrix(9)
            for t in 0..<9 {
                let row = byDistance.sliced(0, 8 - t..<17 - t)
                #expect(row.deviation(from: matrix.selected(0, t)) < 1e-12, "\(kind), row \(t)")
            }
        }
    }

    @Test func batchNormCountsRealTokens() {
        let norm = MegaBatchNorm(3, epsilon: 1e-5)
        norm.to(.float64)
        let trial = Trial(802)
        let x = trial.normal([2, 5, 3]) * 3 + 1
        let mask = rightPadding([5, 2], of: 5)
        let real = concatenate([x.selected(0, 0), x.selected(0, 1).sliced(0, 0..<2)])
        let out = norm(x.masked(where: (.!mask).unsqueezed(2), with: 1e6), paddingMask: mask)
        let (mean, variance) = (real.mean(0), real.variance(0, correction: 0))
        let expected = (real - mean) / (variance + 1e-5).sqrt()
        let found = concatenate([out.selected(0, 0), out.selected(0, 1).sliced(0, 0..<2)])
        #expect(found.deviation(from: expected) < 1e-12)
        #expect(norm.runningMean.value.deviation(from: mean * 0.1) < 1e-12)
        #expect(norm.runningVariance.value.deviation(from: real.variance(0) * 0.1 + 0.9) < 1e-12)
        norm.evaluate()
        let later = norm(x, paddingMask: nil)
        let scale = (norm.runningVariance.value + 1e-5).sqrt()
        #expect(later.deviation(from: (x - norm.runningMean.value) / scale) < 1e-12)
        #expect(norm.stateDictionary().keys.sorted() == ["bias", "runningMean", "runningVariance", "weight"])
    }

    @Test func featuresAreDroppedTogether() {
        let dropout = MegaDropout(0.5, dropsFeatures: true, using: RandomGenerator(seed: 7))
        let out = dropout(.ones([4, 6, 50]))
        #expect(out.sliced(1, 0..<1).expanded(to: [4, 6, 50]).isIdentical(to: out))
        #expect(Set(out.scalars(as: Float.self)) == [0, 2])
        dropout.evaluate()
        #expect(dropout(.ones([4, 6, 50])).isIdentical(to: .ones([4, 6, 50])))
    }

    @Test func withChunksTheStateIsBounded() throws {
        var options = MegaOptions()
        options.chunk = 8
        let context = try MixerContext(modelDim: 4, heads: 1, isCausal: true, generator: RandomGenerator(seed: 8))
        let mega = try #require(options.build(context) as? Mega)
        withNoGrad {
            var state = mega.initialState(batch: 2)
            let mask = rightPadding([45, 30], of: 45)
            _ = mega.prefill(.ones([2, 45, 4]), paddingMask: mask, state: &state)
            #expect(state.tensors["keys"]?.shape == [2, 6, 2])  // 45 and 30 are 5 and 6 beyond a whole number of chunks
            #expect(state.tensors["positions"]?.scalars(as: Int64.self) == [45, 30])
            for _ in 0..<40 {
                _ = mega.step(.ones([2, 4]), state: &state)
                #expect((state.tensors["keys"]?.size(1) ?? 9) < 8)
            }
            #expect(state.tensors["average"]?.shape == [2, 4, 16])
        }
    }

    /// A block in training, with all its dropouts, has a gradient for every weight.
    @Test func everyWeightIsTrained() throws {
        var options = MegaOptions()
        options.chunk = 6
        options.feedForwardDim = 8
        (options.dropout, options.hiddenDropout, options.attentionDropout) = (0.1, 0.1, 0.1)
        for (relativeBias, features) in [(MegaBias.simple, false), (.rotary, true)] {
            options.relativeBias = relativeBias
            options.featureDropout = features
            let context = try MixerContext(modelDim: 6, heads: 1, isCausal: false, generator: RandomGenerator(seed: 8))
            let mega = try options.build(context)
            mega(Trial(803).normal([3, 20, 6], .float32)).square().sum().backward()
            for (name, parameter) in mega.namedParameters() {
                let gradient = try #require(parameter.grad, "\(name)")
                #expect(gradient.isAllFinite && gradient.abs().maximum().item() > 0, "\(name)")
            }
        }
    }
}
