import Testing

@testable import Torch

@Suite struct RotationTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var batch = 2
        var heads = 3
        var length: Int
        var columns: Int
        var pairs: Int
        var pairing: ChannelPairing = .interleaved
        var map: ElementwiseMap = .none
        var isReflected = false
        /// Angles of its own for each sequence.
        var hasOwnAngles = false

        var testDescription: String {
            "\(batch)x\(heads)x\(length)x\(columns), \(pairs) \(pairing), \(map)\(isReflected ? ", mirror" : "")"
        }

        /// x, cosines, sines, and the mirror.
        var inputs: [Tensor] {
            let angles = RotationTests.normal([hasOwnAngles ? batch : 1, length, pairs], 2) * 3
            let mirror = RotationTests.normal([columns], 3)
            return [
                RotationTests.normal([batch, heads, length, columns], 1), angles.cos(), angles.sin(),
                mirror / mirror.norm(),
            ]
        }

        func turn(_ t: [Tensor]) -> Tensor {
            turned(
                t[0], cosines: t[1], sines: t[2], pairing: pairing, map: map,
                mirror: isReflected ? t[3].detached() : nil)
        }

        /// As the equations say.
        func expected(_ t: [Tensor]) -> Tensor {
            var z = map(t[0])
            if isReflected { z = z - (z * t[3]).sum(-1, keepDim: true) * t[3] * 2 }
            let channels = (0..<pairs).map { pairing == .halves ? ($0, $0 + pairs) : (2 * $0, 2 * $0 + 1) }
            var columns = (0..<self.columns).map { z.selected(3, $0) }
            for (pair, (a, b)) in channels.enumerated() {
                let (cos, sin) = (t[1].selected(2, pair).unsqueezed(1), t[2].selected(2, pair).unsqueezed(1))
                let (first, second) = (columns[a], columns[b])
                columns[a] = first * cos - second * sin
                columns[b] = second * cos + first * sin
            }
            return stack(columns, dim: 3)
        }
    }

    static func normal(_ shape: [Int], _ seed: UInt64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: .float64)
    }

    static let cases =
        ChannelPairing.allCases.flatMap { pairing in
            [
                Case(length: 5, columns: 8, pairs: 4, pairing: pairing),
                Case(batch: 1, heads: 1, length: 1, columns: 2, pairs: 1, pairing: pairing, isReflected: true),
                Case(length: 70, columns: 37, pairs: 18, pairing: pairing, hasOwnAngles: true),
                Case(length: 33, columns: 64, pairs: 32, pairing: pairing, map: .silu, isReflected: true),
                Case(length: 40, columns: 66, pairs: 20, pairing: pairing, map: .relu, hasOwnAngles: true),
            ]
        } + ElementwiseMap.allCases.map { Case(length: 9, columns: 7, pairs: 3, map: $0, isReflected: true) }
        + [Case(length: 4, columns: 5, pairs: 0, isReflected: true), Case(length: 4, columns: 5, pairs: 0)]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ each: Case) throws {
        try expectKernel(each.inputs) { [each.turn($0)] }
        // Angles that are not trained.
        let (angles, x) = (each.inputs, each.inputs[0])
        try expectKernel([x]) { t in [each.turn([t[0]] + angles.dropFirst().map { $0.to(t[0].dtype) })] }
    }

    @Test(arguments: cases) func isTheEquation(_ each: Case) throws {
        let inputs = each.inputs
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) { expectClose(each.turn(inputs), each.expected(inputs), 1e-12) }
        }
        let composed = composedTurn(
            inputs[0], cosines: inputs[1], sines: inputs[2], pairing: each.pairing, map: each.map,
            mirror: each.isReflected ? inputs[3] : nil)
        expectClose(composed, each.expected(inputs), 1e-12)
        // Whatever lies how in memory.
        let sideways = inputs[0].transposed(1, 2).contiguous().transposed(1, 2)
        expectClose(each.turn([sideways] + inputs.dropFirst()), each.expected(inputs), 1e-12)
        let strided = inputs[0].transposed(2, 3).contiguous().transposed(2, 3)
        expectClose(each.turn([strided] + inputs.dropFirst()), each.expected(inputs), 1e-12)
    }

    @Test(arguments: cases.filter { $0.length < 10 }) func gradientsHold(_ each: Case) throws {
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                #expect(gradientCheck(Array(each.inputs.prefix(3))) { each.turn($0 + [each.inputs[3]]) } < 1e-6)
            }
        }
    }

    @Test func threadsDoNotMatter() {
        let each = Case(length: 300, columns: 24, pairs: 12, map: .eluPlusOne, isReflected: true)
        expectSameBitsOnAnyThreads(each.inputs.map { $0.to(.float32) }) { [each.turn($0)] }
    }

    @Test func otherTypesStay() {
        let each = Case(length: 5, columns: 8, pairs: 4)
        let found = each.turn(each.inputs.map { $0.to(.bfloat16) })
        #expect(found.dtype == .bfloat16)
        expectClose(found.to(.float64), each.expected(each.inputs), 0.05)
    }

    @Test func misuseIsReported() {
        let each = Case(length: 5, columns: 8, pairs: 4)
        let t = each.inputs
        func message(_ t: [Tensor], isReflected: Bool = false) -> String {
            var other = each
            other.isReflected = isReflected
            return torchError { _ = other.turn(t) }.message
        }
        #expect(message([t[0].selected(0, 0), t[1], t[2], t[3]]).contains("x [batch, heads, length, columns]"))
        #expect(message([t[0].sliced(2, 0..<4), t[1], t[2], t[3]]).contains("cosines and sines"))
        #expect(message([t[0], t[1], t[2].sliced(2, 0..<3), t[3]]).contains("cosines and sines"))
        #expect(message([t[0].sliced(3, 0..<7), t[1], t[2], t[3]]).contains("at most half of the columns"))
        #expect(
            message([t[0], t[1], t[2], t[3].sliced(0, 0..<3)], isReflected: true).contains("vector of its columns"))
    }
}
