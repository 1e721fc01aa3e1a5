import Testing
import Torch

@Suite struct MovingAverageTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var channels: Int
        var hidden = 16
        var directions = 1
        var gated = true
        var masked = false
        var batch = 2
        var testDescription: String {
            "N \(length), E \(channels), h \(hidden), \(directions) directions\(gated ? ", gated" : "")"
                + (masked ? ", masked" : "")
        }

        /// x, the four parameters, ω, and the mask.
        func inputs() -> [Tensor] {
            func normal(_ seed: Int, _ shape: [Int]) -> Tensor {
                Tensor.randomNormal(shape, using: RandomGenerator(seed: UInt64(seed)), dtype: .float64)
            }
            let rows = directions * channels
            return [normal(length, [batch, length, channels])] + (1...4).map { normal($0, [rows, hidden]) }
                + (gated ? [normal(5, [channels])] : [])
                + (masked ? [Tensor.random(in: 0..<4, [batch, length], using: RandomGenerator(seed: 6)) .> 0] : [])
        }

        func run(_ x: [Tensor], initial: Tensor? = nil) -> (out: Tensor, final: Tensor?) {
            movingAverage(
                x[0], paddingMask: masked ? x[x.count - 1] : nil,
                MovingAverageParameters(
                    alphaLogit: x[1], deltaLogit: x[2], beta: x[3], eta: x[4], omega: gated ? x[5] : nil),
                initial: initial)
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            let (out, final) = run(x)
            return [out] + (final.map { [$0] } ?? [])
        }
    }

    static let cases: [Case] = [1, 2].flatMap { directions in
        [
            Case(length: 1, channels: 5, directions: directions),
            Case(length: 63, channels: 16, hidden: 1, directions: directions, gated: false),
            Case(length: 64, channels: 7, hidden: 5, directions: directions, masked: true),
            Case(length: 65, channels: 33, hidden: 8, directions: directions, masked: true),
            Case(length: 130, channels: 256, hidden: 3, directions: directions),
            Case(length: 300, channels: 40, directions: directions, gated: false, masked: true, batch: 5),
        ]
    }

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs()) { setting($0) }
    }

    @Test(arguments: [cases[4], cases[8]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    /// The recurrence of tensors along time.
    private func recurrence(_ setting: Case, _ x: [Tensor], direction: Int = 0) -> (y: Tensor, state: Tensor) {
        let rows = direction * setting.channels..<(direction + 1) * setting.channels
        let (alpha, delta) = (x[1].sliced(0, rows).sigmoid(), x[2].sliced(0, rows).sigmoid())
        let (beta, eta) = (x[3].sliced(0, rows), x[4].sliced(0, rows))
        let input = direction == 0 ? x[0] : x[0].flipped(1)
        var state = Tensor.zeros([setting.batch, setting.channels, setting.hidden], dtype: .float64)
        let outputs = (0..<setting.length).map { t in
            state = alpha * (beta * input.selected(1, t).unsqueezed(2)) + (1 - alpha * delta) * state
            return (eta * state).sum(2) / Double(setting.hidden).squareRoot()
        }
        let y = stack(outputs, dim: 1)
        return (direction == 0 ? y : y.flipped(1), state)
    }

    @Test(arguments: [1, 3, 70], [1, 2]) func isTheRecurrence(_ length: Int, _ directions: Int) {
        let setting = Case(length: length, channels: 3, hidden: 2, directions: directions)
        let x = setting.inputs()
        let (y, state) = recurrence(setting, x)
        let sum = directions == 1 ? y : y + recurrence(setting, x, direction: 1).y
        let (out, final) = setting.run(x)
        expectClose(out, (sum + x[5] * x[0]).silu(), 1e-12)
        if let final { expectClose(final, state, 1e-12) }
        #expect((final == nil) == (directions == 2))
        if length < 10 { #expect(gradientCheck(x) { setting($0)[0] } < 1e-6) }
    }

    @Test(arguments: [(7, 1), (200, 128), (130, 77), (2, 1)]) func twoPiecesAreTheWhole(
        _ cut: (length: Int, at: Int)
    ) throws {
        for channels in [3, 150] {
            let setting = Case(length: cut.length, channels: channels, hidden: 6)
            let x = setting.inputs()
            let whole = setting.run(x)
            func part(_ range: Range<Int>) -> [Tensor] { [x[0].sliced(1, range)] + x[1...] }
            for isa in KernelInstructions.available {
                try KernelInstructions.with(isa) {
                    let first = setting.run(part(0..<cut.at))
                    let second = setting.run(part(cut.at..<cut.length), initial: first.final)
                    expectClose(concatenate([first.out, second.out], dim: 1), whole.out, 1e-12)
                    expectClose(try #require(second.final), try #require(whole.final), 1e-12)
                }
            }
        }
    }

    /// Decays of 1e-4 and less beside fast ones.
    @Test func singlePrecisionHoldsOverALongSequence() {
        let setting = Case(length: 20_000, channels: 3, hidden: 4, batch: 1)
        var x = setting.inputs().map { $0.to(.float32).to(.float64) }
        let slow = Tensor([-5.0, -4, 0, 1]).to(.float32).to(.float64)
        (x[1], x[2]) = (x[1] * 0 + slow, x[2] * 0 + slow)
        let expected = setting.run(x)
        let found = setting.run(x.map { $0.to(.float32) })
        expectClose(found.out.to(.float64), expected.out, 2e-5)
        if let a = found.final, let b = expected.final { expectClose(a.to(.float64), b, 2e-5) }
    }

    @Test func halfPrecisionIsSummedInSingle() {
        let setting = Case(length: 70, channels: 4)
        let x = setting.inputs().map { $0.to(.bfloat16) }
        let (out, final) = setting.run(x)
        #expect(out.dtype == .bfloat16 && final?.dtype == .float32)
        expectClose(out.to(.float64), setting.run(x.map { $0.to(.float64) }).out, 2e-2)
    }

    @Test func misuseIsReported() {
        let setting = Case(length: 7, channels: 3)
        let x = setting.inputs()
        #expect(torchError { _ = setting.run([x[0].sliced(2, 0..<2)] + x[1...]) }.operation == "moving_average")
        #expect(
            torchError {
                var other = setting
                other.masked = true
                _ = other.run(x + [.ones([2, 7])])
            }.message.contains("booleans"))
        let two = Case(length: 7, channels: 3, directions: 2)
        #expect(
            torchError { _ = two.run(two.inputs(), initial: .zeros([2, 3, 16])) }.message.contains("one direction"))
        let leaves = x.map { $0.requiringGrad() }
        #expect(
            torchError { _ = setting.run(leaves, initial: .zeros([2, 3, 16])) }.message.contains("no gradients"))
        #expect(
            torchError {
                _ = gradients(of: [setting.run(leaves).out.sum()], withRespectTo: [leaves[0]], createGraph: true)
            }.message.contains("twice"))
    }
}
