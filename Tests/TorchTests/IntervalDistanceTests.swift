import Testing

@testable import Torch

@Suite struct IntervalDistanceTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var pattern: IntervalAttentionTests.Pattern
        var queries: Int
        var keys: Int
        var heads = 2
        var features = 5
        var masked = false
        var testDescription: String {
            "\(pattern), \(queries) × \(keys), H \(heads), D \(features)\(masked ? ", masked" : "")"
        }

        /// How far each range reaches back from its end, within the keys.
        func counts(_ intervals: Tensor) -> [Int] {
            let start = intervals.selected(-1, 0)
            let reach = intervals.selected(-1, 1) - start.masked(where: start .< 0, with: 0)
            return (0..<reach.size(-2)).map { max(0, Int(reach.selected(-2, $0).maximum().item())) }
        }

        /// q, k, v, R, c, a, the intervals and the mask.
        func inputs() -> [Tensor] {
            let intervals = pattern.intervals(queries, keys, heads: heads)
            let distances = counts(intervals).reduce(0, +)
            let shapes = [
                [2, heads, queries, features], [2, heads, keys, features], [2, heads, keys, 7],
                [heads, distances, features], [heads, distances], [2, heads, keys],
            ]
            return shapes.enumerated().map { seed, shape in
                .randomNormal(shape, using: RandomGenerator(seed: UInt64(seed + queries)), dtype: .float64)
            } + [intervals]
                + (masked ? [Tensor.random(in: 0..<3, [2, keys], using: RandomGenerator(seed: 3)) .> 0] : [])
        }

        var scale: Double { 1 / Double(features).squareRoot() }

        func distances(_ x: [Tensor]) -> IntervalDistances {
            IntervalDistances(table: x[3], bias: x[4], keyBias: x[5], counts: counts(x[6]))
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [
                intervalAttention(
                    x[0], x[1], x[2], intervals: x[6], keyMask: masked ? x[7] : nil, scale: scale,
                    distances: distances(x))
            ]
        }

        /// All scores at once, range by range.
        func definition(_ x: [Tensor]) -> Tensor {
            let keys = Tensor.arange(0..<keys)
            var scores = matmul(x[0], x[1].transposed()) * scale + x[5].unsqueezed(2)
            var visible = Tensor.zeros([1, heads, queries, keys.count], dtype: .bool)
            var first = 0
            for (range, count) in counts(x[6]).enumerated() {
                let bounds = x[6].selected(-3, range).to(.int64)  // [heads or none, queries, 2]
                let (start, end) = (bounds.selected(-1, 0).unsqueezed(-1), bounds.selected(-1, 1).unsqueezed(-1))
                let inside = ((keys .>= start) .&& (keys .< end)).expanded(to: [heads, queries, keys.count])
                guard count > 0 else { continue }
                let distance = (end - 1 - keys).expanded(to: inside.shape).masked(where: .!inside, with: 0)
                let (table, bias) = (x[3].sliced(1, first..<first + count), x[4].sliced(1, first..<first + count))
                let ofDistances = (matmul(x[0], table.transposed()) * scale + bias.unsqueezed(1))
                    .gathered(3, distance.unsqueezed(0).expanded(to: scores.shape))
                scores = scores + ofDistances.masked(where: .!inside.unsqueezed(0), with: 0)
                visible = (visible .|| inside.unsqueezed(0))
                first += count
            }
            if masked { visible = (visible .&& x[7].unsqueezed(1).unsqueezed(1)) }
            let blind = .!visible.any(-1, keepDim: true)
            let found = scores.masked(where: (.!visible .&& .!blind), with: -Double.infinity)
            return matmul(found.softmax().masked(where: blind, with: 0), x[2])
        }
    }

    static let cases: [Case] = {
        let sizes = [(130, 130), (64, 64), (1, 1), (200, 77), (63, 150), (128, 128), (300, 300)]
        return IntervalAttentionTests.Pattern.allCases.enumerated().flatMap { index, pattern in
            (0..<2).map { other in
                let (queries, keys) = sizes[(index + other * 3) % sizes.count]
                return Case(
                    pattern: pattern, queries: queries, keys: keys, heads: [2, 9][other],
                    features: [5, 64, 16][(index + other) % 3], masked: (index + other) % 2 == 1)
            }
        } + [
            Case(pattern: .segments, queries: 300, keys: 340, heads: 1, features: 64),
            Case(pattern: .window, queries: 700, keys: 700, heads: 1, features: 17, masked: true),
        ]
    }()

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // The score of an only key has no gradient: what is left are two sums that cancel, on no scale of their own.
        try expectKernel(setting.inputs(), scale: setting.keys == 1 ? 0.1 : 0.01) { setting($0) }
    }

    @Test(arguments: cases) func isTheDefinition(_ setting: Case) {
        let x = setting.inputs()
        let expected = setting.definition(x)
        let composed = composedIntervalAttention(
            x[0], x[1], x[2], [IntervalPass(x[6])], setting.masked ? x[7] : nil, setting.scale, setting.distances(x))
        expectClose(setting(x)[0], expected, 1e-11)
        expectClose(composed, expected, 1e-11)
        let leaves = x.map { $0.dtype == .float64 ? $0.requiringGrad() : $0 }
        let weight = Tensor.randomNormal(expected.shape, using: RandomGenerator(seed: 9), dtype: .float64)
        func slopes(_ y: Tensor) -> [Tensor] {
            let found = gradients(of: [y], weightedBy: [weight], withRespectTo: Array(leaves[0..<6]))
            return zip(found, leaves).map { $0 ?? .zeros(like: $1) }
        }
        for (a, b) in zip(slopes(setting(leaves)[0]), slopes(setting.definition(leaves))) { expectClose(a, b, 1e-10) }
    }

    @Test(arguments: [2, 8, 12, 20, 22, 23].map { cases[$0] }) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    /// Tables alone may learn.
    @Test func onlyWhatIsWantedNeedsAGradient() {
        let setting = Case(pattern: .window, queries: 70, keys: 70)
        var x = setting.inputs()
        let all = x.map { $0.dtype == .float64 ? $0.requiringGrad() : $0 }
        x[4] = x[4].requiringGrad()
        let found = gradients(of: [setting(x)[0].square().sum()], withRespectTo: [x[4]])[0]
        let expected = gradients(of: [setting(all)[0].square().sum()], withRespectTo: [all[4]])[0]
        expectClose(found ?? .zeros([1]), expected ?? .ones([1]), 1e-12)
    }

    @Test func misuseIsReported() {
        let setting = Case(pattern: .window, queries: 9, keys: 9)
        let x = setting.inputs()
        func error(_ change: (inout IntervalDistances) -> Void) -> String {
            var distances = setting.distances(x)
            change(&distances)
            return torchError {
                _ = intervalAttention(x[0], x[1], x[2], intervals: x[6], scale: 1, distances: distances)
            }.message
        }
        #expect(error { $0.keyBias = $0.keyBias.sliced(2, 0..<8) }.contains("a bias of keys"))
        #expect(error { $0.bias = $0.bias.sliced(1, 0..<2) }.contains("a table"))
        #expect(error { $0.counts = [20, $0.counts[0] - 20] }.contains("1 ranges, not of 2"))
        #expect(
            error {
                $0.counts[0] -= 1
                $0.table = $0.table.sliced(1, 0..<$0.counts[0])
                $0.bias = $0.bias.sliced(1, 0..<$0.counts[0])
            }.contains("range 0 of query 8 has 29 distances, its table 28"))
    }
}
