import Testing
import Torch

@Suite struct LSHAttentionTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var heads = 2
        var headDim = 5
        var valueDim = 3
        var rounds = 2
        var masked = false
        var options: LSHAttentionOptions
        var testDescription: String {
            "N \(length), H \(heads), D \(headDim), E \(valueDim), R \(rounds), \(options)\(masked ? ", masked" : "")"
        }

        init(
            _ length: Int, chunk: Int, causal: Bool, rounds: Int = 2, masked: Bool = false, heads: Int = 2,
            headDim: Int = 5, valueDim: Int = 3, _ change: (inout LSHAttentionOptions) -> Void = { _ in }
        ) {
            (self.length, self.rounds, self.masked) = (length, rounds, masked)
            (self.heads, self.headDim, self.valueDim) = (heads, headDim, valueDim)
            options = LSHAttentionOptions(isCausal: causal, chunk: chunk, bucketCount: 6)
            change(&options)
        }

        func inputs() -> [Tensor] {
            func random(_ seed: Int, _ size: Int) -> Tensor {
                .randomNormal(
                    [2, heads, length, size], using: RandomGenerator(seed: UInt64(seed + length)), dtype: .float64)
            }
            let buckets = Tensor.random(in: 0..<6, [2, heads, rounds, length], using: RandomGenerator(seed: 9))
            let mask = Tensor.random(in: 0..<4, [2, length], using: RandomGenerator(seed: 3)) .> 0
            return [random(1, headDim), random(2, valueDim), buckets] + (masked ? [mask] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [lshAttention(x[0], x[1], buckets: x[2], paddingMask: masked ? x[3] : nil, options)]
        }
    }

    static let cases: [Case] = [
        Case(1, chunk: 4, causal: true),
        Case(7, chunk: 7, causal: true, masked: true),
        Case(150, chunk: 200, causal: true, headDim: 33, valueDim: 17),
        Case(90, chunk: 8, causal: true, rounds: 4),
        Case(91, chunk: 8, causal: false, rounds: 4, heads: 5, headDim: 16, valueDim: 20),
        Case(300, chunk: 64, causal: true, rounds: 3, masked: true, heads: 4, headDim: 20, valueDim: 33),
        Case(300, chunk: 64, causal: false, rounds: 3, masked: true, heads: 1) { $0.usesRealLength = false },
        // Chunks of several tiles.
        Case(260, chunk: 130, causal: true, rounds: 2, masked: true) { $0.chunksAfter = 1 },
        Case(170, chunk: 70, causal: false, rounds: 3) { ($0.chunksBefore, $0.chunksAfter) = (2, 1) },
        // Windows that meet a chunk more than once.
        Case(40, chunk: 20, causal: true, rounds: 1) { ($0.chunksBefore, $0.scale) = (3, 0.4) },
        Case(60, chunk: 9, causal: true, rounds: 3) { ($0.withinBucket, $0.uniquePairs) = (true, true) },
        Case(61, chunk: 9, causal: false, rounds: 3, masked: true) {
            ($0.withinBucket, $0.usesRealLength, $0.chunksAfter) = (true, false, 1)
        },
        Case(60, chunk: 10, causal: false, rounds: 4, masked: true) { $0.uniquePairs = true },
        Case(50, chunk: 30, causal: true, rounds: 2) {
            ($0.uniquePairs, $0.chunksBefore, $0.chunksAfter) = (true, 3, 2)
        },
    ]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // Where a token sees one other its gradient is zero, and rounding what is found.
        try expectKernel(setting.inputs(), scale: 1) { setting($0) }
    }

    @Test(arguments: [cases[3], cases[5], cases[6], cases[12]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test(arguments: [cases[1], cases[12]]) func gradientsAreThoseOfTheFunction(_ setting: Case) {
        var setting = setting
        setting.length = 9
        setting.options.chunk = 3
        let x = setting.inputs()
        let deviation = gradientCheck([x[0], x[1]]) { setting([$0[0], $0[1]] + x.dropFirst(2))[0] }
        #expect(deviation < 1e-6)
    }

    /// Queries and values as projections leave them, a token's heads side by side.
    @Test func strideDoesNotMatter() {
        let setting = Self.cases[5]
        let x = setting.inputs()
        let strided = x.enumerated().map { $0 < 2 ? $1.transposed(1, 2).contiguous().transposed(1, 2) : $1 }
        #expect((setting(strided)[0] - setting(x)[0]).abs().maximum().item() == 0)
    }

    @Test func halfPrecisionIsWidened() {
        let setting = Self.cases[3]
        let x = setting.inputs().map { $0.dtype == .float64 ? $0.to(.bfloat16) : $0 }
        let out = setting(x)[0]
        #expect(out.dtype == .bfloat16)
        let wide = setting(x.map { $0.dtype == .bfloat16 ? $0.to(.float32) : $0 })[0]
        #expect((out - wide.to(.bfloat16)).abs().maximum().item() == 0)
    }

    // MARK: Hashing

    @Test(arguments: [(1, [2], 1), (63, [6], 3), (130, [4, 2, 6], 2), (64, [64], 1)]) func bucketsAreTheLargestProducts(
        _ length: Int, _ factors: [Int], _ rounds: Int
    ) throws {
        let generator = RandomGenerator(seed: 4)
        let x = Tensor.randomNormal([2, 3, length, 7], using: generator, dtype: .float64)
        let directions = factors.reduce(0, +) / 2
        let rotations = Tensor.randomNormal([3, 7, rounds + 1, directions], using: generator, dtype: .float64)
        let expected = stack(
            (0..<rounds).map { round in
                let y = matmul(x, rotations.selected(2, round))
                var (bucket, first, unit) = (Tensor.zeros([2, 3, length], dtype: .int64), 0, 1)
                for factor in factors {
                    let part = y.sliced(3, first..<first + factor / 2)
                    bucket += concatenate([part, -part], dim: 3).argmax(3) * unit
                    (first, unit) = (first + factor / 2, unit * factor)
                }
                return bucket
            }, dim: 2)
        for isa in KernelInstructions.available {
            let found = try KernelInstructions.with(isa) {
                lshBuckets(x, rotations: rotations, rounds: rounds, factors: factors)
            }
            #expect(found.dtype == .int32)
            #expect((found.to(.int64) - expected).abs().maximum().item() == 0, "\(isa)")
        }
    }

    /// Of products that are equal the first counts: all are where a token is zero.
    @Test func zerosFallIntoTheFirstBucket() throws {
        let rotations = Tensor.randomNormal([1, 3, 1, 4], using: RandomGenerator(seed: 1))
        for isa in KernelInstructions.available {
            let found = try KernelInstructions.with(isa) {
                lshBuckets(.zeros([1, 1, 20, 3]), rotations: rotations, rounds: 1, factors: [8])
            }
            #expect(found.maximum().item() == 0)
        }
    }

    // MARK: Misuse

    @Test func misuseIsReported() {
        let setting = Self.cases[3]
        let x = setting.inputs()
        func message(_ x: [Tensor], _ change: (inout LSHAttentionOptions) -> Void = { _ in }) -> String {
            var options = setting.options
            change(&options)
            return torchError {
                _ = lshAttention(x[0], x[1], buckets: x[2], paddingMask: x.count > 3 ? x[3] : nil, options)
            }.message
        }
        #expect(message([x[0], x[1].sliced(2, 0..<5), x[2]]).contains("qk [batch, heads, n, d]"))
        #expect(message([x[0], x[1], x[2].sliced(3, 0..<5)]).contains("whole-numbered buckets"))
        #expect(message([x[0], x[1], x[2] + 1]).contains("6 buckets"))
        #expect(message(x + [.ones([2, 90])]).contains("booleans"))
        #expect(message(x) { $0.chunk = 0 }.contains("positive chunk"))
        #expect(message(x) { $0.selfLogit = -1e9 }.contains("self logit"))
        #expect(
            torchError {
                let q = x[0].requiringGrad()
                _ = gradients(of: [setting([q, x[1], x[2]])[0].sum()], withRespectTo: [q], createGraph: true)
            }.message.contains("twice"))
        let rotations = Tensor.ones([2, 5, 1, 3])
        for (count, factors, text) in [(2, [6], "rotations"), (1, [5], "even"), (1, [8], "rotations")] {
            #expect(
                torchError { _ = lshBuckets(x[0], rotations: rotations, rounds: count, factors: factors) }
                    .message.contains(text))
        }
    }
}
