import Foundation
import Testing
import Torch

/// The operations of step programs that look at the tokens before, against plain numbers.
@Suite struct StepProgramAttentionTests {
    private let generator = RandomGenerator(seed: 4)

    private func normal(_ shape: Int...) -> Tensor { .randomNormal(shape, using: generator) }

    private func expectNear(
        _ found: [Float], _ expected: Tensor, within: Double = 1e-5, _ note: String = "",
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let (a, b) = (found.map(Double.init), expected.flattened().to(.float64).scalars(as: Double.self))
        let scale = b.map(abs).max() ?? 0
        #expect(a.count == b.count, sourceLocation: sourceLocation)
        for (x, y) in zip(a, b) where !(abs(x - y) <= within * max(scale, 1e-3)) {
            Issue.record("\(note): \(x) is not \(y)", sourceLocation: sourceLocation)
        }
    }

    /// With every instruction set, in a copy of its own.
    private func onEveryInstructionSet(_ program: StepProgram, _ body: (StepProgram, String) throws -> Void) throws {
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) { try body(program.copy(), isa) }
        }
    }

    // MARK: Attention

    /// Σ weight · value of one head over the positions that are seen.
    private func attention(
        _ q: Tensor, _ keys: Tensor, _ values: Tensor, _ seen: [Int], scale: Double, relu: Bool = false
    ) -> Tensor {
        let places = Tensor(seen)
        let scores = matmul(keys.indexed(0, places), q.unsqueezed(1)).squeezed(1) * scale
        let weights = relu ? scores.relu() : scores.softmax()
        return matmul(weights.unsqueezed(0), values.indexed(0, places)).squeezed(0)
    }

    struct Sights: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var choices: [[StepProgram.Sight]]
        var first = 0
        var room: Int?
        var sees: @Sendable (_ head: Int, _ i: Int, _ j: Int) -> Bool
    }

    static let sights = [
        Sights(testDescription: "all", choices: []) { _, _, _ in true },
        Sights(testDescription: "ring", choices: [], room: 7) { _, i, j in i - j < 7 },
        Sights(testDescription: "band", choices: [[.band(count: 3, step: 4)]], room: 9) { _, i, j in
            (i - j) % 4 == 0 && i - j <= 8
        },
        Sights(testDescription: "stride and window", choices: [[.band(count: nil, step: 5), .band(count: 4)]]) {
            $1 - $2 < 4 || ($1 - $2) % 5 == 0
        },
        Sights(testDescription: "block", choices: [[.block(6)]], room: 6) { _, i, j in i / 6 == j / 6 },
        Sights(testDescription: "blocks before", choices: [[.block(4, before: 2)]], room: 12) { _, i, j in
            i / 4 - j / 4 <= 2
        },
        Sights(testDescription: "columns", choices: [[.columns(size: 5, count: 2)]]) { _, i, j in j % 5 >= 3 },
        Sights(testDescription: "digits", choices: [[.digits]]) { _, i, j in
            // Clearing the digits of i from the lowest on gives the ends of the blocks before it.
            sequence(first: i) { $0 & ($0 - 1) }.prefix { $0 > 0 }.contains(j + 1)
        },
        Sights(testDescription: "columns and itself", choices: [[.columns(size: 5, count: 2), .band(count: 1)]]) {
            $1 == $2 || $2 % 5 >= 3
        },
        Sights(testDescription: "row above", choices: [[.rowAbove(columns: 4)]], room: 8) { _, i, j in
            i / 4 == j / 4 + 1
        },
        Sights(testDescription: "own column above", choices: [[.rowAbove(columns: 4, .own)]], room: 8) { _, i, j in
            i == j + 4
        },
        Sights(testDescription: "other columns above", choices: [[.rowAbove(columns: 4, .others)]], room: 8) {
            $1 / 4 == $2 / 4 + 1 && $1 != $2 + 4
        },
        Sights(testDescription: "right above", choices: [[.rowAbove(columns: 4, .right)]], room: 8) { _, i, j in
            i / 4 == j / 4 + 1 && j % 4 > i % 4
        },
        Sights(testDescription: "column below the first row", choices: [[.columnBelowFirst(columns: 4)]]) { _, i, j in
            i % 4 == j % 4 && j >= 4
        },
        Sights(
            testDescription: "all but the last columns below the first row",
            choices: [[.columnBelowFirst(columns: 4, exceptLast: 2)], [.columnBelowFirst(columns: 1, exceptLast: 1)]]
        ) { head, i, j in head % 2 == 0 && i % 4 == j % 4 && j >= 4 && i % 4 < 2 },
        Sights(testDescription: "column to the left", choices: [[.columnLeft(columns: 4)]]) { _, i, j in
            i % 4 == j % 4 + 1 && i / 4 > j / 4
        },
        Sights(testDescription: "row and column", choices: [[.block(4), .band(count: nil, step: 4)]]) { _, i, j in
            i / 4 == j / 4 || i % 4 == j % 4
        },
        Sights(
            testDescription: "row above and row", choices: [[.rowAbove(columns: 3, .right), .block(3, before: 1)]]
        ) { _, i, j in i / 3 - j / 3 <= 1 },
        Sights(testDescription: "lowest digit", choices: [[.lowestDigit]]) { _, i, j in
            i - j < 1 << (i + 1).trailingZeroBitCount
        },
        Sights(
            testDescription: "tokens and window by heads",
            choices: [[.token(0), .token(3), .band(count: 3)], [.block(5)]],
            first: 4, room: 5
        ) { head, i, j in
            head % 2 == 1 ? i / 5 == j / 5 : [0, 3].contains(j) || [0, 3].contains(i) || i - j < 3
        },
    ]

    @Test(arguments: sights, [0, 3, 23]) func seesWhatItShould(_ sights: Sights, after prompt: Int) throws {
        let (heads, dim, count) = (3, 5, prompt + 40)
        let (q, k, v) = (normal(count, 15), normal(count, 15), normal(count, 15))
        let program = StepProgram()
        let vectors = (0..<4).map { _ in program.vector(count: 15) }
        // Where each token of the prompt lies: later ones take the places of earlier ones.
        let rows = sights.room.map { sights.first + $0 } ?? prompt
        var places = Array(repeating: count, count: rows)
        for j in 0..<prompt {
            let row = sights.room.map { j < sights.first ? j : sights.first + (j - sights.first) % $0 } ?? j
            places[row] = j
        }
        func laidOut(_ x: Tensor) -> Tensor { x.padded(0, after: 1).indexed(0, Tensor(places, shape: [rows])) }
        let cache = program.cache(
            keys: laidOut(k), values: laidOut(v), count: prompt, first: sights.first, room: sights.room)
        let look = sights.choices.isEmpty ? StepProgram.Look(cache) : program.look(at: sights.choices, in: cache)
        program.appendAttention(
            StepProgram.View(vectors[0], look), adding: (vectors[1], vectors[2]), heads: heads, scale: 0.7,
            to: vectors[3])
        try onEveryInstructionSet(program) { program, isa in
            for i in prompt..<count {
                for (vector, x) in zip(vectors, [q, k, v]) { program.set(vector, to: x.selected(0, i)) }
                program.run(position: i)
                let expected = (0..<heads).map { head -> Tensor in
                    let own = head * dim..<(head + 1) * dim
                    return attention(
                        q.selected(0, i).sliced(0, own), k.sliced(1, own), v.sliced(1, own),
                        (0...i).filter { sights.sees(head, i, $0) }, scale: 0.7)
                }
                expectNear(program.numbers(of: vectors[3]), concatenate(expected), "\(isa), position \(i)")
            }
        }
    }

    /// relu weights; two views, one of which grows by what is remembered of every third token; distances in both.
    @Test(arguments: [StepProgram.Weights.softmax, .relu]) func twoViewsWithDistances(_ weights: StepProgram.Weights)
        throws
    {
        let (count, dim) = (20, 6)
        let (q, k, v) = (normal(count, dim), normal(count, dim), normal(count, dim))
        let (table, far) = (normal(4, dim), normal(count, dim))
        let program = StepProgram()
        let vectors = (0..<4).map { _ in program.vector(count: dim) }
        let (own, others) = (
            program.cache(keys: .zeros([0, dim]), values: .zeros([0, dim]), count: 0, room: 4),
            program.cache(rows: .zeros([0, dim]), values: .zeros([0, dim]))
        )
        let (nearTable, farTable) = (program.cache(rows: table, values: nil), program.cache(rows: far, values: nil))
        let turned = program.vector(count: dim)
        program.appendCombination(2, vectors[0], 0, vectors[0], to: turned)
        program.appendAttention(
            StepProgram.View(vectors[0], own, distances: (turned, nearTable)),
            StepProgram.View(vectors[0], others, distances: (vectors[0], farTable)),
            adding: (vectors[1], vectors[2]), heads: 1, scale: 0.5, weights: weights, to: vectors[3])
        program.appendPeriodically(3, of: own) { program.appendMemory(of: vectors[2], vectors[1], to: others) }
        try onEveryInstructionSet(program) { program, isa in
            for i in 0..<count {
                for (vector, x) in zip(vectors, [q, k, v]) { program.set(vector, to: x.selected(0, i)) }
                program.run(position: i)
                let near = (max(0, i - 3)...i).map { j in
                    (k.selected(0, j) + table.selected(0, i - j) * 2, v.selected(0, j))
                }
                let remembered = (0..<i).filter { $0 % 3 == 2 }
                let further = remembered.enumerated().map { n, j in
                    (v.selected(0, j) + far.selected(0, remembered.count - 1 - n), k.selected(0, j))
                }
                let all = near + further
                let expected = attention(
                    q.selected(0, i), stack(all.map(\.0)), stack(all.map(\.1)), Array(all.indices), scale: 0.5,
                    relu: weights == .relu)
                expectNear(program.numbers(of: vectors[3]), expected, "\(isa), position \(i)")
            }
        }
    }

    /// What would read or write beside a cache is refused where it is written down.
    @Test func cachesAreUsedAsWhatTheyAre() {
        let program = StepProgram()
        let (x, y) = (program.vector(count: 4), program.vector(count: 4))
        let none = Tensor.zeros([0, 4])
        let keysOnly = program.cache(keys: none, values: nil, count: 0)
        let tokens = program.cache(keys: none, values: none, count: 0)
        let rows = program.cache(rows: none, values: none)
        func message(_ body: () -> Void) -> String { torchError(body).message }
        func attend(_ views: [StepProgram.View]) {
            program.appendAttention(views, adding: nil, heads: 1, scale: 1, to: y)
        }
        #expect(message { attend([StepProgram.View(x, keysOnly)]) }.contains("with values"))
        #expect(message { attend(Array(repeating: StepProgram.View(x, tokens), count: 5)) }.contains("5 caches"))
        #expect(message { program.appendReplacement(of: x, y, in: keysOnly) }.contains("without values"))
        #expect(message { program.appendReplacement(of: x, nil, in: tokens) }.contains("with values"))
        #expect(message { program.appendReplacement(of: x, y, in: rows) }.contains("takes tokens"))
        #expect(message { program.appendMemory(of: x, nil, to: rows) }.contains("with values"))
        #expect(message { _ = program.look(at: [.block(2)], in: rows) }.contains("takes tokens"))
        #expect(message { _ = program.look(at: [[.block(2)], []], in: tokens) }.contains("positions to look at"))
        let look = program.look(at: [.block(2)], in: keysOnly)
        #expect(message { program.appendPool(.sum, of: look, to: (x, y)) }.contains("expected 4 numbers"))
    }

    // MARK: Sums

    @Test func causalLinearHasFeaturesOfAnyWidth() throws {
        let (heads, features, values) = (2, 700, 5)
        let s = normal(heads, features, values)
        let program = StepProgram()
        let (q, k) = (program.vector(count: heads * features), program.vector(count: heads * features))
        let (v, y) = (program.vector(count: heads * values), program.vector(count: heads * values))
        program.appendCausalLinear(
            q, k, v, heads: heads, map: .none, epsilon: 0, state: (program.vector(s), nil, nil), to: y)
        let inputs = (0..<3).map { _ in (normal(heads, features), normal(heads, features), normal(heads, values)) }
        try onEveryInstructionSet(program) { program, isa in
            var sum = s
            for input in inputs {
                sum = sum + input.1.unsqueezed(2) * input.2.unsqueezed(1)
                program.set(q, to: input.0)
                program.set(k, to: input.1)
                program.set(v, to: input.2)
                program.run()
                let expected = matmul(input.0.unsqueezed(1), sum)
                expectNear(program.numbers(of: y), expected, within: 3e-5, isa)
            }
        }
    }

    @Test func adaptiveMomentumIsTheKernels() throws {
        let (heads, dim, count) = (2, 7, 12)
        let (q, k, v) = (normal(1, heads, count, dim), normal(1, heads, count, dim), normal(1, heads, count, dim))
        // Twice the same token: a change of zero.
        k.copyInPlace(2, 5..<6, from: k.sliced(2, 4..<5))
        v.copyInPlace(2, 5..<6, from: v.sliced(2, 4..<5))
        let expected = adaptiveMomentumAttention(
            q.elu() + 1, k.elu() + 1, v, stepSize: 0.3, maximumMomentum: 0.9, epsilon: 1e-6
        ).out
        let program = StepProgram()
        let vectors = (0..<4).map { _ in program.vector(count: heads * dim) }
        let matrices = (0..<3).map { _ in program.vector(count: heads * dim * dim) }
        program.appendAdaptiveMomentum(
            vectors[0], vectors[1], vectors[2], heads: heads, stepSize: 0.3, maximumMomentum: 0.9, epsilon: 1e-6,
            state: (
                matrices[0], matrices[1], matrices[2], program.vector(count: heads * dim), program.vector(count: heads)
            ), to: vectors[3])
        try onEveryInstructionSet(program) { program, isa in
            for i in 0..<count {
                for (vector, x) in zip(vectors, [q, k, v]) { program.set(vector, to: x.selected(2, i)) }
                program.run()
                expectNear(program.numbers(of: vectors[3]), expected.selected(2, i), within: 3e-5, "\(isa) \(i)")
            }
        }
    }

    // MARK: Small operations

    @Test func productsGoHeadByHead() throws {
        let (heads, rows, columns) = (3, 5, 7)
        let (x, weight, bias) = (normal(heads, columns), normal(rows, columns), normal(rows))
        let addend = normal(heads, rows)
        let program = StepProgram()
        let y = program.vector(count: heads * rows)
        program.appendLinear(
            program.vector(x), weight: weight, bias: bias, activation: .eluPlusOne, adding: program.vector(addend),
            heads: heads, to: y)
        try onEveryInstructionSet(program) { program, isa in
            program.run()
            expectNear(program.numbers(of: y), (matmul(x, weight.transposed()) + bias).elu() + 1 + addend, isa)
        }
    }

    @Test func featuresAreTheirEquations() throws {
        let (heads, width, columns) = (2, 4, 3)
        let (x, u) = (normal(heads, width), normal(heads, columns))
        let offset = x.square().sum(1, keepDim: true) * (0.5 * 0.3) + 0.2
        let wave = concatenate([u.cos(), u.sin()], dim: 1) * 0.8
        let cases: [(StepProgram.Features, Tensor)] = [
            (.positive(temperature: 0.3, offset: 0.2), concatenate([(u - offset).exp(), (-u - offset).exp()], dim: 1)),
            (.fourier(scale: 0.8), wave),
            (.smoothedFourier(scale: 0.8, constant: 1.5), concatenate([wave, Tensor.full([heads, 1], 1.5)], dim: 1)),
            (.turned(angle: 0.25, limit: 5), concatenate([u * cos(0.75), u * sin(0.75)], dim: 1)),
        ]
        for (features, expected) in cases {
            let program = StepProgram()
            let (projected, y) = (program.vector(u), program.vector(count: expected.count))
            let own = features == .turned(angle: 0.25, limit: 5) ? projected : program.vector(x)
            program.appendFeatures(features, own, projected: projected, heads: heads, to: y)
            program.run(position: 3)
            expectNear(program.numbers(of: y), expected, "\(features)")
        }
    }

    @Test func mixturesBeginAnew() throws {
        let (heads, dim, period, count) = (2, 3, 4, 11)
        let program = StepProgram()
        let (x, v, logits) = (
            program.vector(count: heads * dim), program.vector(count: heads * dim), program.vector(count: heads * 2)
        )
        let sums = [heads * dim, heads * dim, heads * 2].map { program.vector(count: $0) }
        // The cache counts the tokens.
        let tokens = program.cache(keys: .zeros([0, 6]), values: .zeros([0, 6]), count: 0)
        program.appendMixture(
            logits, choice: 1, x, v, heads: heads, period: period, of: tokens, sums: (sums[0], sums[1], sums[2]))
        let wave = program.vector(count: 3)
        program.appendPeriodically(period, of: tokens) {
            program.appendDistanceWaves(
                Tensor([0.5, 0.25], shape: [2]).to(.float64), period: period, of: tokens, stride: 3, offset: 1,
                to: wave)
        }
        let (xs, vs, weights) = (normal(count, heads, dim), normal(count, heads, dim), normal(count, heads, 2) * 3)
        for i in 0..<count {
            program.set(x, to: xs.selected(0, i))
            program.set(v, to: vs.selected(0, i))
            program.set(logits, to: weights.selected(0, i))
            program.run(position: i)
            let own = i / period * period..<i + 1
            if (i + 1) % period == 0 {
                let shares = weights.sliced(0, own).selected(2, 1).transposed().softmax().transposed().unsqueezed(2)
                expectNear(program.numbers(of: sums[0]), (shares * xs.sliced(0, own)).sum(0), "keys \(i)")
                expectNear(program.numbers(of: sums[1]), (shares * vs.sliced(0, own)).sum(0), "values \(i)")
            }
            let n = Double((i + 1) / period - 1) * 3 + 1
            let waves = i < period - 1 ? [0, 0, 0] : [sin(n * 0.5), cos(n * 0.5), sin(n * 0.25)]
            expectNear(program.numbers(of: wave), Tensor(waves, shape: [3]), "waves \(i)")
        }
    }

    /// Pools of what is put into rows after it was looked at; of keys with values, and of keys alone.
    @Test(arguments: [StepProgram.Pool.sum, .largest, .mean]) func poolsOfWhatIsSeen(_ pool: StepProgram.Pool) throws {
        let (dim, columns, count) = (70, 3, 14)
        let (qs, ks) = (normal(count, dim), normal(count, dim))
        let program = StepProgram()
        let vectors = (0..<5).map { _ in program.vector(count: dim) }
        let none = Tensor.zeros([0, dim])
        let pairs = program.cache(keys: none, values: none, count: 0, room: 2 * columns)
        let keys = program.cache(keys: none, values: nil, count: 0)
        let above = program.look(at: [.rowAbove(columns: columns, .right)], in: pairs)
        let earlier = program.look(at: [.band(count: nil)], in: keys)
        program.appendPool(pool, of: above, to: (vectors[2], vectors[3]))
        program.appendReplacement(of: vectors[0], vectors[1], in: pairs)
        program.appendReplacement(of: vectors[1], nil, in: keys)
        program.appendPool(pool, of: earlier, to: (vectors[4], nil))
        func pooled(_ x: Tensor, _ seen: [Int]) -> Tensor {
            guard !seen.isEmpty else { return .zeros([dim]) }
            let rows = x.indexed(0, Tensor(seen))
            return switch pool {
            case .sum: rows.sum(0)
            case .largest: rows.maximum(0)
            case .mean: rows.mean(0)
            }
        }
        try onEveryInstructionSet(program) { program, isa in
            for i in 0..<count {
                for (vector, x) in zip(vectors, [qs, ks]) { program.set(vector, to: x.selected(0, i)) }
                program.run(position: i)
                let seen = (0..<i).filter { $0 / columns + 1 == i / columns && $0 % columns > i % columns }
                expectNear(program.numbers(of: vectors[2]), pooled(qs, seen), "\(isa) q \(i)")
                expectNear(program.numbers(of: vectors[3]), pooled(ks, seen), "\(isa) k \(i)")
                expectNear(program.numbers(of: vectors[4]), pooled(ks, Array(0...i)), "\(isa) keys \(i)")
            }
        }
    }

    /// Scores that grow: what was summed before becomes nothing.
    @Test func weightedMeansKeepTheirScale() throws {
        let (heads, features, values, count) = (2, 5, 19, 12)
        let q = normal(count, heads, features) * 3
        let k = normal(count, heads, features) * 20 + Tensor.arange(0..<count).to(.float32).reshaped(count, 1, 1) * 10
        let v = normal(count, heads, values)
        let program = StepProgram()
        let (qs, ks) = (program.vector(count: heads * features), program.vector(count: heads * features))
        let (vs, y) = (program.vector(count: heads * values), program.vector(count: heads * values))
        program.appendWeightedMeans(
            qs, ks, vs, heads: heads, means: .zeros([heads, features, values]),
            logSums: .full([heads, features], -1e30), to: y)
        try onEveryInstructionSet(program) { program, isa in
            for i in 0..<count {
                for (vector, x) in zip([qs, ks, vs], [q, k, v]) { program.set(vector, to: x.selected(0, i)) }
                program.run(position: i)
                let shares = k.sliced(0, 0..<i + 1).softmax(0).permuted(1, 2, 0)
                let means = matmul(shares, v.sliced(0, 0..<i + 1).transposed(0, 1))
                let expected = matmul(q.selected(0, i).softmax().unsqueezed(1), means)
                expectNear(program.numbers(of: y), expected, "\(isa) \(i)")
            }
        }
    }

    @Test func positionsBeginAnew() throws {
        let x = normal(2, 4)
        let frequencies = Tensor([0.3, 0.01], shape: [2]).to(.float64)
        let program = StepProgram()
        let (input, y, z) = (program.vector(x), program.vector(count: 8), program.vector(count: 8))
        program.appendRotation(frequencies, heads: 2, neighbours: true, period: 5, input, to: y)
        program.appendRotation(frequencies, heads: 2, neighbours: true, input, to: z)
        program.run(position: 3)
        let expected = program.numbers(of: z)
        program.run(position: 13)
        #expect(program.numbers(of: y) == expected)
        #expect(program.numbers(of: z) != expected)
    }

    /// Numbers whose squares are infinite in float32.
    @Test func simpleNormTakesLargeNumbers() throws {
        let x = normal(21) * 1e25
        let program = StepProgram()
        let y = program.vector(count: 21)
        program.appendNorm(.simpleRootMeanSquare, program.vector(x), epsilon: 1e-8, to: y)
        let wide = x.to(.float64)
        try onEveryInstructionSet(program) { program, isa in
            program.run()
            expectNear(program.numbers(of: y), wide / wide.square().mean(0).sqrt(), isa)
        }
    }
}
