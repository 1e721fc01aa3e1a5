import Testing
import Torch

@Suite struct SegmentMixturesTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var segment: Int
        var rank = 1
        var heads = 2
        var width = 5
        var masked = false
        var testDescription: String {
            "N \(length), C \(segment), r \(rank), H \(heads), D \(width)\(masked ? ", masked" : "")"
        }

        /// k, v, logits, the norms, and the mask where there is one.
        func inputs() -> [Tensor] {
            func random(_ shape: Int..., seed: Int) -> Tensor {
                .randomNormal(shape, using: RandomGenerator(seed: UInt64(seed + length)), dtype: .float64)
            }
            let columns = heads * width
            let rows = [columns, columns, heads * rank].enumerated().map { random(2, length, $1, seed: $0) }
            let norms = (0..<4).map { random(columns, seed: 10 + $0) + 1 }
            return rows + norms
                + (masked ? [Tensor.random(in: 0..<3, [2, length], using: RandomGenerator(seed: 3)) .> 1] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            let (keys, values) = segmentMixtures(
                x[0], x[1], logits: x[2], paddingMask: masked ? x[7] : nil,
                norms: SegmentNorms(
                    tokenGain: x[3], tokenBias: x[4], mixtureGain: x[5], mixtureBias: x[6], epsilon: 1e-5),
                segment: segment, rank: rank, heads: heads)
            // One result, so that all gradients come from it.
            return [concatenate([keys, values], dim: 2)]
        }
    }

    static let cases: [Case] = [
        Case(length: 1, segment: 1), Case(length: 7, segment: 3), Case(length: 6, segment: 3),
        Case(length: 5, segment: 16), Case(length: 50, segment: 16, heads: 8, width: 16),
        Case(length: 40, segment: 8, rank: 3, heads: 3, width: 17, masked: true),
        Case(length: 70, segment: 9, rank: 2, heads: 1, width: 20, masked: true),
        Case(length: 65, segment: 2, rank: 4, heads: 5, width: 3, masked: true),
        Case(length: 600, segment: 16, heads: 4, width: 64),
    ]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs()) { setting($0) }
    }

    @Test(arguments: [cases[4], cases[5], cases[8]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test(arguments: [1, 3], [false, true]) func isTheDefinition(_ rank: Int, _ masked: Bool) {
        let setting = Case(length: 13, segment: 4, rank: rank, masked: masked)
        let x = setting.inputs()
        var logits = x[2].sliced(1, 0..<12).reshaped(2, 3, 4, 2, rank)
        if masked {
            let hidden = (.!x[7].sliced(1, 0..<12)).reshaped(2, 3, 4, 1, 1)
            logits = logits.masked(where: hidden, with: -Double.infinity)
        }
        // A segment of padding alone has weights of zero.
        let weights = logits.softmax(2).masked(where: logits.maximum(2, keepDim: true) .< -1e300, with: 0)
        func normalized(_ x: Tensor, _ gain: Tensor, _ bias: Tensor) -> Tensor {
            let centered = x - x.mean(-1, keepDim: true)
            return centered / ((centered * centered).mean(-1, keepDim: true) + 1e-5).sqrt() * gain + bias
        }
        let sides = [x[0], x[1]].map { y -> Tensor in
            let cut = y.sliced(1, 0..<12).reshaped(2, 3, 4, 2, 5)
            let mixed = einsum("bsthr,bsthd->bsrhd", weights, cut).reshaped(2, 3 * rank, 10)
            return concatenate([normalized(y, x[3], x[4]), normalized(mixed, x[5], x[6])], dim: 1)
        }
        expectClose(setting(x)[0], concatenate(sides, dim: 2), 1e-12)
        let weighed = Array(x.prefix(7))
        #expect(gradientCheck(weighed) { setting($0 + x.suffix(from: 7))[0] } < 1e-6)
    }

    @Test func misuseIsReported() {
        let x = Case(length: 7, segment: 3).inputs()
        let norms = SegmentNorms(tokenGain: x[3], tokenBias: x[4], mixtureGain: x[5], mixtureBias: x[6], epsilon: 1e-5)
        #expect(
            torchError {
                _ = segmentMixtures(x[0], x[1], logits: x[2], norms: norms, segment: 3, rank: 2, heads: 2)
            }.operation == "segment_mixtures")
        #expect(
            torchError {
                let k = x[0].requiringGrad()
                let keys = segmentMixtures(k, x[1], logits: x[2], norms: norms, segment: 3, rank: 1, heads: 2).keys
                _ = gradients(of: [keys.sum()], withRespectTo: [k], createGraph: true)
            }.message.contains("twice"))
    }
}
