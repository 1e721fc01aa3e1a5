import Testing
import Torch

@Suite struct CausalLinearTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var heads = 2
        var features = 5
        var valueDim = 3
        var options: CausalLinearOptions
        var masked = false
        var testDescription: String {
            "N \(length), H \(heads), F \(features), M \(valueDim), \(options)\(masked ? ", masked" : "")"
        }

        /// Positive queries and keys, where no feature map makes them so: sums stay away from zero.
        func inputs() -> [Tensor] {
            [features, features, valueDim].enumerated().map { seed, size in
                let x = Tensor.randomNormal(
                    [2, heads, length, size], using: RandomGenerator(seed: UInt64(seed + length)), dtype: .float64)
                return seed < 2 && options.featureMap == .none ? x.abs() + 0.1 : x
            } + (masked ? [mask] : [])
        }

        private var mask: Tensor {
            Tensor.random(in: 0..<4, [2, length], using: RandomGenerator(seed: 3)) .> 0
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            let (out, final) = causalLinearAttention(x[0], x[1], x[2], paddingMask: masked ? x[3] : nil, options)
            return [out, final.s, final.z] + (final.p.map { [$0] } ?? [])
        }
    }

    static let normalizations: [CausalLinearOptions.Normalization] = [
        .sum(epsilon: 1e-6), .none, .rootMeanSquare(epsilon: 1e-6),
    ]
    static let momenta = [(0.0, 1.0), (0.0, 0.7), (0.6, 0.9), (0.99, 0.05)]

    static let cases: [Case] = {
        var cases: [Case] = []
        for (index, map) in ElementwiseMap.allCases.enumerated() {
            for (other, normalization) in normalizations.enumerated() {
                // A sum of weights of any sign may vanish: nothing to compare.
                if case .sum = normalization, [.elu, .silu, .relu].contains(map) { continue }
                let (momentum, stepSize) = momenta[(index + other) % 4]
                cases.append(
                    Case(
                        length: [1, 63, 64, 65, 130, 200, 9][index], heads: [1, 9, 2][other],
                        features: [5, 16, 33][other],
                        valueDim: [3, 64, 17][(index + other) % 3],
                        options: CausalLinearOptions(
                            featureMap: map, normalization: normalization, momentum: momentum, stepSize: stepSize),
                        masked: index % 2 == 1))
            }
        }
        for (momentum, stepSize) in momenta {
            cases.append(
                Case(
                    length: 300, heads: 1,
                    options: CausalLinearOptions(
                        featureMap: .eluPlusOne, normalization: .sum(epsilon: 1e-6), momentum: momentum,
                        stepSize: stepSize)))
        }
        return cases
    }()

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs()) { setting($0) }
    }

    @Test(arguments: [cases[0], cases[5], cases[cases.count - 2]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    /// The recurrence, token by token, of tensors.
    private func recurrence(_ x: [Tensor], _ momentum: Double, _ stepSize: Double) -> (Tensor, CausalLinearState) {
        var s = Tensor.zeros([x[0].size(0), x[0].size(1), x[0].size(3), x[2].size(3)], dtype: .float64)
        var p = s
        var z = Tensor.zeros([x[0].size(0), x[0].size(1), x[0].size(3)], dtype: .float64)
        let rows = (0..<x[0].size(2)).map { i in
            let (q, k, v) = (x[0][.all, .all, i], x[1][.all, .all, i], x[2][.all, .all, i])
            p = p * momentum - k.unsqueezed(3) * v.unsqueezed(2) * stepSize
            s = s - p
            z = z + k
            return einsum("bhf,bhfm->bhm", q, s) / ((q * z).sum(-1, keepDim: true) + 1e-6)
        }
        return (stack(rows, dim: 2), CausalLinearState(s: s, p: p, z: z))
    }

    @Test(arguments: momenta, [1, 7, 64, 130]) func isTheRecurrence(_ weights: (Double, Double), _ length: Int) {
        let options = CausalLinearOptions(
            normalization: .sum(epsilon: 1e-6), momentum: weights.0, stepSize: weights.1)
        let x = Case(length: length, options: options).inputs()
        let (out, state) = recurrence(x, weights.0, weights.1)
        let (found, final) = causalLinearAttention(x[0], x[1], x[2], options)
        expectClose(found, out, 1e-11)
        expectClose(final.s, state.s, 1e-11)
        expectClose(final.z, state.z, 1e-11)
        if let p = final.p, let other = state.p { expectClose(p, other, 1e-11) }
        if length < 10 {
            #expect(gradientCheck(x) { causalLinearAttention($0[0], $0[1], $0[2], options).out } < 1e-6)
        }
    }

    @Test(arguments: momenta, [(7, 1), (200, 128), (130, 77), (65, 64)]) func twoPiecesAreTheWhole(
        _ weights: (Double, Double), _ cut: (length: Int, at: Int)
    ) {
        let options = CausalLinearOptions(
            normalization: .sum(epsilon: 1e-6), momentum: weights.0, stepSize: weights.1)
        let x = Case(length: cut.length, options: options).inputs()
        func run(_ range: Range<Int>, _ initial: CausalLinearState?) -> (out: Tensor, final: CausalLinearState) {
            causalLinearAttention(
                x[0].sliced(2, range), x[1].sliced(2, range), x[2].sliced(2, range), options, initial: initial)
        }
        let whole = run(0..<cut.length, nil)
        let first = run(0..<cut.at, nil)
        let second = run(cut.at..<cut.length, first.final)
        expectClose(concatenate([first.out, second.out], dim: 2), whole.out, 1e-11)
        expectClose(second.final.s, whole.final.s, 1e-11)
        expectClose(second.final.z, whole.final.z, 1e-11)
        let deviation = gradientCheck([x[0], x[1], x[2]].map { $0.sliced(2, 0..<min(5, cut.length)) }) {
            causalLinearAttention($0[0], $0[1], $0[2], options, initial: first.final).out
        }
        #expect(deviation < 1e-6)
    }

    @Test(arguments: [(0.0, 1.0), (0.999, 0.01), (0.999, 1.0)]) func singlePrecisionHoldsOverALongSequence(
        _ momentum: Double, _ stepSize: Double
    ) {
        let options = CausalLinearOptions(
            normalization: .sum(epsilon: 1e-6), momentum: momentum, stepSize: stepSize)
        let x = Case(length: 5000, options: options).inputs()
        let expected = causalLinearAttention(x[0], x[1], x[2], options)
        let found = causalLinearAttention(x[0].to(.float32), x[1].to(.float32), x[2].to(.float32), options)
        expectClose(found.out.to(.float64), expected.out, 1e-4)
        expectClose(found.final.s.to(.float64), expected.final.s, 1e-4)
        expectClose(found.final.z.to(.float64), expected.final.z, 1e-4)
    }

    @Test func misuseIsReported() {
        let options = CausalLinearOptions(normalization: .sum(epsilon: 1e-6))
        let x = Case(length: 7, options: options).inputs()
        #expect(torchError { _ = causalLinearAttention(x[0], x[2], x[2], options) }.operation == "causal_linear")
        #expect(
            torchError {
                _ = causalLinearAttention(x[0], x[1], x[2], paddingMask: .ones([2, 7]), options)
            }.message.contains("booleans"))
        var wrong = options
        wrong.momentum = 1
        #expect(torchError { _ = causalLinearAttention(x[0], x[1], x[2], wrong) }.message.contains("momentum < 1"))
        #expect(
            torchError {
                let q = x[0].requiringGrad()
                let out = causalLinearAttention(q, x[1], x[2], options).out
                _ = gradients(of: [out.sum()], withRespectTo: [q], createGraph: true)
            }.message.contains("twice"))
        #expect(throws: TorchError.self) { try KernelInstructions.with("sse9") {} }
    }
}
