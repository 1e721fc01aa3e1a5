import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

/// What every mechanism of the catalogue promises, in all its modes, on random sizes.
@Suite struct MixerProperties {
    @Test(.enabled(if: ProcessInfo.processInfo.environment["MIXER_CASES"] == nil))
    func everyEntryOfTheCatalogueIsInTheTable() {
        for entry in MixerCatalogue.entries {
            let cases = MixerCase.all.filter { $0.mixer == entry.name }
            #expect(cases.contains(where: \.isCausal) == entry.causal, "\(entry.name)")
            #expect(cases.contains { !$0.isCausal } == entry.bidirectional, "\(entry.name)")
            #expect(cases.contains(where: \.streams) == (entry.streaming != .none), "\(entry.name)")
        }
    }

    // MARK: Forms

    @Test(arguments: MixerCase.all) func efficientFormIsReferenceForm(_ mixer: MixerCase) throws {
        for (seed, lengths) in [(1, 1...70), (2, 1...70), (3, 1...3), (4, 128...129), (5, 180...300)] {
            let trial = mixer.trial(seed, lengths: lengths)
            let function = try MixerFunction(mixer, trial)
            guard let reference = function.reference else { return }
            let inputs = function.inputs.map { $0.value.requiringGrad() }
            let mask = seed.isMultiple(of: 2) ? rightPadding(trial.realLengths(), of: trial.length) : nil
            let forms = [function.efficient, reference].map { form -> [Tensor] in
                let out = form(inputs, mask)
                // Padded rows are unspecified, so nothing may depend on them.
                let kept = mask.map { out.masked(where: function.spread(.!$0), with: 0) } ?? out
                let weight = Tensor.randomNormal(out.shape, using: RandomGenerator(seed: trial.seed), dtype: .float64)
                let found = gradients(of: [kept], weightedBy: [weight], withRespectTo: inputs)
                return [kept] + found.map { $0 ?? .zeros([1]) }
            }
            let scale = forms[1][1...].map { $0.abs().maximum().item() }.max() ?? 1
            for (name, (found, expected)) in zip(["out"] + function.inputs.map(\.name), zip(forms[0], forms[1])) {
                let difference = (found - expected).abs().maximum().item()
                let size = name == "out" ? expected.abs().maximum().item() : scale
                #expect(difference <= 1e-9 * max(size, 1e-300), "\(name), \(trial)")
            }
        }
    }

    @Test(arguments: MixerCase.all.filter(\.isSmooth)) func gradientsAreThoseOfTheFunction(_ mixer: MixerCase) throws {
        for seed in 1...2 {
            let trial = mixer.trial(seed, lengths: 4...7)
            let function = try MixerFunction(mixer, trial)
            // A short step, for features of relu that are hardly above 0 make a denominator that is.
            let deviation = gradientCheck(function.inputs.map(\.value), step: 1e-7) { function.efficient($0, nil) }
            #expect(deviation < 1e-5, "\(trial)")
        }
    }

    private static let crossing = MixerCase.all.filter { mixer in
        !mixer.isCausal && MixerCatalogue.entries.contains { $0.name == mixer.mixer && $0.crossAttention }
    }

    @Test(arguments: crossing) func crossAttentionIsReferenceForm(_ mixer: MixerCase) throws {
        for seed in 11...13 {
            let trial = mixer.trial(seed, lengths: 1...40)
            let core = try #require(mixer.layer(for: trial) as? any CoreHolding).anyCore
            let keys = 1 + seed * 3
            let inputs = trial.qkv(mixer.inputScale, keys: keys)
            let mask = rightPadding((0..<trial.batch).map { max(1, keys - 2 * $0) }, of: keys)
            for mask in [nil, mask] {
                let out = core(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                let expected = core.reference(inputs[0], inputs[1], inputs[2], paddingMask: mask)
                #expect(out.deviation(from: expected) < 1e-9, "\(trial), \(keys) keys")
            }
        }
    }

    // MARK: Who sees what

    @Test(arguments: MixerCase.all.filter { $0.isCausal && $0.seesOnlyThePast })
    func nothingSeesTheFuture(_ mixer: MixerCase) throws {
        for seed in 21...24 {
            let trial = mixer.trial(seed, lengths: 2...200)
            let layer = try mixer.layer(for: trial)
            let x = trial.x()
            let changed = Tensor.random(in: 1..<trial.length, [1], using: trial.generator).integerItem()
            let other = x.cloned()
            other.copyInPlace(1, changed..<changed + 1, from: trial.normal([trial.batch, 1, trial.modelDim]))
            let (before, after) = (layer(x), layer(other))
            let past = 0..<changed
            #expect(after.sliced(1, past).deviation(from: before.sliced(1, past)) < 1e-12, "token \(changed), \(trial)")
            let rest = changed..<trial.length
            #expect(after.sliced(1, rest).deviation(from: before.sliced(1, rest)) > 1e-9, "token \(changed), \(trial)")
        }
    }

    @Test(arguments: MixerCase.all, Padding.allCases)
    func paddingChangesNothing(_ mixer: MixerCase, _ padding: Padding) throws {
        guard mixer.paddings.contains(padding), mixer.fixedLength == nil else { return }
        for seed in 31...34 {
            let trial = mixer.trial(seed, lengths: 1...70)
            let layer = try mixer.layer(for: trial)
            let extra = seed.isMultiple(of: 2) ? 1 : 1 + Int(trial.seed)
            let length = trial.length + extra
            let lengths = trial.realLengths()
            let places = lengths.map { self.places($0, of: length, padding, trial.generator) }
            var rows = [Tensor]()
            var masks = [[Bool]]()
            let sequences = lengths.map { (trial.normal([1, $0, trial.modelDim]) * mixer.inputScale).requiringGrad() }
            for (sequence, places) in zip(sequences, places) {
                let garbage = Tensor.full(like: trial.normal([1, length, trial.modelDim]), mixer.isBounded ? 1e4 : 3)
                let sources = (0..<length).map { places.firstIndex(of: $0) ?? (sequence.size(1) + $0) }
                rows.append(concatenate([sequence, garbage], dim: 1).indexed(1, Tensor(sources)))
                masks.append((0..<length).map { places.contains($0) })
            }
            let mask = Tensor(masks.flatMap { $0 }, shape: [trial.batch, length])
            let together = layer(concatenate(rows), paddingMask: mask)
            for (row, sequence) in sequences.enumerated() {
                let alone = layer(sequence)
                let found = together.sliced(0, row..<row + 1).indexed(1, Tensor(places[row]))
                #expect(found.deviation(from: alone) < 1e-9, "sequence \(row) of \(lengths) in \(length), \(trial)")
                let weight = trial.normal(alone.shape)
                let expected = gradients(of: [alone], weightedBy: [weight], withRespectTo: [sequence])[0]
                let gradient = gradients(
                    of: [found], weightedBy: [weight], withRespectTo: [sequence], keepGraph: true)[0]
                // One token's gradient through its own query may be a mere trace of ε.
                let close = try #require(gradient).deviation(from: try #require(expected))
                #expect(close < (lengths[row] == 1 ? 1e-5 : 1e-8), "gradient of \(row) of \(lengths), \(trial)")
            }
        }
    }

    private func places(_ count: Int, of length: Int, _ padding: Padding, _ generator: RandomGenerator) -> [Int] {
        switch padding {
        case .right: return Array(0..<count)
        case .left: return Array(length - count..<length)
        case .scattered:
            let order: [Int64] = Tensor.randomPermutation(length, using: generator).scalars()
            return order.prefix(count).map(Int.init).sorted()
        }
    }

    @Test(arguments: MixerCase.all.filter(\.isBatchIndependent)) func sequencesOfABatchDoNotMeet(_ mixer: MixerCase)
        throws
    {
        let trial = mixer.trial(41, lengths: 30...40)
        let layer = try mixer.layer(for: trial)
        let x = trial.normal([3, trial.length, trial.modelDim])
        let together = layer(x)
        for row in 0..<3 {
            let alone = layer(x.sliced(0, row..<row + 1))
            #expect(together.sliced(0, row..<row + 1).deviation(from: alone) < 1e-12, "sequence \(row), \(trial)")
        }
    }

    // MARK: Numbers

    @Test(arguments: MixerCase.all) func hugeInputsGiveFiniteNumbers(_ mixer: MixerCase) throws {
        guard mixer.isBounded else { return }
        for seed in 51...53 {
            let trial = mixer.trial(seed, lengths: 1...70)
            let function = try MixerFunction(mixer, trial, .float32)
            let inputs = function.inputs.map { ($0.value.clamped(min: -1, max: 1) * 1e4).requiringGrad() }
            let out = function.efficient(inputs, nil)
            #expect(out.isAllFinite, "\(trial)")
            let found = gradients(of: [out.sum()], withRespectTo: inputs)
            for ((name, _), gradient) in zip(function.inputs, found) {
                #expect(gradient?.isAllFinite ?? true, "\(name), \(trial)")
            }
        }
    }

    @Test(arguments: MixerCase.all.filter { $0.fixedLength == nil })
    func sequencesWithoutARealTokenGiveFiniteNumbers(_ mixer: MixerCase) throws {
        let trial = mixer.trial(61, lengths: 5...9)
        let layer = try mixer.layer(heads: 2, headDim: 4, seed: trial.seed, dtype: .float32)
        let x = trial.normal([2, trial.length, 8], .float32).requiringGrad()
        let mask = rightPadding([0, trial.length], of: trial.length)
        let out = layer(x, paddingMask: mask)
        #expect(out.isAllFinite)
        #expect(try #require(gradients(of: [out.sum()], withRespectTo: [x])[0]).isAllFinite)

        guard let core = (layer as? any CoreHolding)?.anyCore else { return }
        let inputs = (0..<3).map { _ in trial.normal([2, 2, trial.length, 4], .float32).requiringGrad() }
        for out in [
            core(inputs[0], inputs[1], inputs[2], paddingMask: mask),
            core.reference(inputs[0], inputs[1], inputs[2], paddingMask: mask),
        ] {
            #expect(out.selected(0, 0).abs().maximum().item() == 0)
            #expect(out.selected(0, 1).abs().maximum().item() > 0)
            for gradient in gradients(of: [out.sum()], withRespectTo: inputs) {
                guard let gradient else { continue }
                #expect(gradient.isAllFinite)
                #expect(gradient.selected(0, 0).abs().maximum().item() == 0)
            }
        }
    }

    @Test(arguments: MixerCase.all, [DType.float32, .float64]) func typeIsKept(_ mixer: MixerCase, _ dtype: DType)
        throws
    {
        let layer = try mixer.layer(heads: 2, headDim: 4, seed: 1, dtype: dtype)
        let length = mixer.fixedLength ?? 5
        let x = Trial(62).normal([2, length, 8], dtype)
        #expect(layer(x).dtype == dtype)
        if mixer.fixedLength == nil { #expect(layer(x, paddingMask: rightPadding([3, 5], of: 5)).dtype == dtype) }
        guard mixer.streams else { return }
        let streaming = try #require(layer as? any StreamingMixer)
        var state = streaming.anyInitialState(batch: 2)
        #expect(streaming.prefill(x, paddingMask: nil, anyState: &state).dtype == dtype)
        #expect(streaming.step(x.selected(1, 0), anyState: &state).dtype == dtype)
        for (name, tensor) in state.tensors where tensor.dtype.isFloatingPoint {
            #expect(tensor.dtype == dtype, "\(name)")
        }
    }

    /// Sums over thousands of tokens leave the range of float16 if they are taken in it. (What `stabilizes` scales down to
    /// less than ε is below that range altogether.)
    @Test(
        arguments: MixerCase.all.filter {
            ["linear", "momentum"].contains($0.mixer) && $0.isBounded
                && !["adaptive", "favor stabilized"].contains($0.note)
        })
    func halfPrecisionIsSummedInSingle(_ mixer: MixerCase) throws {
        let trial = Trial(63, lengths: 3000...3000)
        let layer = try mixer.layer(heads: 1, headDim: 8, seed: 1, dtype: .float32)
        let core = try #require(layer as? any CoreHolding).anyCore
        let inputs = (0..<3).map { _ in ((trial.normal([1, 1, trial.length, 8]) + 2) * mixer.inputScale).to(.float16) }
        let out = core(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        #expect(out.dtype == .float16)
        let wide = inputs.map { $0.to(.float64) }
        let expected = core(wide[0], wide[1], wide[2], paddingMask: nil)
        #expect(out.deviation(from: expected) < 0.05)
    }

    // MARK: Misuse

    @Test(arguments: MixerCase.all) func badShapesAreRefusedByName(_ mixer: MixerCase) throws {
        let layer = try mixer.layer(heads: 2, headDim: 4, seed: 1, dtype: .float32)
        let name = "\(type(of: layer))"
        let good = Tensor.ones([2, mixer.fixedLength ?? 5, 8])
        for (x, mask) in [
            (Tensor.ones([2, 5, 7]), nil), (Tensor.ones([5, 8]), nil), (Tensor.ones([2, 0, 8]), nil),
            (Tensor.ones([1, 2, 5, 8]), nil),
            (good, Tensor.ones([2, 4], dtype: .bool)), (good, Tensor.ones([2, 5])),
            (good, Tensor.ones([5], dtype: .bool)),
        ] as [(Tensor, Tensor?)] {
            let error = #expect(throws: TorchError.self) { try withTorchErrors { layer(x, paddingMask: mask) } }
            let text = try #require(error).description
            #expect(text.hasPrefix("\(name): expected "), "\(text)")
            #expect(text.contains("\(mask?.shape ?? x.shape)"), "\(text)")
        }
        guard let core = (layer as? any CoreHolding)?.anyCore else { return }
        for (q, k, v) in [([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 4, 4], [1, 2, 3, 4])] {
            let error = #expect(throws: TorchError.self) {
                try withTorchErrors {
                    core(.ones(q), .ones(k), .ones(v), paddingMask: nil)
                        + core.reference(.ones(q), .ones(k), .ones(v), paddingMask: nil)
                }
            }
            #expect(try #require(error).description.contains("Core: expected q [batch, heads, n, "))
        }
    }

    @Test func badShapesTrap() async {
        let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
            let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
            let layer = try MixerConfiguration("momentum").build(context)
            _ = layer(Tensor.ones([2, 5, 7]))
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("Attention<MomentumCore>: expected x [batch, length, 8]; got [2, 5, 7]"), "\(text)")
    }
}
