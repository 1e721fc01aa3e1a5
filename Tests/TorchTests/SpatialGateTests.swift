import Testing
import Torch

@Suite struct SpatialGateTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var channels: Int
        var heads = 1
        var isCausal = true
        var isMasked = false
        var testDescription: String {
            "N \(length), C \(channels), H \(heads)\(isCausal ? ", causal" : "")\(isMasked ? ", masked" : "")"
        }

        func inputs() -> [Tensor] {
            let generator = RandomGenerator(seed: UInt64(length + channels))
            let shapes = [
                [2, length, 2 * channels], [channels], [channels], [heads, length, length], [heads, length],
            ]
            let mask = Tensor.random(in: 0..<4, [2, length], using: generator) .> 0
            return shapes.map { Tensor.randomNormal($0, using: generator, dtype: .float64) } + (isMasked ? [mask] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [
                spatialGate(
                    x[0], normScale: x[1], normShift: x[2], w: x[3], bias: x[4], paddingMask: isMasked ? x[5] : nil,
                    epsilon: 1e-5, isCausal: isCausal)
            ]
        }
    }

    static let cases: [Case] = [true, false].flatMap { causal in
        [
            Case(length: 1, channels: 3, isCausal: causal),
            Case(length: 7, channels: 2, heads: 2, isCausal: causal),
            Case(length: 49, channels: 70, isCausal: causal, isMasked: true),
            Case(length: 65, channels: 12, heads: 3, isCausal: causal, isMasked: true),
            Case(length: 200, channels: 64, heads: 2, isCausal: causal),
            Case(length: 260, channels: 150, isCausal: causal),
        ]
    }

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs(), single: 5e-5) { setting($0) }
    }

    @Test(arguments: cases.filter { $0.length > 60 }) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test(arguments: [true, false]) func gradientsAreThoseOfTheFunction(_ causal: Bool) {
        let setting = Case(length: 5, channels: 4, heads: 2, isCausal: causal)
        #expect(gradientCheck(setting.inputs()) { setting($0)[0] } < 1e-6)
    }

    /// As a maximum length leaves them: a part of a larger matrix.
    @Test func weightsMayBeAPart() {
        let setting = Case(length: 20, channels: 6)
        let x = setting.inputs()
        let part = x[3].padded(2, after: 10, value: .nan).padded(1, after: 5, value: .nan)
            .sliced(1, 0..<20).sliced(2, 0..<20)
        #expect((setting([x[0], x[1], x[2], part, x[4]])[0] - setting(x)[0]).abs().maximum().item() == 0)
    }

    @Test func misuseIsReported() {
        let x = Case(length: 7, channels: 4).inputs()
        func run(_ z: Tensor, _ w: Tensor) -> Tensor {
            spatialGate(z, normScale: x[1], normShift: x[2], w: w, bias: x[4], epsilon: 1e-5, isCausal: true)
        }
        #expect(torchError { _ = run(x[0].sliced(1, 0..<6), x[3]) }.message.contains("w [heads, 6, 6]"))
        #expect(torchError { _ = run(x[0].sliced(2, 0..<7), x[3]) }.operation == "spatial_gate")
        #expect(
            torchError {
                let z = x[0].requiringGrad()
                _ = gradients(of: [run(z, x[3]).sum()], withRespectTo: [z], createGraph: true)
            }.message.contains("twice"))
    }
}
