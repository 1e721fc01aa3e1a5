import SequenceMixers
import Testing
import Torch
import TorchNN

/// gMLP with weights far from those it starts with, which mix nothing.
@Suite struct GMLPTests {
    struct Setting: Sendable, CustomTestStringConvertible {
        let weights: SpatialWeights
        let heads: Int
        let isCausal: Bool
        var attentionDim: Int?

        var testDescription: String {
            "\(weights.rawValue), \(heads) heads, \(isCausal ? "causal" : "bidirectional")"
                + (attentionDim == nil ? "" : ", attention")
        }

        func block(maximumLength: Int, seed: UInt64 = 5) -> GMLP {
            let generator = RandomGenerator(seed: seed)
            let gating = SpatialGatingUnit(
                12, weights: weights, heads: heads, maximumLength: maximumLength, isCausal: isCausal, using: generator)
            let block = GMLP(gating, modelDim: 4, attentionDim: attentionDim, using: generator)
            block.to(.float64)
            for parameter in block.parameters() {
                parameter.value = .randomNormal(parameter.value.shape, using: generator, dtype: .float64) * 0.5
            }
            return block
        }
    }

    static let settings = [true, false].flatMap { causal in
        [
            Setting(weights: .dense, heads: 1, isCausal: causal),
            Setting(weights: .dense, heads: 3, isCausal: causal, attentionDim: 2),
            Setting(weights: .toeplitz, heads: 1, isCausal: causal, attentionDim: 3),
            Setting(weights: .toeplitz, heads: 2, isCausal: causal),
        ]
    }

    /// The lengths on both sides of where Fourier transforms begin, and the whole length of the weights.
    @Test(arguments: settings) func formsAgreeForAnyWeights(_ setting: Setting) throws {
        let block = setting.block(maximumLength: 600)
        for length in [1, 2, 37, 511, 512, 600] {
            let trial = Trial(7)
            let x = trial.normal([2, length, 4]).requiringGrad()
            let mask = length == 37 ? rightPadding([37, 20], of: 37) : nil
            let weight = trial.normal([2, length, 4])
            let results = [false, true].map { usesReference -> [Tensor] in
                block.usesReference = usesReference
                let out = block(x, paddingMask: mask)
                let kept = mask.map { out.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? out
                let leaves = [x] + block.parameters().map(\.value)
                let found = gradients(of: [kept], weightedBy: [weight], withRespectTo: leaves)
                return [kept] + found.map { $0 ?? .zeros([1]) }
            }
            let scale = results[1][1...].map { $0.abs().maximum().item() }.max() ?? 1
            let names = ["out", "x"] + block.namedParameters().map(\.name)
            for (name, (found, expected)) in zip(names, zip(results[0], results[1])) {
                let size = name == "out" ? expected.abs().maximum().item() : scale
                #expect((found - expected).abs().maximum().item() <= 1e-9 * size, "\(name), length \(length)")
            }
        }
    }

    @Test(arguments: settings.filter(\.isCausal)) func piecesAreTheWholeForAnyWeights(_ setting: Setting) {
        let block = setting.block(maximumLength: 60)
        let trial = Trial(9)
        let lengths = [30, 7, 1]
        let x = trial.normal([3, 30, 4])
        let tail = trial.normal([3, 9, 4])
        withNoGrad {
            var state = block.initialState(batch: 3)
            let prompt = block.prefill(x, paddingMask: rightPadding(lengths, of: 30), state: &state)
            let piece = block.prefill(tail.sliced(1, 0..<4), paddingMask: nil, state: &state)
            let steps = stack((4..<9).map { block.step(tail.selected(1, $0), state: &state) }, dim: 1)
            for (row, length) in lengths.enumerated() {
                func part(_ x: Tensor, _ end: Int) -> Tensor { x.sliced(0, row..<row + 1).sliced(1, 0..<end) }
                let alone = block(concatenate([part(x, length), part(tail, 9)], dim: 1))
                let found = concatenate([part(prompt, length), part(piece, 4), part(steps, 5)], dim: 1)
                #expect(found.deviation(from: alone) < 1e-9, "sequence \(row)")
            }
        }
    }

    /// Padded tokens may stand behind the last position that there are weights for.
    @Test(arguments: settings.filter(\.isCausal)) func paddingBeyondTheMaximumLength(_ setting: Setting) {
        let block = setting.block(maximumLength: 10)
        let x = Trial(9).normal([2, 8, 4])
        withNoGrad {
            var state = block.initialState(batch: 2)
            _ = block.prefill(x, paddingMask: rightPadding([8, 3], of: 8), state: &state)
            let out = block.prefill(x, paddingMask: rightPadding([2, 7], of: 8), state: &state)
            #expect(out.isAllFinite && state.positions == [10, 10])
            let last = block.prefill(x, paddingMask: rightPadding([0, 0], of: 8), state: &state)
            #expect(last.isAllFinite && state.positions == [10, 10])
            let alone = block(concatenate([x[1..<2, 0..<3], x[1..<2, 0..<7]], dim: 1))
            #expect(out[1..<2, 0..<7].deviation(from: alone[.all, 3..<10]) < 1e-9)
        }
    }

    @Test func aBlockBeginsWithoutMixing() {
        let gating = SpatialGatingUnit(
            8, weights: .dense, maximumLength: 5, isCausal: false, using: RandomGenerator(seed: 1))
        let z = Trial(2).normal([1, 5, 8], .float32)
        #expect(gating(z).deviation(from: z.sliced(2, 0..<4)) < 0.01)
    }

    /// The matrix of pairs would be 1 GB here.
    @Test(arguments: [true, false]) func longToeplitzWeightsNeedNoMatrix(_ causal: Bool) throws {
        let setting = Setting(weights: .toeplitz, heads: 1, isCausal: causal)
        let block = setting.block(maximumLength: 16_384)
        block.to(.float32)
        let x = Trial(3).normal([1, 16_384, 4], .float32).requiringGrad()
        let gradient = try #require(gradients(of: [block(x).sum()], withRespectTo: [x])[0])
        #expect(gradient.isAllFinite)
    }

    @Test func longerSequencesThanThereAreWeightsForAreRefused() {
        let block = Setting(weights: .dense, heads: 1, isCausal: true).block(maximumLength: 6)
        let text = "SpatialGatingUnit: a sequence of 7 tokens is longer than the maximum length 6 of its weights"
        let x = Trial(3).normal([1, 7, 4])
        var error = #expect(throws: TorchError.self) { try withTorchErrors { block(x) } }
        #expect(error?.description == text)
        var state = block.initialState(batch: 1)
        _ = block.prefill(x.sliced(1, 0..<6), paddingMask: nil, state: &state)
        error = #expect(throws: TorchError.self) {
            try withTorchErrors { block.step(x.selected(1, 0), state: &state) }
        }
        #expect(error?.description == text)
        error = #expect(throws: TorchError.self) { try withTorchErrors { block.gating(x) } }
        #expect(error?.description == "SpatialGatingUnit: expected an input [batch, length, 12], got [1, 7, 4]")
    }
}
