import Testing
import Torch

@Suite struct IntervalAttentionTests {
    /// Which keys a query may see.
    enum Pattern: Sendable, CaseIterable {
        case full, causal, window, band, blocks, globalAndWindow, scattered, perHead, halves, jumping, segments

        /// `[ranges, queries, 2]`, or `[heads, ranges, queries, 2]`.
        func intervals(_ queries: Int, _ keys: Int, heads: Int) -> Tensor {
            func table(_ ranges: [(Int) -> (Int, Int)]) -> Tensor {
                let numbers = ranges.flatMap { range in
                    (0..<queries).flatMap { i in [range(i).0, range(i).1] }
                }
                return Tensor(numbers, shape: [ranges.count, queries, 2]).to(.int32)
            }
            switch self {
            case .full: return table([{ _ in (0, keys) }])
            case .causal: return table([{ (0, $0 + 1) }])
            case .window: return table([{ ($0 - 20, $0 + 21) }])
            case .band: return table([{ ($0 - 3, $0 + 1) }])
            case .blocks: return table([{ ($0 / 16 * 16, $0 / 16 * 16 + 16) }])
            // Every seventh query sees nothing.
            case .globalAndWindow:
                return table([
                    { i in (0, i % 7 == 5 ? 0 : 3) }, { i in (max(i - 30, 3), i % 7 == 5 ? 0 : i - 9) },
                    { i in (max(i - 4, 3), i % 7 == 5 ? 0 : i + 80) },
                ])
            case .scattered:
                return table((0..<4).map { range in { i in ((range * keys + i) / 4, (range * keys + i) / 4 + i % 3) } })
            case .perHead:
                return stack(
                    (0..<heads).map { head in
                        table([{ i in (head, head + 2) }, { i in (max(i - 10 * head, head + 2), i + 1) }])
                    })
            // Tiles that are seen whole, but by two ranges.
            case .halves: return table([{ _ in (0, 40) }, { _ in (40, keys) }])
            // Neighbors look to places far from each other.
            case .jumping: return table([{ i in (i * 37 % keys - 4, i * 37 % keys + 50) }])
            // The last few keys of one half, and as many of the other as segments are behind.
            case .segments:
                return table([
                    { i in (min(i, keys / 2) - 70, min(i, keys / 2) + 1) },
                    { i in (keys / 2 + 1, keys / 2 + 1 + i / 12 * 5) },
                ])
            }
        }
    }

    struct Case: Sendable, CustomTestStringConvertible {
        var pattern: Pattern
        var queries: Int
        var keys: Int
        var heads = 2
        var features = 5
        var valueDim = 3
        var masked = false
        var testDescription: String {
            "\(pattern), \(queries) × \(keys), H \(heads), D \(features), E \(valueDim)\(masked ? ", masked" : "")"
        }

        func inputs() -> [Tensor] {
            attentionInputs(queries: queries, keys: keys, heads: heads, features: features, valueDim: valueDim)
                + [pattern.intervals(queries, keys, heads: heads)] + (masked ? [someKeys(keys)] : [])
        }

        var scale: Double { 1 / Double(features).squareRoot() }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [intervalAttention(x[0], x[1], x[2], intervals: x[3], keyMask: masked ? x[4] : nil, scale: scale)]
        }

        /// All scores at once.
        func definition(_ x: [Tensor]) -> Tensor {
            let ranges = (x[3].rank == 3 ? x[3].unsqueezed(0) : x[3]).to(.int64).unsqueezed(3)
            let keys = Tensor.arange(0..<keys)
            var visible = ((keys .>= ranges.selected(-1, 0)) .&& (keys .< ranges.selected(-1, 1))).any(1)
            if masked { visible = (visible .&& x[4].unsqueezed(1).unsqueezed(1)) }
            let blind = .!visible.any(-1, keepDim: true)
            let scores = (matmul(x[0], x[1].transposed()) * scale)
                .masked(where: (.!visible .&& .!blind), with: -Double.infinity)
            return matmul(scores.softmax().masked(where: blind, with: 0), x[2])
        }
    }

    static let cases: [Case] = {
        var cases: [Case] = []
        let sizes = [(130, 130), (64, 64), (1, 1), (200, 77), (63, 150), (128, 128), (300, 300)]
        for (index, pattern) in Pattern.allCases.enumerated() {
            for other in 0..<3 {
                let (queries, keys) = sizes[(index + other * 2) % sizes.count]
                cases.append(
                    Case(
                        pattern: pattern, queries: queries, keys: keys, heads: [2, 9, 1][other],
                        features: [5, 64, 16][(index + other) % 3], valueDim: [3, 64, 17][(index + 2 * other) % 3],
                        masked: (index + other) % 2 == 1))
            }
        }
        return cases
    }()

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // The score of an only key has no gradient: what is left are two sums that cancel, on no scale of their own.
        try expectKernel(setting.inputs(), scale: setting.keys == 1 ? 0.1 : 0.01) { setting($0) }
    }

    @Test(arguments: cases) func isTheDefinition(_ setting: Case) {
        let x = setting.inputs()
        expectClose(setting(x)[0], setting.definition(x), 1e-11)
        let leaves = x.map { $0.dtype == .float64 ? $0.requiringGrad() : $0 }
        let weight = Tensor.randomNormal(
            setting.definition(x).shape, using: RandomGenerator(seed: 9), dtype: .float64)
        func slopes(_ y: Tensor) -> [Tensor] {
            gradients(of: [y], weightedBy: [weight], withRespectTo: Array(leaves[0..<3])).map { $0 ?? .zeros([1]) }
        }
        for (a, b) in zip(slopes(setting(leaves)[0]), slopes(setting.definition(leaves))) { expectClose(a, b, 1e-10) }
    }

    @Test(arguments: [cases[0], cases[3], cases[8], cases[11], cases[17], cases[22]])
    func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test func stridedInputsAreRead() throws {
        let setting = Case(pattern: .window, queries: 150, keys: 150, features: 64, valueDim: 64)
        let x = setting.inputs()
        let turned = x[0..<3].map { $0.transposed(1, 2).contiguous() }
        try expectKernel(turned + [x[3]]) { y in setting(y[0..<3].map { $0.transposed(1, 2) } + [y[3]]) }
    }

    @Test func largeScoresStayFinite() throws {
        let setting = Case(pattern: .causal, queries: 130, keys: 130, features: 16, valueDim: 16)
        let x = setting.inputs()
        let out = setting([x[0].to(.float32) * 1e4, x[1].to(.float32) * 1e4, x[2].to(.float32), x[3]])[0]
        #expect(out.abs().maximum().item() < 10)
        // Two equal scores, each of weight one half, however large.
        let q = Tensor.full([1, 1, 1, 1], 1e4).requiringGrad()
        let v = Tensor([1.0, 3.0], shape: [1, 1, 2, 1]).to(.float32).requiringGrad()
        let y = intervalAttention(
            q, .full([1, 1, 2, 1], 1e4), v, intervals: Tensor([0, 2], shape: [1, 1, 2]).to(.int32), scale: 1)
        expectClose(y, .full([1, 1, 1, 1], 2.0), 1e-6)
        let slope = gradients(of: [y.sum()], withRespectTo: [v])[0] ?? .zeros([1])
        expectClose(slope, .full([1, 1, 2, 1], 0.5), 1e-6)
    }

    @Test func halfPrecisionIsSummedInSingle() {
        let setting = Case(pattern: .window, queries: 100, keys: 100, features: 16, valueDim: 16)
        let x = setting.inputs()
        let half = x.map { $0.dtype == .float64 ? $0.to(.bfloat16) : $0 }
        let found = setting(half)[0]
        #expect(found.dtype == .bfloat16)
        expectClose(found.to(.float64), setting(half.map { $0.dtype == .bfloat16 ? $0.to(.float64) : $0 })[0], 1e-2)
    }

    @Test func misuseIsReported() {
        let setting = Case(pattern: .window, queries: 9, keys: 9)
        let x = setting.inputs()
        func error(_ intervals: Tensor, mask: Tensor? = nil, v: Tensor? = nil) -> TorchError {
            torchError {
                _ = intervalAttention(x[0], x[1], v ?? x[2], intervals: intervals, keyMask: mask, scale: 1)
            }
        }
        #expect(error(x[3].to(.int64)).message.contains("int32"))
        #expect(error(x[3].sliced(1, 0..<5)).message.contains("int32"))
        #expect(error(x[3], mask: .ones([2, 9])).message.contains("booleans"))
        #expect(error(x[3], v: x[2].sliced(2, 0..<5)).operation == "interval_attention")
        #expect(
            torchError {
                let q = x[0].requiringGrad()
                let out = setting([q, x[1], x[2], x[3]])[0]
                _ = gradients(of: [out.sum()], withRespectTo: [q], createGraph: true)
            }.message.contains("twice"))
    }
}
