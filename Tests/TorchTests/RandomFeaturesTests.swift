import Foundation
import Testing
import Torch

@Suite struct RandomFeaturesTests {
    struct Size: Sendable, CustomTestStringConvertible {
        var length: Int
        var dim: Int
        var columns: Int

        var testDescription: String { "\(length)x\(dim)x\(columns)" }
        var x: Tensor { RandomFeaturesTests.normal([2, 3, length, dim], 1) }
        var directions: Tensor { RandomFeaturesTests.normal([dim, columns], 2) }
    }

    static func normal(_ shape: [Int], _ seed: UInt64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    static let sizes = [
        Size(length: 1, dim: 1, columns: 1), Size(length: 7, dim: 5, columns: 3),
        Size(length: 50, dim: 16, columns: 16),
        Size(length: 99, dim: 33, columns: 70), Size(length: 48, dim: 64, columns: 64),
    ]

    private func features(_ x: Tensor, _ directions: Tensor) -> Tensor {
        positiveFeatures(x, directions: directions, temperature: 0.3, offset: 0.7)
    }

    private func expected(_ x: Tensor, _ directions: Tensor) -> Tensor {
        let u = matmul(x, directions) * 0.3.squareRoot()
        let o = x.square().sum(-1, keepDim: true) * 0.15 + 0.7
        return concatenate([(u - o).exp(), (-u - o).exp()], dim: -1)
    }

    @Test(arguments: sizes) func everyInstructionSetGivesTheLoops(_ size: Size) throws {
        try expectKernel([size.x * 0.5], single: 1e-4) { [features($0[0], size.directions)] }
    }

    @Test(arguments: sizes) func isTheEquation(_ size: Size) throws {
        let expected = expected(size.x, size.directions)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                expectClose(features(size.x, size.directions), expected, 1e-11)
                let sideways = size.x.transposed(1, 2).contiguous().transposed(1, 2)
                expectClose(features(sideways, size.directions), expected, 1e-11)
                guard size.length < 10 else { return }
                #expect(gradientCheck([size.x]) { features($0[0], size.directions) } < 1e-6)
            }
        }
        #expect(features(size.x.to(.bfloat16), size.directions).dtype == .float32)
    }

    @Test func threadsDoNotMatter() {
        let size = Size(length: 300, dim: 24, columns: 20)
        expectSameBitsOnAnyThreads([size.x.to(.float32)]) { [features($0[0], size.directions)] }
    }

    @Test func misuseIsReported() {
        let size = Size(length: 3, dim: 4, columns: 5)
        func message(_ x: Tensor, _ directions: Tensor) -> String {
            torchError { _ = features(x, directions) }.message
        }
        #expect(message(size.x.selected(0, 0), size.directions).contains("x [batch, heads, length, dim]"))
        #expect(message(size.x, size.directions.transposed()).contains("directions [dim, columns]"))
    }
}
