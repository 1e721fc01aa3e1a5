import SequenceMixers
import Testing
import Torch
import TorchNN

/// The Attention Free Transformer with biases far from those it starts with, which hardly differ from none.
@Suite struct AFTTests {
    struct Form: Sendable, CustomTestStringConvertible {
        let name: String
        let isCausal: Bool
        let options: AFTOptions
        var streams: Bool { isCausal && options.form != .full }

        var testDescription: String { "\(name) \(isCausal ? "causal" : "bidirectional")" }

        /// Any biases, of the given deviation.
        func layer(_ trial: Trial, headDim: Int, deviation: Double = 1, dtype: DType = .float64) throws -> AFT {
            let context = try MixerContext(
                modelDim: trial.heads * headDim, heads: trial.heads, isCausal: isCausal,
                generator: RandomGenerator(seed: trial.seed))
            let layer = try #require(try options.build(context) as? AFT)
            layer.to(dtype)
            for parameter in layer.core.parameters() {
                parameter.value = trial.normal(parameter.value.shape, dtype) * deviation
            }
            return layer
        }

        func inputs(_ trial: Trial) -> [Tensor] {
            let keyDim = options.form == .conv ? 1 : trial.headDim
            return [trial.headDim, keyDim, trial.headDim].map {
                trial.normal([trial.batch, trial.heads, trial.length, $0])
            }
        }
    }

    static let forms: [Form] = [true, false].flatMap { causal -> [Form] in
        func make(_ name: String, _ form: AFTForm, _ change: (inout AFTOptions) -> Void = { _ in }) -> Form {
            var options = AFTOptions(form)
            if form == .full || form == .local { options.maximumLength = 320 }
            change(&options)
            return Form(name: name, isCausal: causal, options: options)
        }
        var forms = [
            make("simple", .simple),
            make("local", .local) {
                $0.window = 6
                $0.biasDim = 2
            },
            make("local by a matrix", .local) {
                $0.window = 40
                $0.factorized = false
            },
            make("full", .full) { $0.biasDim = 3 },
            make("full by a matrix", .full) { $0.factorized = false },
            make("conv", .conv) { $0.kernel = 5 },
        ]
        if causal { return forms + [make("conv of 4", .conv) { $0.kernel = 4 }] }
        for (kernel, width) in [(3, 5), (5, 2), (1, 3), (3, 400)] {
            forms.append(
                make("conv of \(kernel) on a grid of \(width)", .conv) {
                    $0.kernel = kernel
                    $0.gridWidth = width
                })
        }
        return forms
    }

    @Test(arguments: forms) func formsAgreeForAnyBias(_ form: Form) throws {
        for (seed, lengths) in [(1, 1...1), (2, 2...9), (3, 10...70), (4, 270...300)] {
            let trial = Trial(seed, lengths: lengths)
            let core = try form.layer(trial, headDim: trial.headDim).core
            let inputs = form.inputs(trial).map { $0.requiringGrad() }
            let mask = seed.isMultiple(of: 2) ? rightPadding(trial.realLengths(), of: trial.length) : nil
            let weight = trial.normal(inputs[0].shape)
            let parameters = core.namedParameters()
            let results = [false, true].map { usesReference -> [Tensor] in
                let out =
                    usesReference
                    ? core.reference(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                    : core(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                let kept = mask.map { out.masked(where: (.!$0).unsqueezed(1).unsqueezed(3), with: 0) } ?? out
                let found = gradients(
                    of: [kept], weightedBy: [weight],
                    withRespectTo: inputs + parameters.map(\.parameter.value))
                return [kept] + found.map { $0 ?? .zeros([1]) }
            }
            let scale = results[1][1...].map { $0.abs().maximum().item() }.max() ?? 1
            let names = ["out", "q", "k", "v"] + parameters.map(\.name)
            for (name, (found, expected)) in zip(names, zip(results[0], results[1])) {
                let size = name == "out" ? expected.abs().maximum().item() : scale
                #expect((found - expected).abs().maximum().item() <= 1e-9 * size, "\(name), \(trial)")
            }
        }
    }

    @Test(arguments: forms.filter(\.streams)) func piecesAreTheWholeForAnyBias(_ form: Form) throws {
        for seed in 1...3 {
            let trial = Trial(20 + seed, lengths: 30...90)
            let layer = try form.layer(trial, headDim: 4)
            let x = trial.normal([3, trial.length, trial.heads * 4])
            let lengths = [trial.length, 7, 1]
            let mask = rightPadding(lengths, of: trial.length)
            let tail = trial.normal([3, 9, trial.heads * 4])
            withNoGrad {
                var state = layer.initialState(batch: 3)
                let prompt = layer.prefill(x, paddingMask: mask, state: &state)
                let piece = layer.prefill(tail.sliced(1, 0..<4), paddingMask: nil, state: &state)
                let steps = stack((4..<9).map { layer.step(tail.selected(1, $0), state: &state) }, dim: 1)
                for (row, length) in lengths.enumerated() {
                    func part(_ x: Tensor, _ end: Int) -> Tensor { x.sliced(0, row..<row + 1).sliced(1, 0..<end) }
                    let alone = layer(concatenate([part(x, length), part(tail, 9)], dim: 1))
                    let found = concatenate([part(prompt, length), part(piece, 4), part(steps, 5)], dim: 1)
                    #expect(found.deviation(from: alone) < 1e-9, "sequence \(row), \(trial)")
                }
            }
        }
    }

    /// One key in the window outweighs all others, and its bias makes it lighter than any: sums that are differences
    /// lose the rest.
    @Test(arguments: forms) func nothingCancelsAndNothingOverflows(_ form: Form) throws {
        let trial = Trial(31, lengths: 50...60)
        for deviation in [1.0, 30] {
            let layer = try form.layer(trial, headDim: trial.headDim, deviation: deviation)
            let inputs = form.inputs(trial)
            let keys = inputs[1] * 400
            let expected = layer.core.reference(inputs[0], keys, inputs[2], paddingMask: nil)
            #expect(layer.core(inputs[0], keys, inputs[2], paddingMask: nil).deviation(from: expected) < 1e-9)
            layer.to(.float32)
            let single = [inputs[0], keys, inputs[2]].map { $0.to(.float32).requiringGrad() }
            let out = layer.core(single[0], single[1], single[2], paddingMask: nil)
            #expect(out.isAllFinite)
            for gradient in gradients(of: [out.sum()], withRespectTo: single) {
                #expect(try #require(gradient).isAllFinite)
            }
        }
    }

    /// Biases of so wide a spread that a strip's weights are no product of numbers within the range.
    @Test(arguments: [true, false]) func fullWithBiasesOfAnySpread(_ causal: Bool) throws {
        let generator = RandomGenerator(seed: 3)
        let pairs = AFTPairBias(maximumLength: 290, dim: nil, using: generator)
        pairs.w?.value = Tensor.randomNormal([290, 290], using: generator) * 500
        let core = AFTCore(.pairs(pairs), isCausal: causal)
        core.to(.float64)
        let inputs = (0..<3).map { _ in
            Tensor.randomNormal([1, 1, 290, 2], using: generator, dtype: .float64).requiringGrad()
        }
        let leaves = inputs + core.parameters().map(\.value)
        let found = core(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        let expected = core.reference(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        #expect(found.deviation(from: expected) < 1e-9)
        let weight = Tensor.randomNormal(found.shape, using: generator, dtype: .float64)
        let pairsOfGradients = zip(
            gradients(of: [found], weightedBy: [weight], withRespectTo: leaves),
            gradients(of: [expected], weightedBy: [weight], withRespectTo: leaves))
        for (a, b) in pairsOfGradients { #expect(try #require(a).deviation(from: try #require(b)) < 1e-8) }
    }

    @Test func gradientsOfBiasesAreThoseOfTheFunction() {
        let generator = RandomGenerator(seed: 8)
        let taps = AFTTapBias(heads: 2, kernel: 3, gridWidth: 3, using: generator)
        let core = AFTCore(.taps(taps), isCausal: false)
        core.to(.float64)
        let shapes = [[2, 3, 3], [2], [2], [1, 2, 7, 2], [1, 2, 7, 1], [1, 2, 7, 2]]
        let inputs = shapes.map { Tensor.randomNormal($0, using: generator, dtype: .float64) }
        let deviation = gradientCheck(Array(inputs[3...])) { core($0[0], $0[1], $0[2], paddingMask: nil) }
        #expect(deviation < 1e-6)
        for (parameter, value) in zip(core.parameters(), inputs) { parameter.value = value }
        let again = gradientCheck(Array(inputs[3...])) { core($0[0], $0[1], $0[2], paddingMask: nil) }
        #expect(again < 1e-6)
    }

    /// A matrix of pairs would take 1 GB here, and one for each channel twice that.
    @Test(arguments: [AFTForm.simple, .local, .conv]) func longSequencesNeedNoMatrix(_ form: AFTForm) throws {
        var options = AFTOptions(form)
        if form == .local {
            options.window = 3
            options.biasDim = 2
        }
        if form == .conv { options.kernel = 3 }
        for causal in [true, false] {
            let context = try MixerContext(
                modelDim: 2, heads: 1, isCausal: causal, maximumLength: 16_384, generator: RandomGenerator(seed: 1))
            let layer = try options.build(context)
            let x = Trial(3).normal([1, 16_384, 2], .float32).requiringGrad()
            let gradient = try #require(gradients(of: [layer(x).sum()], withRespectTo: [x])[0])
            #expect(gradient.isAllFinite)
        }
    }

    @Test func longerSequencesThanThereAreBiasesForAreRefused() throws {
        var options = AFTOptions(.local)
        options.maximumLength = 6
        let context = try MixerContext(modelDim: 4, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
        let layer = try #require(try options.build(context) as? AFT)
        let text = "AFTCore: a sequence of 7 tokens is longer than the maximum length 6 of its position biases"
        let x = Tensor.ones([1, 7, 4])
        var error = #expect(throws: TorchError.self) { try withTorchErrors { layer(x) } }
        #expect(error?.description == text)
        var state = layer.initialState(batch: 1)
        _ = layer.prefill(x.sliced(1, 0..<6), paddingMask: nil, state: &state)
        error = #expect(throws: TorchError.self) {
            try withTorchErrors { layer.step(x.selected(1, 0), state: &state) }
        }
        #expect(error?.description == text)
    }

    @Test func coresRefuseWhatDoesNotFit() {
        let generator = RandomGenerator(seed: 1)
        let taps = AFTTapBias(heads: 2, kernel: 3, using: generator)
        let core = AFTCore(.taps(taps), isCausal: true)
        let x = Tensor.ones([1, 2, 5, 4])
        let narrow = Tensor.ones([1, 2, 5, 3])
        var error = #expect(throws: TorchError.self) { try withTorchErrors { core(x, narrow, x, paddingMask: nil) } }
        #expect(error?.description.contains("k [batch, 2, n, 1 or d]") == true)
        error = #expect(throws: TorchError.self) {
            try withTorchErrors { AFTCore(.simpleGrid(generator), isCausal: true) }
        }
        #expect(error?.description == "AFTCore: a kernel on a grid has no causal form")
        error = #expect(throws: TorchError.self) {
            let even = AFTTapBias(heads: 2, kernel: 4, using: generator)
            return try withTorchErrors { AFTCore(.taps(even), isCausal: false) }
        }
        #expect(error?.description == "AFTCore: a bidirectional kernel must be odd, not 4")
    }
}

extension AFTBias {
    fileprivate static func simpleGrid(_ generator: RandomGenerator) -> AFTBias {
        .taps(AFTTapBias(heads: 1, kernel: 3, gridWidth: 4, using: generator))
    }
}
