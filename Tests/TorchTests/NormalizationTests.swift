import Testing
import Torch

@Suite struct NormalizationTests {
    static let sizes: [([Int], Int)] = [([1], 1), ([3], 2), ([2, 5], 16), ([70], 33), ([2, 33], 257)]

    private func inputs(_ rows: [Int], _ dim: Int) -> [Tensor] {
        let shapes = [rows + [dim], rows + [dim], [dim], [dim]]
        return shapes.enumerated().map { seed, shape in
            .randomNormal(shape, using: RandomGenerator(seed: UInt64(seed)), dtype: .float64) + 0.5
        }
    }

    @Test(arguments: sizes, NormKind.allCases) func givesTheLoops(_ size: ([Int], Int), _ kind: NormKind) throws {
        let t = inputs(size.0, size.1)
        try expectKernel(t, single: 1e-4) { t in
            let (sum, normalized) = addedNorm(t[0], t[1], kind, weight: t[2], bias: t[3], epsilon: 1e-3)
            return [normalized + sum * 0.5]
        }
        try expectKernel([t[0], t[2]], single: 1e-4) { t in
            [addedNorm(t[0], nil, kind, weight: t[1], epsilon: 1e-3).normalized]
        }
        try expectKernel([t[0]], single: 1e-4) { t in
            [addedNorm(t[0], nil, kind, weight: nil, epsilon: 1e-3).normalized]
        }
    }

    @Test(arguments: sizes) func isLibTorchs(_ size: ([Int], Int)) throws {
        let t = inputs(size.0, size.1)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let layer = addedNorm(t[0], t[1], .layer, weight: t[2], bias: t[3], epsilon: 1e-5)
                expectClose(layer.sum, t[0] + t[1], 1e-15)
                expectClose(
                    layer.normalized,
                    layerNorm(t[0] + t[1], shape: [size.1], weight: t[2], bias: t[3], epsilon: 1e-5), 1e-11)
                let rms = addedNorm(t[0], nil, .rootMeanSquare, weight: t[2], epsilon: 1e-6)
                expectClose(rms.normalized, rmsNorm(t[0], shape: [size.1], weight: t[2], epsilon: 1e-6), 1e-11)
            }
        }
    }

    @Test(arguments: NormKind.allCases) func gradientsHoldAndHaveGradients(_ kind: NormKind) throws {
        let t = inputs([3], 5)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let first = gradientCheck(t) { t in
                    let found = addedNorm(t[0], t[1], kind, weight: t[2], bias: t[3], epsilon: 1e-3)
                    return found.normalized.square() + found.sum
                }
                #expect(first < 1e-6)
            }
        }
        let second = gradientCheck(t) { t in
            withGrad {
                let leaves = t.map { $0.requiresGrad ? $0 : $0.requiringGrad() }
                let found = addedNorm(leaves[0], leaves[1], kind, weight: leaves[2], bias: leaves[3], epsilon: 1e-3)
                let loss = (found.normalized.square() + found.sum.square()).sum()
                let slopes = gradients(of: [loss], withRespectTo: [leaves[0], leaves[2]], createGraph: true)
                return concatenate(slopes.compactMap { $0?.flattened() })
            }
        }
        #expect(second < 1e-5)
    }

    @Test func threadsDoNotMatter() {
        let t = inputs([300], 70).map { $0.to(.float32) }
        expectSameBitsOnAnyThreads(t) { t in
            [addedNorm(t[0], t[1], .layer, weight: t[2], bias: t[3], epsilon: 1e-5).normalized]
        }
    }
}
