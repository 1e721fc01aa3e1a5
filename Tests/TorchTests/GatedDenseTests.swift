import Testing
import Torch

@Suite struct GatedDenseTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var tokens: [Int]
        var inputs: Int
        var hidden: Int
        var outputs: Int
        var testDescription: String { "\(tokens) tokens, \(inputs) to \(hidden) to \(outputs)" }

        /// x, gate, its bias, up, its bias, down, its bias, residual.
        func tensors() -> [Tensor] {
            func normal(_ seed: UInt64, _ shape: [Int]) -> Tensor {
                .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
            }
            func weight(_ seed: UInt64, _ outputs: Int, _ inputs: Int) -> Tensor {
                normal(seed, [outputs, inputs]) / Double(inputs).squareRoot()
            }
            return [
                normal(1, tokens + [inputs]), weight(2, hidden, inputs), normal(3, [hidden]), weight(4, hidden, inputs),
                normal(5, [hidden]), weight(6, outputs, hidden), normal(7, [outputs]), normal(8, tokens + [outputs]),
            ]
        }
    }

    private func run(_ t: [Tensor], _ nonlinearity: Nonlinearity) -> Tensor {
        gatedFeedForward(
            t[0], gate: (t[1], t[2]), nonlinearity, up: (t[3], t[4]), down: (t[5], t[6]), residual: t[7])
    }

    /// The layer as operations of LibTorch.
    private func composed(_ t: [Tensor], _ nonlinearity: Nonlinearity) -> Tensor {
        t[7] + linear(nonlinearity(linear(t[0], t[1], t[2])) * linear(t[0], t[3], t[4]), t[5], t[6])
    }

    /// Around the edges of tiles and panels.
    static let cases = [
        Case(tokens: [1], inputs: 1, hidden: 1, outputs: 1), Case(tokens: [3, 5], inputs: 7, hidden: 6, outputs: 9),
        Case(tokens: [97], inputs: 257, hidden: 130, outputs: 65),
        Case(tokens: [5, 205], inputs: 16, hidden: 33, outputs: 16),
        Case(tokens: [2049], inputs: 17, hidden: 12, outputs: 5),
    ]

    @Test(arguments: cases, Nonlinearity.allCases) func everyInstructionSetGivesTheLoops(
        _ sizes: Case, _ nonlinearity: Nonlinearity
    ) throws {
        let inputs = sizes.tensors()
        try expectKernel(inputs, "\(nonlinearity)") { [run($0, nonlinearity)] }
        try expectKernel([inputs[0], inputs[1], inputs[3], inputs[5]], "\(nonlinearity), bare") { t in
            [gatedFeedForward(t[0], gate: (t[1], nil), nonlinearity, up: (t[2], nil), down: (t[3], nil))]
        }
    }

    @Test(arguments: Nonlinearity.allCases) func isTheComposedLayer(_ nonlinearity: Nonlinearity) throws {
        let sizes = Case(tokens: [2, 600], inputs: 40, hidden: 90, outputs: 33)
        let inputs = sizes.tensors().map { $0.requiringGrad() }
        let expected = composed(inputs, nonlinearity)
        let cotangent = Tensor.randomNormal(expected.shape, using: RandomGenerator(seed: 9), dtype: .float64)
        let slopes = gradients(of: [expected], weightedBy: [cotangent], withRespectTo: inputs)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let found = run(inputs, nonlinearity)
                expectClose(found, expected, 1e-11)
                expectClose(withNoGrad { run(inputs, nonlinearity) }, expected, 1e-11)
                let others = gradients(of: [found], weightedBy: [cotangent], withRespectTo: inputs)
                for (a, b) in zip(others, slopes) { expectClose(try #require(a), try #require(b), 1e-11) }
            }
        }
    }

    /// Each alone, over two ranges of rows: what is not asked for is not computed, and what is comes out the same.
    @Test(arguments: 0..<8) func gradientsComeOneByOne(_ wanted: Int) throws {
        let inputs = Case(tokens: [1100], inputs: 6, hidden: 3000, outputs: 4).tensors()
        func slope(_ layer: ([Tensor], Nonlinearity) -> Tensor) throws -> Tensor {
            var leaves = inputs
            leaves[wanted] = inputs[wanted].requiringGrad()
            return try #require(
                gradients(of: [layer(leaves, .silu).square().sum()], withRespectTo: [leaves[wanted]])[0])
        }
        let expected = try slope(composed)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) { expectClose(try slope(run), expected, 1e-10) }
        }
    }

    @Test func threadsDoNotMatter() {
        let inputs = Case(tokens: [1500], inputs: 100, hidden: 200, outputs: 100).tensors().map { $0.to(.float32) }
        expectSameBitsOnAnyThreads(inputs) { [run($0, .gelu)] }
    }

    /// What a differentiable gradient is made of is LibTorch's.
    @Test func gradientsHaveGradients() throws {
        let inputs = Case(tokens: [3], inputs: 4, hidden: 5, outputs: 4).tensors()
        try KernelInstructions.with("baseline") {
            for nonlinearity in Nonlinearity.allCases where nonlinearity != .relu {
                let deviation = gradientCheck(inputs) { given in
                    withGrad {
                        let t = given.map { $0.requiresGrad ? $0 : $0.requiringGrad() }
                        let squares = run(t, nonlinearity).square().sum()
                        let found = gradients(of: [squares], withRespectTo: t, createGraph: true)
                        return concatenate(found.compactMap { $0?.flattened() })
                    }
                }
                #expect(deviation < 1e-5, "\(nonlinearity)")
            }
        }
    }

    /// Other types, no tokens, and layouts that are copied first.
    @Test func whatTheKernelDoesNotTakeIsComposed() throws {
        let inputs = Case(tokens: [2, 70], inputs: 20, hidden: 30, outputs: 20).tensors()
        let half = inputs.map { $0.to(.bfloat16) }
        expectClose(run(half, .gelu).to(.float32), composed(half, .gelu).to(.float32), 1e-2)
        #expect(
            run([inputs[0].sliced(1, 0..<0)] + inputs[1..<7] + [inputs[7].sliced(1, 0..<0)], .gelu).shape == [2, 0, 20])
        var turned = inputs
        turned[0] = inputs[0].transposed(0, 1)
        turned[7] = inputs[7].transposed(0, 1)
        for index in [1, 3, 5] { turned[index] = inputs[index].transposed().contiguous().transposed() }
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                expectClose(run(turned, .gelu), run(inputs, .gelu).transposed(0, 1), 1e-12)
            }
        }
        let error = torchError { _ = run([inputs[0].sliced(1, 0..<9)] + inputs[1...], .gelu) }
        #expect(error.operation == "gated_feed_forward")
    }
}
