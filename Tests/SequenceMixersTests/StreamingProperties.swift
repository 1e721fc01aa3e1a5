import SequenceMixers
import Testing
import Torch
import TorchNN

/// What every mechanism that streams promises: a sequence taken piece by piece gives what it gives as a whole.
@Suite struct StreamingProperties {
    static let cases =
        MixerCase.streaming + [
            MixerCase(
                mixer: "softmax", note: "rotary", isCausal: true, options: { SoftmaxOptions() }, usesRotary: true,
                streams: true)
        ]

    private func layer(_ mixer: MixerCase, _ trial: Trial, headDim: Int, _ dtype: DType = .float64) throws
        -> any StreamingMixer
    {
        try #require(
            mixer.layer(heads: trial.heads, headDim: headDim, seed: trial.seed, dtype: dtype) as? any StreamingMixer)
    }

    @Test(arguments: cases) func stepIsParallelForm(_ mixer: MixerCase) throws {
        for length in [1, 2, 3, 17, 64, 65, 129, 300] {
            let trial = Trial(100 + length, lengths: length...length)
            let layer = try layer(mixer, trial, headDim: 8, .float32)
            let x = trial.normal([trial.batch, length, trial.heads * 8], .float32) * mixer.inputScale
            withNoGrad {
                var state = layer.anyInitialState(batch: trial.batch)
                let steps = stack((0..<length).map { layer.step(x.selected(1, $0), anyState: &state) }, dim: 1)
                #expect(steps.deviation(from: layer(x)) < 1e-5, "\(trial)")
            }
        }
    }

    @Test(arguments: cases) func piecesAreTheWhole(_ mixer: MixerCase) throws {
        for seed in 1...4 {
            let trial = Trial(200 + seed, lengths: 8...300)
            let layer = try layer(mixer, trial, headDim: 4)
            let x = trial.normal([trial.batch, trial.length, trial.heads * 4]) * mixer.inputScale
            let expected = layer(x)
            let cuts: [Int64] = Tensor.random(in: 1..<trial.length, [2], using: trial.generator).scalars()
            let bounds = [0] + Set(cuts.map(Int.init)).sorted()
            withNoGrad {
                var state = layer.anyInitialState(batch: trial.batch)
                var pieces = zip(bounds, bounds.dropFirst()).map {
                    layer.prefill(x.sliced(1, $0..<$1), paddingMask: nil, anyState: &state)
                }
                for index in bounds[bounds.count - 1]..<trial.length {
                    pieces.append(layer.step(x.selected(1, index), anyState: &state).unsqueezed(1))
                }
                #expect(concatenate(pieces, dim: 1).deviation(from: expected) < 1e-9, "cut at \(bounds), \(trial)")
            }
        }
    }

    /// Prompts of different lengths in one batch, padded on the right, in one or two pieces: each goes on as if alone.
    @Test(arguments: cases) func paddedPromptsGoOnAsIfAlone(_ mixer: MixerCase) throws {
        for seed in 1...4 {
            let trial = Trial(300 + seed, lengths: 2...140)
            let layer = try layer(mixer, trial, headDim: 4)
            let modelDim = trial.heads * 4
            // One sequence has nothing in the second piece, and all four continue with three tokens.
            let lengths = [[trial.length, max(1, trial.length / 2), 1, max(1, trial.length / 2)], [1, 5, 0, 3]]
            let sizes = lengths.map { $0.max() ?? 0 }
            let prompts = sizes.map { trial.normal([4, $0, modelDim]) * mixer.inputScale }
            let masks = zip(lengths, sizes).map { rightPadding($0, of: $1) }
            let tail = trial.normal([4, 3, modelDim]) * mixer.inputScale
            withNoGrad {
                var state = layer.anyInitialState(batch: 4)
                let outputs = zip(prompts, masks).map { prompt, mask in
                    let padded = prompt.masked(where: (.!mask).unsqueezed(2), with: mixer.isBounded ? 1e4 : 3)
                    return layer.prefill(padded, paddingMask: mask, anyState: &state)
                }
                let next = stack((0..<3).map { layer.step(tail.selected(1, $0), anyState: &state) }, dim: 1)
                for row in 0..<4 {
                    let slice = { (x: Tensor, length: Int) in x.sliced(0, row..<row + 1).sliced(1, 0..<length) }
                    let parts = zip(prompts, lengths).map { slice($0, $1[row]) }
                    let alone = layer(concatenate(parts + [slice(tail, 3)], dim: 1))
                    let found = zip(outputs, lengths).map { slice($0, $1[row]) } + [slice(next, 3)]
                    #expect(
                        concatenate(found, dim: 1).deviation(from: alone) < 1e-9,
                        "sequence \(row) of \(lengths), \(trial)")
                }
            }
        }
    }

    @Test(arguments: cases) func copiesOfAStateGoOnIndependently(_ mixer: MixerCase) throws {
        let trial = Trial(400, lengths: 60...62)  // over the cache's first capacity while they go on
        let layer = try layer(mixer, trial, headDim: 4)
        let modelDim = trial.heads * 4
        let prompt = trial.normal([2, trial.length, modelDim])
        let ways = (0..<3).map { _ in trial.normal([2, 9, modelDim]) }
        withNoGrad {
            var state = layer.anyInitialState(batch: 2)
            _ = layer.prefill(prompt, paddingMask: nil, anyState: &state)
            var copies = [state, state, state]
            var found: [[Tensor]] = [[], [], []]
            for index in 0..<9 {
                for way in 0..<3 {
                    found[way].append(layer.step(ways[way].selected(1, index), anyState: &copies[way]))
                }
            }
            for way in 0..<3 {
                let expected = layer(concatenate([prompt, ways[way]], dim: 1)).sliced(
                    1, trial.length..<trial.length + 9)
                #expect(stack(found[way], dim: 1).deviation(from: expected) < 1e-9, "way \(way)")
            }
            let untouched = layer.step(ways[0].selected(1, 0), anyState: &state)
            #expect(untouched.isIdentical(to: found[0][0]))
        }
    }

    @Test(arguments: cases) func stateOfConstantSizeStaysSo(_ mixer: MixerCase) throws {
        let trial = Trial(500, lengths: 40...40)
        let layer = try layer(mixer, trial, headDim: 4)
        let x = trial.normal([1, 40, trial.heads * 4])
        var state = layer.anyInitialState(batch: 1)
        let size = { state.tensors.values.reduce(0) { $0 + $1.count } }
        let before = size()
        _ = layer.prefill(x, paddingMask: nil, anyState: &state)
        let isConstant =
            try mixer.hasConstantState ?? (MixerCatalogue.entry(named: mixer.mixer).streaming == .constant)
        #expect((size() == before) == isConstant)
    }

    @Test func stateOfAnotherBatchSizeIsRefused() throws {
        let trial = Trial(600)
        for mixer in Self.cases {
            let layer = try layer(mixer, trial, headDim: 4, .float32)
            let x = Tensor.ones([3, 2, trial.heads * 4])
            for misuse in [
                { (state: inout any StreamingState) in layer.step(x.selected(1, 0), anyState: &state) },
                { (state: inout any StreamingState) in layer.prefill(x, paddingMask: nil, anyState: &state) },
            ] {
                var state = layer.anyInitialState(batch: 1)
                let error = #expect(throws: TorchError.self) { try withTorchErrors { misuse(&state) } }
                #expect(try #require(error).description.contains("the state is of 1 sequences; got x [3, "))
            }
        }
    }

    @Test(arguments: MixerCase.all.filter { !$0.streams }) func whatCannotStreamSaysSo(_ mixer: MixerCase) throws {
        let mixed = try mixer.layer(heads: 2, headDim: 4, seed: 1, dtype: .float32)
        guard let layer = mixed as? any StreamingMixer else { return }
        #expect(!layer.canStream)
        var state = layer.anyInitialState(batch: 1)
        let error = #expect(throws: TorchError.self) {
            try withTorchErrors { layer.prefill(.ones([1, 3, 8]), paddingMask: nil, anyState: &state) }
        }
        #expect(try #require(error).description.contains("cannot stream"))
    }
}
