import Testing
import Torch

@Suite struct DenseTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var tokens: [Int]
        var inputs: Int
        var outputs: Int
        var testDescription: String { "\(tokens) tokens, \(inputs) to \(outputs)" }

        func normal(_ shape: [Int], _ seed: UInt64) -> Tensor {
            .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
        }
        var x: Tensor { normal(tokens + [inputs], 1) }
        func weight(_ seed: UInt64, _ outputs: Int, _ inputs: Int) -> Tensor {
            normal([outputs, inputs], seed) / Double(inputs).squareRoot()
        }
    }

    /// Around the edges of tiles, panels, blocks and segments.
    static let cases = [
        Case(tokens: [1], inputs: 1, outputs: 1), Case(tokens: [3, 5], inputs: 7, outputs: 6),
        Case(tokens: [2, 100], inputs: 64, outputs: 65), Case(tokens: [97], inputs: 257, outputs: 130),
        Case(tokens: [2100], inputs: 33, outputs: 17), Case(tokens: [1037], inputs: 16, outputs: 64),
        Case(tokens: [5], inputs: 600, outputs: 300),
    ]

    @Test(arguments: cases) func projectionsGiveTheLoops(_ sizes: Case) throws {
        let (n, d) = (sizes.outputs, sizes.inputs)
        let inputs = [
            sizes.x, sizes.weight(2, n, d), sizes.normal([n], 3), sizes.weight(4, 9, d), sizes.weight(5, n, d),
            sizes.normal([n], 6),
        ]
        try expectKernel(inputs) { t in
            let y = projections(t[0], [(t[1], t[2]), (t[3], nil), (t[4], t[5])])
            return [concatenate(y, dim: -1)]
        }
    }

    @Test(arguments: cases, Nonlinearity.allCases) func feedForwardGivesTheLoops(
        _ sizes: Case, _ nonlinearity: Nonlinearity
    ) throws {
        let (n, d) = (sizes.outputs, sizes.inputs)
        let inputs = [
            sizes.x, sizes.weight(2, n, d), sizes.normal([n], 3), sizes.weight(4, d, n), sizes.normal([d], 5),
            sizes.normal(sizes.tokens + [d], 6),
        ]
        try expectKernel(inputs, "\(nonlinearity)") { t in
            [feedForward(t[0], up: (t[1], t[2]), nonlinearity, down: (t[3], t[4]), residual: t[5])]
        }
        try expectKernel([inputs[0], inputs[1], inputs[3]], "\(nonlinearity), bare") { t in
            [feedForward(t[0], up: (t[1], nil), nonlinearity, down: (t[2], nil))]
        }
    }

    /// So many rows and hidden channels that they are worked on range by range.
    @Test func feedForwardGivesTheLoopsInRanges() throws {
        let sizes = Case(tokens: [1100], inputs: 2, outputs: 5000)
        let inputs = [
            sizes.x, sizes.weight(2, 5000, 2), sizes.normal([5000], 3), sizes.weight(4, 2, 5000), sizes.normal([2], 5),
        ]
        try expectKernel(inputs) { t in
            [feedForward(t[0], up: (t[1], t[2]), .relu, down: (t[3], t[4]), residual: t[0])]
        }
        // Of what comes before only the biases have gradients.
        let (x, up, down) = (inputs[0], inputs[1], inputs[3])
        try expectKernel([inputs[2]]) { t in
            let weights = [x, up, down].map { $0.to(t[0].dtype) }
            return [feedForward(weights[0], up: (weights[1], t[0]), .relu, down: (weights[2], nil))]
        }
    }

    @Test func areLibTorchsNumbers() throws {
        let sizes = Case(tokens: [2, 70], inputs: 40, outputs: 90)
        let inputs = [
            sizes.x, sizes.weight(2, 90, 40), sizes.normal([90], 3), sizes.weight(4, 40, 90), sizes.normal([40], 5),
        ].map { $0.requiringGrad() }
        for nonlinearity in Nonlinearity.allCases {
            let hidden = linear(inputs[0], inputs[1], inputs[2])
            let expected = linear(nonlinearity(hidden), inputs[3], inputs[4])
            let cotangent = sizes.normal(expected.shape, 7)
            let slopes = gradients(of: [expected], weightedBy: [cotangent], withRespectTo: inputs)
            for isa in KernelInstructions.available {
                try KernelInstructions.with(isa) {
                    let found = feedForward(
                        inputs[0], up: (inputs[1], inputs[2]), nonlinearity, down: (inputs[3], inputs[4]))
                    expectClose(found, expected, 1e-11)
                    let others = gradients(of: [found], weightedBy: [cotangent], withRespectTo: inputs)
                    for case (let a?, let b?) in zip(others, slopes) { expectClose(a, b, 1e-11) }
                }
            }
        }
    }

    @Test func threadsDoNotMatter() {
        let sizes = Case(tokens: [1500], inputs: 100, outputs: 200)
        let inputs = [
            sizes.x, sizes.weight(2, 200, 100), sizes.normal([200], 3), sizes.weight(4, 100, 200),
        ].map { $0.to(.float32) }
        expectSameBitsOnAnyThreads(inputs) { t in
            [feedForward(t[0], up: (t[1], t[2]), .gelu, down: (t[3], nil), residual: t[0])]
        }
    }

    /// What a differentiable gradient is made of is LibTorch's.
    @Test func gradientsHaveGradients() throws {
        let sizes = Case(tokens: [3], inputs: 4, outputs: 5)
        let inputs = [sizes.x, sizes.weight(2, 5, 4), sizes.normal([5], 3), sizes.weight(4, 4, 5)]
        try KernelInstructions.with("baseline") {
            for nonlinearity in Nonlinearity.allCases where nonlinearity != .relu {
                let deviation = gradientCheck(inputs) { given in
                    withGrad {
                        let t = given.map { $0.requiresGrad ? $0 : $0.requiringGrad() }
                        let y = feedForward(t[0], up: (t[1], t[2]), nonlinearity, down: (t[3], nil), residual: t[0])
                        let z = projections(y, [(t[1], t[2]), (t[1], nil)])
                        let squares = (z[0] * z[1]).square().sum()
                        let found = gradients(of: [squares], withRespectTo: [t[0], t[1]], createGraph: true)
                        return concatenate(found.compactMap { $0?.flattened() })
                    }
                }
                #expect(deviation < 1e-5, "\(nonlinearity)")
            }
        }
    }
}
