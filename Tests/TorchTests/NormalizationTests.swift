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
                let simple = addedNorm(t[0], nil, .simple, weight: nil, epsilon: 0.1).normalized
                expectClose(simple, t[0] / (t[0].square().mean(-1, keepDim: true).sqrt() + 0.1), 1e-11)
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

    /// Numbers whose squares are infinite in float32, and none at all, with gradients that are numbers.
    @Test func simpleNormTakesLargeNumbersAndZeros() throws {
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let x = Tensor.randomNormal([3, 37], using: RandomGenerator(seed: 2)) * 1e25
                let leaf = x.requiringGrad()
                let y = addedNorm(leaf, nil, .simple, weight: nil, epsilon: 1e-8).normalized
                let wide = x.to(.float64)
                expectClose(y.to(.float64), wide / wide.square().mean(-1, keepDim: true).sqrt(), 1e-6)
                let slopes = gradients(of: [y.sliced(1, 0..<1)], weightedBy: [.ones([3, 1])], withRespectTo: [leaf])
                #expect(slopes[0].map { ($0 - $0).abs().maximum().item() } == 0.0)

                let zeros = Tensor.zeros([2, 37]).requiringGrad()
                let none = addedNorm(zeros, nil, .simple, weight: nil, epsilon: 0.5).normalized
                #expect(none.detached().abs().maximum().item() == 0)
                let ofZeros = gradients(of: [none], weightedBy: [.ones([2, 37])], withRespectTo: [zeros])
                expectClose(ofZeros[0] ?? .zeros([1]), .full([2, 37], 2), 1e-6)
            }
        }
    }

    @Test func threadsDoNotMatter() {
        let t = inputs([300], 70).map { $0.to(.float32) }
        expectSameBitsOnAnyThreads(t) { t in
            [addedNorm(t[0], t[1], .layer, weight: t[2], bias: t[3], epsilon: 1e-5).normalized]
        }
    }

    /// Layers keep no output of a norm but the norm: the same numbers as where they are given a copy of it.
    @Test(arguments: NormKind.allCases) func layersComputeNormsAgain(_ kind: NormKind) throws {
        let t = inputs([2, 70], 24)
        let weights = (4..<8).map {
            Tensor.randomNormal([24, 24], using: RandomGenerator(seed: $0), dtype: .float64) / 5
        }
        func layers(_ t: [Tensor], again: Bool) -> Tensor {
            let found = addedNorm(t[0], t[1], kind, weight: t[2], bias: kind == .layer ? t[3] : nil, epsilon: 1e-3)
            let y = again ? found.normalized : found.normalized * 1
            let parts = projections(y, [(t[4], t[3]), (t[5], nil)])
            return feedForward(y, up: (t[6], nil), .gelu, down: (t[7], t[3]), residual: parts[0] * parts[1] + found.sum)
        }
        let leaves = (t + weights).map { $0.requiringGrad() }
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let (found, expected) = (layers(leaves, again: true), layers(leaves, again: false))
                expectClose(found, expected, 1e-15)
                let slopes = [found, expected].map { gradients(of: [$0.square().sum()], withRespectTo: leaves) }
                for case (let a?, let b?) in zip(slopes[0], slopes[1]) { expectClose(a, b, 1e-10) }
            }
        }
        try KernelInstructions.with("baseline") {
            let deviation = gradientCheck(leaves.map { $0.detached() }) { given in
                withGrad {
                    let leaves = given.map { $0.requiresGrad ? $0 : $0.requiringGrad() }
                    let slopes = gradients(
                        of: [layers(leaves, again: true).square().sum() / 100], withRespectTo: [leaves[0], leaves[2]],
                        createGraph: true)
                    return concatenate(slopes.compactMap { $0?.flattened() })
                }
            }
            #expect(deviation < 1e-5)
        }
    }
}
