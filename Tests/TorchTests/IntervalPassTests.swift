import Testing

@testable import Torch

/// One softmax over ranges in several orders.
@Suite struct IntervalPassTests {
    enum Pattern: Sendable, CaseIterable {
        case strided, fixed, shuffled
    }

    /// A pass as lists: what each place of each head sees.
    struct Lists {
        var queries: [Int]?
        var keys: [Int]?
        /// `[head or 0][place of a query][range]`
        var ranges: [[[Range<Int>]]]
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

        var scale: Double { 1 / Double(features).squareRoot() }

        func inputs() -> [Tensor] {
            attentionInputs(queries: queries, keys: keys, heads: heads, features: features, valueDim: valueDim)
                + (masked ? [someKeys(keys)] : [])
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            [intervalAttention(x[0], x[1], x[2], passes: passes, keyMask: masked ? x[3] : nil, scale: scale)]
        }

        var passes: [IntervalPass] {
            lists.map { lists in
                let count = lists.ranges.joined().map(\.count).max() ?? 0
                let tables = lists.ranges.map { rows in
                    let numbers = (0..<count).flatMap { index in
                        rows.flatMap { row in
                            index < row.count ? [row[index].lowerBound, row[index].upperBound] : [0, 0]
                        }
                    }
                    return Tensor(numbers, shape: [count, rows.count, 2]).to(.int32)
                }
                func order(_ rows: [Int]?) -> Tensor? { rows.map { Tensor($0).to(.int32) } }
                return IntervalPass(
                    tables.count == 1 ? tables[0] : stack(tables), queries: order(lists.queries),
                    keys: order(lists.keys))
            }
        }

        private var lists: [Lists] {
            let (n, m) = (queries, keys)
            switch pattern {
            // A causal window of 9, and every ninth key before it, each query's in its class.
            case .strided:
                let classes = (0..<9).map { Array(stride(from: $0, to: n, by: 9)) }
                let order = Array(classes.joined())
                let before = classes.reduce(into: [[Range<Int>]]()) { rows, members in
                    let start = rows.count
                    rows += members.indices.map { [start..<start + $0] }
                }
                return [
                    Lists(ranges: [(0..<n).map { [max(0, $0 - 8)..<$0 + 1] }]),
                    Lists(queries: order, keys: order, ranges: [before]),
                ]
            // The own block of 10, and the last two keys of those before it.
            case .fixed:
                return [
                    Lists(ranges: [(0..<n).map { [$0 / 10 * 10..<$0 + 1] }]),
                    Lists(
                        keys: (0..<m).filter { $0 % 10 >= 8 }, ranges: [(0..<n).map { [0..<$0 / 10 * 2] }]),
                ]
            // Half of the keys for all queries, then some of the other half for some queries; by heads, and not for every query.
            case .shuffled:
                let (order, half) = ((0..<m).map { ($0 * 17 + 5) % m }, m / 2)
                let some = (0..<n).filter { $0 % 3 == 1 }.reversed().map { $0 }
                return [
                    Lists(
                        queries: (0..<n).map { ($0 * 19 + 3) % n }, keys: order,
                        ranges: (0..<heads).map { head in
                            (0..<n).map { i in i % 5 == head ? [] : [i % 7..<half / 3, half / 2 + head..<half] }
                        }),
                    Lists(
                        queries: some, keys: Array(order[half...].reversed()),
                        ranges: (0..<heads).map { head in
                            some.map { head == 1 ? [] : [0..<min(9, m - half), $0 % 13 + 10..<m - half] }
                        }),
                ]
            }
        }

        /// All scores at once.
        func definition(_ x: [Tensor]) -> Tensor {
            var seen = [Bool](repeating: false, count: heads * queries * keys)
            for lists in lists {
                for head in 0..<heads {
                    for (place, row) in lists.ranges[lists.ranges.count == 1 ? 0 : head].enumerated() {
                        let i = lists.queries?[place] ?? place
                        for j in row.joined() { seen[(head * queries + i) * keys + (lists.keys?[j] ?? j)] = true }
                    }
                }
            }
            var visible = Tensor(seen, shape: [1, heads, queries, keys])
            if masked { visible = (visible .&& x[3].unsqueezed(1).unsqueezed(1)) }
            let blind = .!visible.any(-1, keepDim: true)
            let scores = (matmul(x[0], x[1].transposed()) * scale)
                .masked(where: (.!visible .&& .!blind), with: -Double.infinity)
            return matmul(scores.softmax().masked(where: blind, with: 0), x[2])
        }
    }

    static let cases: [Case] = [
        Case(pattern: .strided, queries: 300, keys: 300, heads: 9, features: 64, valueDim: 64),
        Case(pattern: .strided, queries: 131, keys: 131, masked: true),
        Case(pattern: .strided, queries: 1, keys: 1),
        Case(pattern: .fixed, queries: 700, keys: 700, heads: 1, features: 16, valueDim: 17, masked: true),
        Case(pattern: .fixed, queries: 64, keys: 64, features: 64, valueDim: 5),
        Case(pattern: .fixed, queries: 9, keys: 9),
        Case(pattern: .shuffled, queries: 200, keys: 77, features: 16, valueDim: 64),
        Case(pattern: .shuffled, queries: 70, keys: 325, heads: 3, masked: true),
    ]

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // The score of an only key has no gradient: what is left are two sums that cancel, on no scale of their own.
        try expectKernel(setting.inputs(), scale: setting.keys == 1 ? 0.1 : 0.01) { setting($0) }
    }

    @Test(arguments: cases) func isTheDefinition(_ setting: Case) {
        let x = setting.inputs()
        let composed = composedIntervalAttention(
            x[0], x[1], x[2], setting.passes, setting.masked ? x[3] : nil, setting.scale, nil)
        expectClose(setting(x)[0], setting.definition(x), 1e-11)
        expectClose(composed, setting.definition(x), 1e-11)
        let leaves = x.map { $0.dtype == .float64 ? $0.requiringGrad() : $0 }
        let weight = Tensor.randomNormal(
            setting.definition(x).shape, using: RandomGenerator(seed: 9), dtype: .float64)
        func slopes(_ y: Tensor) -> [Tensor] {
            gradients(of: [y], weightedBy: [weight], withRespectTo: Array(leaves[0..<3])).map { $0 ?? .zeros([1]) }
        }
        for (a, b) in zip(slopes(setting(leaves)[0]), slopes(setting.definition(leaves))) { expectClose(a, b, 1e-10) }
    }

    @Test(arguments: [cases[0], cases[3], cases[7]]) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs().map { $0.dtype == .float64 ? $0.to(.float32) : $0 }) { setting($0) }
    }

    @Test func stridedInputsAreRead() throws {
        let setting = Case(pattern: .strided, queries: 150, keys: 150, features: 64, valueDim: 64)
        let turned = setting.inputs().map { $0.transposed(1, 2).contiguous() }
        try expectKernel(turned) { y in setting(y.map { $0.transposed(1, 2) }) }
    }

    /// The larger score may come in either pass.
    @Test func largeScoresStayFinite() throws {
        for scores in [[1e4, -1e4], [-1e4, 1e4]] {
            let k = Tensor(scores, shape: [1, 1, 2, 1]).to(.float32)
            let v = Tensor([1.0, 3.0], shape: [1, 1, 2, 1]).to(.float32).requiringGrad()
            func table(_ range: Range<Int>) -> Tensor {
                Tensor([range.lowerBound, range.upperBound], shape: [1, 1, 2]).to(.int32)
            }
            let y = intervalAttention(
                .ones([1, 1, 1, 1]), k, v, passes: [IntervalPass(table(0..<1)), IntervalPass(table(1..<2))], scale: 1)
            let first = scores[0] > scores[1]
            expectClose(y, .full([1, 1, 1, 1], first ? 1.0 : 3.0), 1e-6)
            let slope = gradients(of: [y.sum()], withRespectTo: [v])[0] ?? .zeros([1])
            expectClose(slope, Tensor(first ? [1.0, 0.0] : [0.0, 1.0], shape: [1, 1, 2, 1]).to(.float32), 1e-6)
        }
    }

    @Test func misuseIsReported() {
        let x = Tensor.ones([1, 1, 4, 2])
        let table = Tensor.zeros([1, 4, 2], dtype: .int32)
        func message(_ passes: [IntervalPass]) -> String {
            torchError { _ = intervalAttention(x, x, x, passes: passes, scale: 1) }.message
        }
        func order(_ rows: [Int], _ type: DType = .int32) -> Tensor { Tensor(rows).to(type) }
        #expect(message([]).contains("at least one pass"))
        #expect(message([IntervalPass(table, keys: order([0, 1, 2, 3], .int64))]).contains("int32 vectors"))
        #expect(message([IntervalPass(table, keys: order([0, 1, 4, 2]))]).contains("there is a 4 at place 2"))
        #expect(message([IntervalPass(table, queries: order([0, 1, 2, -1]))]).contains("there is a -1 at place 3"))
        #expect(message([IntervalPass(table, queries: order([0, 1, 2, 1]))]).contains("there is a 1 at place 3"))
        #expect(message([IntervalPass(table, keys: order([0, 1, 2]))]).contains("needs all 4 rows, not 3"))
        #expect(message([IntervalPass(table), IntervalPass(table, queries: order([2]))]).contains("int32 intervals"))
    }
}
