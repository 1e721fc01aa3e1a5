import Testing
import Torch

/// The chunked kernel of the causal linear family against its recurrence, token by token in float64.
@Suite struct CausalKernelTests {
    struct Inputs {
        let q, k, v: Tensor

        init(_ length: Int, seed: UInt64, batch: Int = 2, features: Int = 5, valueDim: Int = 3) {
            let generator = RandomGenerator(seed: seed)
            q = .random([batch, 2, length, features], using: generator, dtype: .float64)
            k = .random([batch, 2, length, features], using: generator, dtype: .float64)
            v = .randomNormal([batch, 2, length, valueDim], using: generator, dtype: .float64)
        }

        /// out, s, p and z by the definition.
        func recurrence(_ momentum: Double, _ stepSize: Double) -> (out: Tensor, final: CausalLinearState) {
            let shape = [q.size(0), 2, q.size(3), v.size(3)]
            var (s, p) = (Tensor.zeros(shape, dtype: .float64), Tensor.zeros(shape, dtype: .float64))
            var z = Tensor.zeros(Array(shape.dropLast()), dtype: .float64)
            let rows = (0..<q.size(2)).map { t -> Tensor in
                let (qt, kt, vt) = (q.selected(2, t), k.selected(2, t), v.selected(2, t))
                p = p * momentum - kt.unsqueezed(3) * vt.unsqueezed(2) * stepSize
                s -= p
                z += kt
                return matmul(qt.unsqueezed(2), s).squeezed(2) / ((qt * z).sum(-1, keepDim: true) + 1e-6)
            }
            return (stack(rows, dim: 2), CausalLinearState(s: s, p: p, z: z))
        }

        func sliced(_ range: Range<Int>) -> [Tensor] { [q, k, v].map { $0.sliced(2, range) } }
    }

    static let weights = [(0.0, 1.0), (0.0, 0.7), (0.6, 0.9), (0.999, 0.01)]

    @Test(arguments: [1, 2, 3, 63, 64, 65, 127, 128, 129, 200])
    func everyChunkSizeGivesTheRecurrence(_ length: Int) throws {
        for (momentum, stepSize) in Self.weights {
            let inputs = Inputs(length, seed: UInt64(length))
            let expected = inputs.recurrence(momentum, stepSize)
            let leaves = [inputs.q, inputs.k, inputs.v].map { $0.requiringGrad() }
            let weight = Tensor.randomNormal(inputs.v.shape, using: RandomGenerator(seed: 1), dtype: .float64)
            var first: [Tensor]?
            for chunk in [1, 3, 64, 128] {
                let (out, final) = causalLinearAttention(
                    leaves[0], leaves[1], leaves[2], momentum: momentum, stepSize: stepSize, epsilon: 1e-6, chunk: chunk
                )
                let place = "chunk \(chunk), momentum \(momentum), step size \(stepSize)"
                #expect(out.deviation(from: expected.out) < 1e-10, "out, \(place)")
                #expect(final.s.deviation(from: expected.final.s) < 1e-10, "s, \(place)")
                #expect(final.z.deviation(from: expected.final.z) < 1e-10, "z, \(place)")
                if let p = final.p {
                    let momenta = try #require(expected.final.p)
                    #expect(p.deviation(from: momenta) < 1e-10, "p, \(place)")
                } else {
                    #expect(momentum == 0 && stepSize == 1)
                }
                let found = gradients(of: [out], weightedBy: [weight], withRespectTo: leaves).compactMap { $0 }
                for (name, (a, b)) in zip("qkv", zip(found, first ?? found)) {
                    #expect(length == 1 && name != "v" || a.deviation(from: b) < 1e-9, "gradient of \(name), \(place)")
                }
                first = first ?? found
            }
        }
    }

    @Test func twoHalvesAreTheWhole() throws {
        for (momentum, stepSize) in Self.weights {
            for (length, cut, chunk) in [(7, 1, 3), (200, 128, 128), (130, 77, 64), (65, 64, 64)] {
                let inputs = Inputs(length, seed: 9)
                func run(_ x: [Tensor], _ initial: CausalLinearState?) -> (out: Tensor, final: CausalLinearState) {
                    causalLinearAttention(
                        x[0], x[1], x[2], momentum: momentum, stepSize: stepSize, epsilon: 1e-6, chunk: chunk,
                        initial: initial)
                }
                let whole = run(inputs.sliced(0..<length), nil)
                let first = run(inputs.sliced(0..<cut), nil)
                let second = run(inputs.sliced(cut..<length), first.final)
                #expect(concatenate([first.out, second.out], dim: 2).deviation(from: whole.out) < 1e-11)
                #expect(second.final.s.deviation(from: whole.final.s) < 1e-11)
                #expect(second.final.z.deviation(from: whole.final.z) < 1e-11)
            }
        }
    }

    /// A gradient through a second piece reaches that piece alone, and is right there.
    @Test func gradientsGoOnFromAnInitialState() {
        let inputs = Inputs(9, seed: 4, batch: 1)
        let state = causalLinearAttention(
            inputs.q, inputs.k, inputs.v, momentum: 0.8, stepSize: 0.5, epsilon: 1e-6, chunk: 4
        ).final
        let deviation = gradientCheck([inputs.q, inputs.k, inputs.v]) {
            causalLinearAttention(
                $0[0], $0[1], $0[2], momentum: 0.8, stepSize: 0.5, epsilon: 1e-6, chunk: 4, initial: state
            ).out
        }
        #expect(deviation < 1e-6)
    }

    @Test(arguments: [(0.0, 1.0), (0.999, 0.01), (0.999, 1.0)]) func singlePrecisionHoldsOverALongSequence(
        _ momentum: Double, _ stepSize: Double
    ) throws {
        let inputs = Inputs(5000, seed: 5, batch: 1)
        let expected = causalLinearAttention(
            inputs.q, inputs.k, inputs.v, momentum: momentum, stepSize: stepSize, epsilon: 1e-6)
        let found = causalLinearAttention(
            inputs.q.to(.float32), inputs.k.to(.float32), inputs.v.to(.float32), momentum: momentum,
            stepSize: stepSize, epsilon: 1e-6)
        #expect(found.out.deviation(from: expected.out) < 1e-4)
        #expect(found.final.s.deviation(from: expected.final.s) < 1e-4)
        #expect(found.final.z.deviation(from: expected.final.z) < 1e-5)
        if let p = found.final.p, let wide = expected.final.p { #expect(p.deviation(from: wide) < 1e-4) }
    }

    @Test func misuseIsThrown() {
        let x = Tensor.ones([1, 2, 3, 4])
        #expect(throws: TorchError.self) {
            try withTorchErrors { causalLinearAttention(x, .ones([1, 2, 3, 5]), x, epsilon: 0).out }
        }
        #expect(throws: TorchError.self) {
            try withTorchErrors { causalLinearAttention(x, x, x, momentum: 1, epsilon: 0).out }
        }
        #expect(throws: TorchError.self) {
            try withTorchErrors { causalLinearAttention(x, x, x, epsilon: 0, chunk: 0).out }
        }
    }
}
