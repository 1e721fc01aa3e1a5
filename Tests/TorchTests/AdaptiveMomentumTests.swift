import Testing
import Torch

@Suite struct AdaptiveMomentumTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var heads = 2
        var features = 5
        var valueDim = 3
        var stepSize = 0.7
        var maximum = 0.9999
        var masked = false
        var testDescription: String {
            "N \(length), H \(heads), F \(features), M \(valueDim), γ \(stepSize), β ≤ \(maximum)\(masked ? ", masked" : "")"
        }

        func inputs() -> [Tensor] {
            let numbers = [features, features, valueDim].enumerated().map { seed, size in
                let x = normal([2, heads, length, size], seed: seed + length)
                return seed < 2 ? x.abs() + 0.1 : x
            }
            return numbers
                + (masked ? [Tensor.random(in: 0..<4, [2, length], using: RandomGenerator(seed: 3)) .> 0] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            let (out, final) = adaptiveMomentumAttention(
                x[0], x[1], x[2], paddingMask: masked ? x[3] : nil, stepSize: stepSize, maximumMomentum: maximum,
                epsilon: 1e-6)
            return [out, final.s, final.p, final.u, final.z, final.begun]
        }
    }

    static let cases = [
        Case(length: 1), Case(length: 7, masked: true), Case(length: 64, heads: 1, features: 16, valueDim: 16),
        Case(length: 65, features: 3, valueDim: 17, stepSize: 0.2, masked: true),
        Case(length: 130, maximum: 0.3), Case(length: 40, features: 33, valueDim: 20, stepSize: 1),
    ]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // Rounding grows from step to step: each momentum hangs on those before.
        try expectKernel(setting.inputs(), double: 1e-8, single: 5e-3) { setting($0) }
    }

    @Test(arguments: [cases[1], cases[3]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test(arguments: [cases[0], Case(length: 6), Case(length: 5, stepSize: 0.1, masked: true)])
    func gradientsAreThoseOfTheFunction(_ setting: Case) throws {
        let x = setting.inputs()
        for isa in KernelInstructions.available {
            let deviation = try KernelInstructions.with(isa) {
                gradientCheck(Array(x.prefix(3))) { setting($0 + x.dropFirst(3))[0] }
            }
            #expect(deviation < 1e-5, "\(isa)")
        }
    }

    @Test func twoPiecesAreTheWhole() {
        let x = Case(length: 90).inputs()
        func run(_ range: Range<Int>, _ initial: AdaptiveMomentumState?) -> (out: Tensor, final: AdaptiveMomentumState)
        {
            adaptiveMomentumAttention(
                x[0].sliced(2, range), x[1].sliced(2, range), x[2].sliced(2, range), stepSize: 0.7,
                maximumMomentum: 0.9999, epsilon: 1e-6, initial: initial)
        }
        let whole = run(0..<90, nil)
        let first = run(0..<33, nil)
        let second = run(33..<90, first.final)
        expectClose(concatenate([first.out, second.out], dim: 2), whole.out, 1e-9)
        expectClose(second.final.s, whole.final.s, 1e-9)
        expectClose(second.final.p, whole.final.p, 1e-9)
    }

    @Test func misuseIsReported() {
        let x = Case(length: 7).inputs()
        let error = torchError {
            _ = adaptiveMomentumAttention(x[0], x[2], x[2], stepSize: 1, maximumMomentum: 0.9, epsilon: 0)
        }
        #expect(error.message.contains("one shape"))
    }
}
