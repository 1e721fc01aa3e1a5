import Testing
import Torch

@Suite struct GateTests {
    private func inputs(_ count: Int, _ shape: [Int]) -> [Tensor] {
        (0..<count).map { Tensor.randomNormal(shape, using: RandomGenerator(seed: UInt64($0)), dtype: .float64) * 2 }
    }

    @Test(arguments: [[1], [3, 5], [2, 70, 33], [3, 5000], [4, 8192]]) func everyInstructionSetGivesTheLoops(
        _ shape: [Int]
    ) throws {
        for nonlinearity in Nonlinearity.allCases {
            try expectKernel(inputs(2, shape), "\(nonlinearity)") { [gatedProduct($0[0], nonlinearity, $0[1])] }
        }
        try expectKernel(inputs(4, shape)) { [gatedResidual($0[0], gate: $0[1], $0[2], $0[3])] }
    }

    @Test func areTheEquations() {
        let x = inputs(4, [3, 7])
        expectClose(gatedProduct(x[0], .silu, x[1]), x[0].silu() * x[1], 1e-13)
        let expected = x[0] + x[1].sigmoid() * ((x[2] + x[3]).silu() - x[0])
        expectClose(gatedResidual(x[0], gate: x[1], x[2], x[3]), expected, 1e-13)
        for nonlinearity in Nonlinearity.allCases {
            expectClose(gatedProduct(x[0], nonlinearity, x[1]), nonlinearity(x[0]) * x[1], 1e-13)
            #expect(gradientCheck([x[0], x[1]]) { gatedProduct($0[0], nonlinearity, $0[1]) } < 1e-6, "\(nonlinearity)")
        }
        #expect(gradientCheck(x) { gatedResidual($0[0], gate: $0[1], $0[2], $0[3]) } < 1e-6)
        // Whatever lies how in memory.
        expectClose(gatedProduct(x[0].transposed(), .silu, x[1].transposed()), (x[0].silu() * x[1]).transposed(), 1e-13)
        #expect(gatedProduct(x[0].to(.bfloat16), .silu, x[1].to(.bfloat16)).dtype == .bfloat16)
    }

    @Test func threadsDoNotMatter() {
        expectSameBitsOnAnyThreads(inputs(4, [3, 9000]).map { $0.to(.float32) }) {
            [gatedResidual($0[0], gate: $0[1], $0[2], $0[3])]
        }
        expectSameBitsOnAnyThreads(inputs(2, [3, 9000]).map { $0.to(.float32) }) { [gatedProduct($0[0], .silu, $0[1])] }
    }

    @Test func misuseIsReported() {
        let x = inputs(2, [3, 7])
        #expect(torchError { _ = gatedProduct(x[0], .silu, x[1].sliced(0, 0..<2)) }.message.contains("one shape"))
        let single = x[0].to(.float32)
        #expect(torchError { _ = gatedResidual(x[0], gate: single, x[0], x[0]) }.operation == "gated_residual")
    }
}
