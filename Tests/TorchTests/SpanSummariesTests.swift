import Testing
import Torch

@Suite struct SpanSummariesTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var span: Int
        var heads = 2
        var width = 5
        var valueDim = 3
        var pooling = SpanPooling.max
        var masked = false
        var poolsOthers = false
        var testDescription: String {
            "N \(length), span \(span), H \(heads), D \(width), E \(valueDim), \(pooling), masked \(masked), others \(poolsOthers)"
        }

        /// a, k, v, then b and the mask where there are.
        func inputs() -> [Tensor] {
            let sizes = [width, width, valueDim] + (poolsOthers ? [width] : [])
            let tensors = sizes.enumerated().map { seed, size in
                Tensor.randomNormal(
                    [2, heads, length, size], using: RandomGenerator(seed: UInt64(seed + length)), dtype: .float64)
            }
            return tensors
                + (masked ? [Tensor.random(in: 0..<3, [2, length], using: RandomGenerator(seed: 3)) .> 1] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            let (keys, values) = spanSummaries(
                queries: x[0], pooledKeys: poolsOthers ? x[3] : nil, x[1], x[2],
                paddingMask: masked ? x[x.count - 1] : nil,
                span: span, pooling: pooling, scale: 0.4)
            // One result, so that all gradients come from it.
            return [concatenate([keys, values], dim: 3)]
        }
    }

    static let cases: [Case] = [
        Case(length: 1, span: 1), Case(length: 7, span: 3),
        Case(length: 40, span: 16, heads: 1, width: 64, valueDim: 64),
        Case(length: 40, span: 8, heads: 3, width: 16, valueDim: 33, pooling: .mean),
        Case(length: 19, span: 64, pooling: .sum, masked: true), Case(length: 65, span: 4, masked: true),
        Case(length: 70, span: 9, width: 20, pooling: .mean, masked: true, poolsOthers: true),
        Case(length: 33, span: 5, width: 17, valueDim: 48, poolsOthers: true),
        Case(length: 600, span: 24, heads: 1, width: 8, valueDim: 16),
    ]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs()) { setting($0) }
    }

    @Test(arguments: [cases[2], cases[5], cases[8]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test(arguments: SpanPooling.allCases, [1, 4, 6]) func isTheDefinition(_ pooling: SpanPooling, _ span: Int) {
        let setting = Case(length: 12, span: span, pooling: pooling)
        let x = setting.inputs()
        func cut(_ x: Tensor) -> Tensor { x.reshaped(2, 2, 12 / span, span, -1) }
        func pooled(_ x: Tensor) -> Tensor {
            switch pooling {
            case .max: cut(x).maximum(3)
            case .mean: cut(x).mean(3)
            case .sum: cut(x).sum(3)
            }
        }
        let weights = (einsum("bhsd,bhstd->bhst", pooled(x[0]), cut(x[1])) * 0.4).softmax()
        let values = einsum("bhst,bhste->bhse", weights, cut(x[2]))
        let expected = concatenate(
            [concatenate([x[1], pooled(x[1])], dim: 2), concatenate([x[2], values], dim: 2)], dim: 3)
        expectClose(setting(x)[0], expected, 1e-12)
        #expect(gradientCheck(x) { setting($0)[0] } < 1e-6)
    }

    @Test func equalMaximaShareTheGradient() {
        let x = Tensor.ones([1, 1, 4, 2], dtype: .float64).requiringGrad()
        let v = Tensor.zeros([1, 1, 4, 1], dtype: .float64)
        let keys = spanSummaries(queries: v.expanded(to: [1, 1, 4, 2]), x, v, span: 4, pooling: .max, scale: 1).keys
        let found = gradients(of: [keys.selected(2, 4).sum()], withRespectTo: [x])
        expectClose(found[0] ?? v, .full([1, 1, 4, 2], 0.25, dtype: .float64), 1e-12)
    }

    @Test func misuseIsReported() {
        let x = Case(length: 7, span: 3).inputs()
        #expect(
            torchError { _ = spanSummaries(queries: x[2], x[1], x[2], span: 3, pooling: .max, scale: 1) }.operation
                == "span_summaries")
        #expect(
            torchError { _ = spanSummaries(queries: x[0], x[1], x[2], span: 0, pooling: .max, scale: 1) }.message
                .contains("above 0"))
        #expect(
            torchError {
                let k = x[1].requiringGrad()
                let keys = spanSummaries(queries: x[0], k, x[2], span: 3, pooling: .max, scale: 1).keys
                _ = gradients(of: [keys.sum()], withRespectTo: [k], createGraph: true)
            }.message.contains("twice"))
    }
}
