import Testing
import Torch

@Suite struct CausalLinearTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let length: Int
        let chunk: Int
        let momentum: Double
        let stepSize: Double
        var testDescription: String { "N \(length), C \(chunk), β \(momentum), γ \(stepSize)" }
    }

    static let cases = [
        Case(length: 1, chunk: 4, momentum: 0, stepSize: 1), Case(length: 7, chunk: 3, momentum: 0, stepSize: 1),
        Case(length: 8, chunk: 4, momentum: 0.6, stepSize: 1), Case(length: 9, chunk: 4, momentum: 0.9, stepSize: 0.3),
        Case(length: 5, chunk: 64, momentum: 0.5, stepSize: 2), Case(length: 6, chunk: 1, momentum: 0, stepSize: 0.5),
    ]

    private let epsilon = 1e-6

    /// The recurrence, token by token.
    private func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ setting: Case) -> (Tensor, CausalLinearState) {
        var s = Tensor.zeros([q.size(0), q.size(1), q.size(3), v.size(3)], dtype: .float64)
        var p = s
        var z = Tensor.zeros([q.size(0), q.size(1), q.size(3)], dtype: .float64)
        let rows = (0..<q.size(2)).map { i in
            let (qi, ki, vi) = (q[.all, .all, i], k[.all, .all, i], v[.all, .all, i])
            p = p * setting.momentum - ki.unsqueezed(3) * vi.unsqueezed(2) * setting.stepSize
            s = s - p
            z = z + ki
            return einsum("bhf,bhfm->bhm", qi, s) / ((qi * z).sum(-1, keepDim: true) + epsilon)
        }
        return (stack(rows, dim: 2), CausalLinearState(s: s, p: p, z: z))
    }

    private func inputs(_ setting: Case) -> [Tensor] {
        [3, 3, 2].enumerated().map { seed, size in
            normal([2, 2, setting.length, size], seed: seed).exp() - (seed == 2 ? 1 : 0)
        }
    }

    @Test(arguments: cases) func kernelEqualsTheRecurrence(_ setting: Case) {
        let x = inputs(setting)
        func fused(_ x: [Tensor]) -> Tensor {
            causalLinearAttention(
                x[0], x[1], x[2], momentum: setting.momentum, stepSize: setting.stepSize, epsilon: epsilon,
                chunk: setting.chunk
            ).out
        }
        expectClose(fused(x), reference(x[0], x[1], x[2], setting).0, 1e-11)
        #expect(gradientCheck(x, fused) < 1e-6)
    }

    @Test(arguments: cases.filter { $0.length > 2 }) func statesContinue(_ setting: Case) {
        let x = inputs(setting)
        func run(_ range: Range<Int>, _ initial: CausalLinearState?) -> (out: Tensor, final: CausalLinearState) {
            causalLinearAttention(
                x[0][.all, .all, range], x[1][.all, .all, range], x[2][.all, .all, range], momentum: setting.momentum,
                stepSize: setting.stepSize, epsilon: epsilon, chunk: setting.chunk, initial: initial)
        }
        let whole = run(0..<setting.length, nil)
        let first = run(0..<2, nil)
        let rest = run(2..<setting.length, first.final)
        expectClose(concatenate([first.out, rest.out], dim: 2), whole.out, 1e-11)
        let expected = reference(x[0], x[1], x[2], setting).1
        for state in [whole.final, rest.final] {
            expectClose(state.s, expected.s, 1e-11)
            expectClose(state.z, expected.z, 1e-11)
            if let p = state.p, let other = expected.p { expectClose(p, other, 1e-11) }
        }
    }

    @Test func misuseIsReported() {
        let x = inputs(Self.cases[1])
        #expect(torchError { _ = causalLinearAttention(x[0], x[2], x[2], epsilon: 0) }.operation == "causal_linear")
        #expect(
            torchError { _ = causalLinearAttention(x[0], x[1], x[2], epsilon: 0, chunk: 0) }.message.contains("chunk"))
        #expect(
            torchError {
                let q = x[0].requiringGrad()
                let out = causalLinearAttention(q, x[1], x[2], epsilon: 1e-6).out
                _ = gradients(of: [out.sum()], withRespectTo: [q], createGraph: true)
            }.message.contains("twice"))
    }
}
