import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct ReformerTests {
    private func core(
        _ generator: RandomGenerator, heads: Int, headDim: Int, rounds: Int = 2, evaluationRounds: Int? = nil,
        factors: [Int] = [4], redraws: Bool = true, _ change: (inout LSHSettings) -> Void = { _ in }
    ) -> LSHCore {
        var settings = LSHSettings(isCausal: true, chunk: 4)
        change(&settings)
        let core = LSHCore(
            settings, factors: factors, rounds: rounds, evaluationRounds: evaluationRounds, heads: heads,
            headDim: headDim, redraws: redraws, using: generator)
        core.to(.float64)
        core.evaluate()
        return core
    }

    /// Every setting, each with others at random, so that rounds, windows and chunks meet in all ways.
    @Test func efficientFormIsReferenceFormForGivenHashes() throws {
        for seed in 1...40 {
            let trial = Trial(seed, lengths: 1...60)
            func draw(_ range: ClosedRange<Int>) -> Int {
                Tensor.random(in: range.lowerBound..<range.upperBound + 1, [1], using: trial.generator).integerItem()
            }
            let rounds = draw(1...3)
            let core = core(trial.generator, heads: trial.heads, headDim: trial.headDim, rounds: rounds) {
                ($0.isCausal, $0.chunk) = (draw(0...1) == 1, draw(1...9))
                ($0.chunksBefore, $0.chunksAfter) = (draw(0...3), draw(0...2))
                ($0.withinBucket, $0.uniquePairs) = (draw(0...1) == 1, draw(0...1) == 1)
                ($0.logitScale, $0.roundLength) = (draw(0...1) == 1 ? .unit : .sqrt, draw(0...1) == 1 ? .real : .padded)
            }
            core.logitsAtOnce = draw(1...2000)
            let inputs = trial.qkv()
            let (qk, v) = (inputs[0].requiringGrad(), inputs[2].requiringGrad())
            // Any numbers will do for hashes.
            let buckets = Tensor.random(
                in: 0..<4, [trial.batch, trial.heads, rounds, trial.length], using: trial.generator)
            let mask = draw(0...1) == 1 ? rightPadding(trial.realLengths(), of: trial.length) : nil
            let weight = mask.map { inputs[2].masked(where: (.!$0).unsqueezed(1).unsqueezed(3), with: 0) } ?? inputs[2]
            let fused = core(qk, v, paddingMask: mask, buckets: buckets)
            core.isComposed = true
            let forms = [
                fused, core(qk, v, paddingMask: mask, buckets: buckets),
                core.reference(qk, v, paddingMask: mask, buckets: buckets),
            ].map { out in
                [out * (weight .!= 0).to(.float64)]
                    + gradients(of: [out], weightedBy: [weight], withRespectTo: [qk, v]).map { $0 ?? .zeros([1]) }
            }
            // A token that sees nothing but itself passes no gradient to its key.
            let scale = forms[2].map { $0.abs().maximum().item() }.max() ?? 1
            for (form, tensors) in zip(["fused", "composed"], forms) {
                for (name, (found, expected)) in zip(["out", "qk", "v"], zip(tensors, forms[2])) {
                    let difference = (found - expected).abs().maximum().item()
                    #expect(
                        difference <= 1e-10 * scale, "\(form) \(name), \(core.settings), \(rounds) rounds, \(trial)")
                }
            }
        }
    }

    @Test func gradientsWithHashesHeldAreThoseOfTheFunction() throws {
        for (seed, unique, within) in [(1, false, false), (2, true, false), (3, true, true)] {
            let trial = Trial(seed, lengths: 9...11)
            let core = core(trial.generator, heads: trial.heads, headDim: trial.headDim) {
                ($0.isCausal, $0.uniquePairs, $0.withinBucket) = (seed != 2, unique, within)
            }
            let inputs = trial.qkv()
            let buckets = core.buckets(inputs[0])
            let deviation = gradientCheck([inputs[0], inputs[2]]) {
                core($0[0], $0[1], paddingMask: nil, buckets: buckets)
            }
            #expect(deviation < 1e-6, "\(trial)")
        }
    }

    /// With one bucket and a chunk as long as the sequence there is nothing to hash: causal attention with keys of length 1,
    /// where a token looks at itself only when it is alone.
    @Test func withoutHashingItIsAttentionToAllOthers() throws {
        let trial = Trial(5, lengths: 7...7)
        let core = core(trial.generator, heads: trial.heads, headDim: 5) { $0.chunk = 7 }
        let qk = trial.normal([2, trial.heads, 7, 5])
        let v = trial.normal([2, trial.heads, 7, 3])
        let size = (qk.square().mean(-1, keepDim: true) + 1e-6).sqrt()
        let root: Double = 5.squareRoot()
        let lengths: Tensor = size * root
        let keys: Tensor = qk / lengths
        let others = Tensor.ones([7, 7], dtype: .bool).lowerTriangle(diagonal: -1)
        let logits = matmul(qk, keys.transposed()).masked(where: .!others, with: -Double.infinity)
        let expected = matmul(logits.sliced(2, 1..<7).softmax(), v)
        let out = core(qk, v, paddingMask: nil)
        #expect(out.sliced(2, 1..<7).deviation(from: expected) < 1e-12)
        #expect(out.selected(2, 0).deviation(from: v.selected(2, 0)) < 1e-12)
        // Pairs that are counted once make many rounds of one bucket in one window the same as that.
        let rounds = self.core(trial.generator, heads: trial.heads, headDim: 5, rounds: 3) {
            ($0.chunk, $0.chunksBefore, $0.chunksAfter, $0.uniquePairs) = (4, 1, 1, true)
        }
        let one = rounds(qk, v, paddingMask: nil, buckets: .zeros([2, trial.heads, 3, 7], dtype: .int64))
        #expect(one.deviation(from: out) < 1e-8)
    }

    @Test func bucketsAreTheNearestDirections() throws {
        let rotations = Tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 1], shape: [1, 3, 1, 3])
        let core = LSHCore(LSHSettings(isCausal: false, chunk: 1), factors: [4, 2], rotations: rotations)
        let x = Tensor([5.0, 1, 1, 1, -5, 1, -5, 1, -1, 1, 5, -1], shape: [1, 1, 4, 3])
        let found: [Int64] = core.buckets(x).scalars()
        // The first two directions and their opposites are the digit of 4; the third one's sign is that of 2, times 4.
        let expected: [Int64] = [0, 3, 2 + 4, 1 + 4]
        #expect(found == expected)
        core.isComposed = true
        #expect(core.buckets(x).scalars() == expected)
    }

    // MARK: Rotations

    @Test func eachTrainingStepDrawsNewRotations() throws {
        let core = core(RandomGenerator(seed: 1), heads: 2, headDim: 4)
        let x = Trial(6).normal([1, 2, 64, 4])
        func rotations(_ training: Bool) -> Tensor {
            core.train(training)
            _ = core(x, x, paddingMask: nil)
            return core.rotations.value
        }
        let first = rotations(true)
        let second = rotations(true)
        #expect(!second.isIdentical(to: first))
        #expect(rotations(false).isIdentical(to: second), "evaluation keeps those drawn last")
        #expect(core.stateDictionary()["rotations"]?.isIdentical(to: second) == true)
        let kept = self.core(RandomGenerator(seed: 1), heads: 2, headDim: 4, redraws: false)
        let before = kept.rotations.value
        kept.train()
        _ = kept(x, x, paddingMask: nil)
        #expect(kept.rotations.value.isIdentical(to: before))
    }

    @Test func aSavedGeneratorReplaysTheRotations() throws {
        let generator = RandomGenerator(seed: 1)
        let core = core(generator, heads: 2, headDim: 4)
        core.train()
        let x = Trial(7).normal([1, 2, 64, 4])
        let state = generator.state
        let buckets = core.buckets(x)
        #expect(!core.buckets(x).isIdentical(to: buckets))
        generator.state = state
        #expect(core.buckets(x).isIdentical(to: buckets))
    }

    /// A computation that is repeated keeps its buckets, though its inputs moved, and what is drawn after them.
    @Test func repeatedComputationsKeepTheirBuckets() throws {
        let generator = RandomGenerator(seed: 1)
        let core = core(generator, heads: 2, headDim: 4)
        core.train()
        let x = Trial(8).normal([1, 2, 64, 4])
        let replay = Replay(generator)
        func run(_ x: Tensor) -> (buckets: Tensor, noise: Tensor) {
            replay { (core.buckets(x), .random([3], using: generator)) }
        }
        let first = run(x)
        let rotations = core.rotations.value
        let second = run(-x)
        #expect(second.buckets.isIdentical(to: first.buckets))
        #expect(second.noise.isIdentical(to: first.noise))
        #expect(core.rotations.value.isIdentical(to: rotations))
        #expect(!core.buckets(-x).isIdentical(to: first.buckets))
    }

    @Test func evaluationMayHaveMoreRounds() throws {
        let core = core(RandomGenerator(seed: 1), heads: 1, headDim: 4, rounds: 2, evaluationRounds: 5)
        let x = Trial(9).normal([1, 1, 32, 4])
        #expect(core.buckets(x).shape == [1, 1, 5, 32])
        core.train()
        #expect(core.buckets(x).shape == [1, 1, 2, 32])
    }

    // MARK: Precision and size

    /// Where a token sees only itself all logits are near -10⁵, which leaves float32 two digits after the point.
    @Test func tokensThatAreAloneKeepTheirDigits() throws {
        for within in [true, false] {
            let core = core(RandomGenerator(seed: 1), heads: 1, headDim: 4, rounds: 3) {
                ($0.chunk, $0.withinBucket) = (2, within)
            }
            let trial = Trial(10)
            let (x, v) = (trial.normal([1, 1, 40, 4]), trial.normal([1, 1, 40, 4]))
            let buckets = Tensor.arange(0..<40).remainder(dividingBy: 4).expanded(to: [1, 1, 3, 40])
            let expected = core(x, v, paddingMask: nil, buckets: buckets)
            let out = core(x.to(.float32), v.to(.float32), paddingMask: nil, buckets: buckets)
            #expect(out.deviation(from: expected) < 1e-5)
        }
    }

    @Test func memoryIsLinearInTheLength() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            let generator = RandomGenerator(seed: 1)
            var settings = LSHSettings(isCausal: true, chunk: 32)
            settings.uniquePairs = true
            let core = LSHCore(settings, factors: [16, 8], rounds: 2, heads: 4, headDim: 32, using: generator)
            func kept(_ length: Int) -> Int {
                let x = Tensor.randomNormal([1, 4, length, 32], using: generator).requiringGrad()
                let before = TorchRuntime.cachedMemory.inUse
                let y = core(x, x, paddingMask: nil)
                let kept = TorchRuntime.cachedMemory.inUse - before
                y.sum().backward()
                return kept
            }
            _ = kept(4096)
            let (short, long) = (kept(4096), kept(16_384))
            // Scores alone would be 2 rounds · 4 heads · 64 keys a token; what is kept is some numbers of the head's size.
            let scores = 16_384 * 2 * 4 * 64 * 4
            precondition(long < scores && long < 6 * short, "\(short), \(long) of \(scores)")
        }
    }

    @Test func whatDoesNotFitIsRefused() throws {
        let core = core(RandomGenerator(seed: 1), heads: 2, headDim: 4)
        let good = Tensor.ones([1, 2, 9, 4], dtype: .float64)
        for (qk, v, mask, text) in [
            (Tensor.ones([2, 9, 4]), good, nil, "LSHCore: expected qk [batch, heads, n, d], v [batch, heads, n, e]"),
            (good, Tensor.ones([1, 2, 8, 4]), nil, "and at least one of everything; got [1, 2, 9, 4], [1, 2, 8, 4]"),
            (Tensor.ones([1, 3, 9, 4]), Tensor.ones([1, 3, 9, 4]), nil, "expected qk of 2 heads of 4 channels"),
            (good, good, Tensor.ones([1, 8], dtype: .bool), "expected a bool paddingMask [batch, n]"),
        ] as [(Tensor, Tensor, Tensor?, String)] {
            for usesReference in [false, true] {
                let error = #expect(throws: TorchError.self) {
                    try withTorchErrors {
                        usesReference
                            ? core.reference(qk, v, paddingMask: mask) : core(qk, v, paddingMask: mask)
                    }
                }
                #expect(try #require(error).description.contains(text))
            }
        }
        for rotations in [[2, 4, 2, 3], [2, 4, 2]] {
            #expect(throws: TorchError.self) {
                try withTorchErrors {
                    _ = LSHCore(LSHSettings(isCausal: true, chunk: 4), factors: [4], rotations: .ones(rotations))
                }
            }
        }
    }
}
