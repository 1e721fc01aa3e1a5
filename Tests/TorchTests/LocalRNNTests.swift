import Testing
import Torch

@Suite struct LocalRNNTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var cell: LocalRecurrentCell
        var length: Int
        var dim = 5
        var window = 7
        var batch = 2
        var keptBytes = 1 << 30
        var testDescription: String { "\(cell), N \(length), E \(dim), M \(window), batch \(batch)" }

        var gates: Int { [3, 4, 1][Int(cell.rawValue)] }

        func inputs() -> [Tensor] {
            let shapes = [
                [batch, length, dim], [gates * dim, dim], [gates * dim, dim], [gates * dim], [gates * dim],
            ]
            return shapes.enumerated().map { index, shape in
                let x = Tensor.randomNormal(
                    shape, using: RandomGenerator(seed: UInt64(index + length)), dtype: .float64)
                return index == 0 ? x : x / Double(dim).squareRoot()
            }
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [
                localRecurrence(
                    x[0], cell, inputWeight: x[1], hiddenWeight: x[2], inputBias: x[3], hiddenBias: x[4],
                    window: window,
                    keptBytes: keptBytes)
            ]
        }
    }

    /// One token and many, windows of one token, as long as the sequence, and longer; blocks of tokens in many tasks.
    static let cases: [Case] = LocalRecurrentCell.allCases.flatMap { cell in
        [
            Case(cell: cell, length: 1), Case(cell: cell, length: 7, window: 1), Case(cell: cell, length: 6, window: 6),
            Case(cell: cell, length: 9, dim: 16, window: 20),
            Case(cell: cell, length: 96, dim: 17, window: 3, batch: 1),
            Case(cell: cell, length: 97, dim: 3, window: 4, batch: 3),
            Case(cell: cell, length: 300, dim: 4, window: 130, batch: 1),
            Case(cell: cell, length: 1000, dim: 33, window: 3, batch: 1),
        ]
    }

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        try expectKernel(setting.inputs(), single: 5e-5) { setting($0) }
    }

    /// Steps that are not kept are taken again, by the same operations: block by block the same numbers.
    @Test(arguments: cases) func stepsTakenAgainAreTheSame(_ setting: Case) throws {
        var forgetful = setting
        forgetful.keptBytes = 0
        func results(_ setting: Case, _ dtype: DType) throws -> [Tensor] {
            let leaves = setting.inputs().map { $0.to(dtype).requiringGrad() }
            let out = setting(leaves)[0]
            let slopes = gradients(of: [out.square().sum()], withRespectTo: leaves)
            return [out] + (try slopes.map { try #require($0) })
        }
        for isa in KernelInstructions.available {
            for dtype in [DType.float32, .float64] {
                try KernelInstructions.with(isa) {
                    for (a, b) in zip(try results(forgetful, dtype), try results(setting, dtype)) {
                        #expect(a.isIdentical(to: b), "\(isa)")
                    }
                }
            }
        }
    }

    /// Rows that lie apart: every second token, and the columns of a wider tensor.
    @Test(arguments: LocalRecurrentCell.allCases) func stridedRowsAreRead(_ cell: LocalRecurrentCell) throws {
        let setting = Case(cell: cell, length: 20, dim: 6)
        var inputs = setting.inputs()
        let wide = Tensor.randomNormal([2, 20, 14], using: RandomGenerator(seed: 8), dtype: .float64)
        inputs[0] = wide
        try expectKernel(inputs) { setting([$0[0].sliced(2, 3..<9)] + $0.dropFirst()) }
        let part = wide.sliced(2, 3..<9)
        expectClose(setting([part] + inputs.dropFirst())[0], setting([part.cloned()] + inputs.dropFirst())[0], 1e-15)
    }

    @Test(arguments: LocalRecurrentCell.allCases) func threadsDoNotMatter(_ cell: LocalRecurrentCell) {
        let setting = Case(cell: cell, length: 1300, dim: 20, window: 5)
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.to(.float32) }) { setting($0) }
    }

    @Test(arguments: LocalRecurrentCell.allCases) func gradientsAreThoseOfDifferences(_ cell: LocalRecurrentCell) {
        let setting = Case(cell: cell, length: 4, dim: 3, window: 3)
        #expect(gradientCheck(setting.inputs()) { setting($0)[0] } < 1e-6)
    }

    /// Gates far beyond where they saturate.
    @Test(arguments: LocalRecurrentCell.allCases) func largeInputsStayFinite(_ cell: LocalRecurrentCell) {
        let setting = Case(cell: cell, length: 40, dim: 20)
        var inputs = setting.inputs().map { $0.to(.float32) }
        inputs[0] = (inputs[0] * 1e4).requiringGrad()
        let out = setting(inputs)[0]
        #expect(out.isFinite().all().integerItem() != 0 && out.abs().maximum().item() <= 1)
        let gradient = gradients(of: [out.sum()], withRespectTo: [inputs[0]])[0]
        #expect(gradient?.isFinite().all().integerItem() == 1)
    }

    @Test func halfPrecisionIsComputedInSingle() {
        let setting = Case(cell: .gru, length: 50, dim: 20)
        let inputs = setting.inputs().map { $0.to(.bfloat16) }
        let out = setting(inputs)[0]
        #expect(out.dtype == .bfloat16)
        expectClose(out.to(.float32), setting(inputs.map { $0.to(.float32) })[0].to(.bfloat16).to(.float32), 1e-6)
    }

    @Test func misuseIsReported() {
        let setting = Case(cell: .gru, length: 7)
        let x = setting.inputs()
        var other = setting
        other.cell = .lstm
        #expect(torchError { _ = other(x) }.operation == "local_rnn")
        other = setting
        other.window = 0
        #expect(torchError { _ = other(x) }.message.contains("window above 0"))
        #expect(
            torchError {
                let leaf = x[0].requiringGrad()
                let out = setting([leaf] + x.dropFirst())[0]
                _ = gradients(of: [out.sum()], withRespectTo: [leaf], createGraph: true)
            }.message.contains("twice"))
    }
}
