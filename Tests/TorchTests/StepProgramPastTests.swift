import Foundation
import Testing
import Torch

/// The operations of step programs over the past against the same sums written out, on every instruction set.
@Suite struct StepProgramPastTests {
    private let generator = RandomGenerator(seed: 3)

    private func random(_ shape: Int...) -> Tensor { Tensor.randomNormal(shape, using: generator) }

    /// Runs a program once for each row of the inputs `[tokens, channels]`, and compares its output with `expected`.
    private func expectStep(
        _ inputs: [Tensor], outputs: Int, expected: [[Float]], sourceLocation: SourceLocation = #_sourceLocation,
        _ append: (StepProgram, [StepProgram.Vector], StepProgram.Vector) -> Void
    ) throws {
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let program = StepProgram()
                let vectors = inputs.map { program.vector(count: $0.size(1)) }
                let y = program.vector(count: outputs)
                append(program, vectors, y)
                for (token, expected) in expected.enumerated() {
                    for (vector, input) in zip(vectors, inputs) { program.set(vector, to: input.selected(0, token)) }
                    program.run(position: token)
                    let found = program.numbers(of: y)
                    let deviation = zip(found, expected).map { abs($0 - $1) }.max() ?? 1
                    let isClose = deviation < 2e-5 && found.count == expected.count
                    #expect(isClose, "\(isa), token \(token): \(deviation)", sourceLocation: sourceLocation)
                }
            }
        }
    }

    private func rows(_ x: Tensor) -> [[Float]] { (0..<x.size(0)).map { x.selected(0, $0).scalars() } }

    @Test(arguments: [1, 2, 37]) func deviationNorm(_ count: Int) throws {
        let (x, weight, bias) = (random(3, count), random(count), random(count))
        let (w, b): ([Float], [Float]) = (weight.scalars(), bias.scalars())
        let expected = rows(x).map { x in
            let mean = x.reduce(0, +) / Float(count)
            let squares = x.map { ($0 - mean) * ($0 - mean) }.reduce(0, +)
            let deviation = (squares / Float(max(count - 1, 1))).squareRoot()
            return (0..<count).map { (x[$0] - mean) / (deviation + 1e-3) * w[$0] + b[$0] }
        }
        try expectStep([x], outputs: count, expected: expected) { program, inputs, y in
            program.appendNorm(.deviation, inputs[0], weight: weight, bias: bias, epsilon: 1e-3, to: y)
        }
    }

    @Test(arguments: [(1, 5, 3), (4, 37, 20), (3, 70, 300)])
    func products(_ count: Int, _ columns: Int, _ rows: Int) throws {
        let (x, weight, bias) = (random(2, count * columns), random(rows, columns), random(rows))
        let expected = linear(x.reshaped(2, count, columns), weight, bias).flattened(1, 2)
        try expectStep([x], outputs: count * rows, expected: self.rows(expected)) { program, inputs, y in
            program.appendProducts(inputs[0], weight: weight, bias: bias, to: y)
        }
    }

    @Test func rowProducts() throws {
        let (x, table) = (random(5, 19), random(11, 19))
        let products = matmul(x, table.transposed())
        let expected = (0..<5).map { t in Array(rows(products)[t][t..<t + 7]) }
        try expectStep([x], outputs: 7, expected: expected) { program, inputs, y in
            program.appendRowProducts(inputs[0], table: table, to: y)
        }
        let program = StepProgram()
        program.appendRowProducts(program.vector(count: 19), table: table, to: program.vector(count: 7))
        #expect(throws: TorchError.self) { try withTorchErrors { program.run(position: 5) } }
    }

    // MARK: Attention free

    enum Bias: CaseIterable { case zero, heads, window }

    @Test(arguments: Bias.allCases, [1, 3, 8]) func average(_ kind: Bias, _ window: Int) throws {
        let (tokens, heads, channels) = (20, 3, 87)
        let keyWidth = kind == .heads ? heads : channels
        let (q, k, v) = (random(tokens, channels), random(tokens, keyWidth) * 30, random(tokens, channels))
        let bias = random(kind == .heads ? heads : 1, window) * (kind == .zero ? 0.0 : 2.0)
        let (qs, ks, vs, w) = (rows(q), rows(k), rows(v), rows(bias))
        let expected = (0..<tokens).map { t in
            (0..<channels).map { c -> Float in
                let head = kind == .heads ? c / (channels / heads) : 0
                let scores = (0...t).map { j in
                    Double(ks[j][kind == .heads ? head : c])
                        + (t - j < window ? Double(w[head][window - 1 - t + j]) : 0)
                }
                let largest = scores.max() ?? 0
                let weights = scores.map { exp($0 - largest) }
                let mean = zip(weights, vs).map { $0 * Double($1[c]) }.reduce(0, +) / weights.reduce(0, +)
                return Float(tanh(Double(qs[t][c])) * mean)
            }
        }
        try expectStep([q, k, v], outputs: channels, expected: expected) { program, inputs, y in
            let row = program.vector(bias.selected(0, 0))
            program.appendAverage(
                inputs[0], inputs[1], inputs[2], activation: .tanh,
                bias: kind == .zero ? .zero : kind == .heads ? .heads(bias) : .window(row),
                past: (.full([window - 1, keyWidth], -1e30), .zeros([window - 1, channels])),
                sums: (
                    program.vector(.full([channels], -1e30)), program.vector(count: channels),
                    program.vector(count: channels)
                ), to: y)
        }
    }

    // MARK: Moving averages

    @Test(arguments: [1, 2, 9]) func taps(_ count: Int) throws {
        let (tokens, channels) = (15, 83)
        let (taps, past, x) = (random(count, channels), random(count - 1, channels), random(tokens, channels))
        let all = concatenate([past, x])
        let expected = (0..<tokens).map {
            (all.sliced(0, $0..<$0 + count) * taps).sum(0).silu().scalars(as: Float.self)
        }
        try expectStep([x], outputs: channels, expected: expected) { program, inputs, y in
            program.appendTaps(taps, inputs[0], past: past, activation: .silu, to: y)
        }
    }

    @Test(arguments: [(1, 83), (16, 20)]) func movingAverage(_ numbers: Int, _ channels: Int) throws {
        let x = random(12, channels)
        let (input, decay, output) = (
            random(numbers, channels), random(numbers, channels).sigmoid(), random(numbers, channels)
        )
        let (omega, start) = (random(1, channels), random(numbers, channels))
        var state = start
        let expected = (0..<12).map { t in
            state = input * x.selected(0, t) + decay * state
            return ((output * state).sum(0) + omega.selected(0, 0) * x.selected(0, t)).silu().scalars(as: Float.self)
        }
        try expectStep([x], outputs: channels, expected: expected) { program, inputs, y in
            program.appendMovingAverage(
                inputs[0], coefficients: concatenate([input, decay, output, omega]), state: program.vector(start), to: y
            )
        }
    }

    // MARK: Weighted sums

    private func weights(_ scores: [Double], _ function: StepProgram.Weighing) -> [Double] {
        switch function {
        case .softmax:
            let exponentials = scores.map { exp($0 - (scores.max() ?? 0)) }
            return exponentials.map { $0 / exponentials.reduce(0, +) }
        case .laplace: return scores.map { 0.5 * (1 + erf(($0 - 0.707107) / (0.282095 * 2.0.squareRoot()))) }
        case .relu2: return scores.map { max($0, 0) * max($0, 0) }
        }
    }

    /// Chunks that are shorter and longer than a block of exponentials, and the present one begun before.
    @Test(arguments: StepProgram.Weighing.allCases, [nil, 1, 6, 150])
    func weighing(_ function: StepProgram.Weighing, _ chunk: Int?) throws {
        let (tokens, keyDim, valueDim, held) = (170, 11, 83, chunk == 1 ? 0 : 5)
        let (k, v) = (random(held + tokens, keyDim), random(held + tokens, valueDim))
        let (q, bias) = (random(tokens, keyDim), random(chunk ?? held + tokens))
        let b: [Float] = bias.scalars()
        let (qs, ks, vs) = (rows(q), rows(k), rows(v))
        let expected = (0..<tokens).map { t -> [Float] in
            let last = held + t
            let seen = (chunk.map { last / $0 * $0 } ?? 0)...last
            let divisor = function == .softmax ? 1 : Double(seen.count)
            let scores = seen.map { j in
                zip(qs[t], ks[j]).map { Double($0 * $1) }.reduce(0, +) * 0.7 / divisor + Double(b[last - j])
            }
            let weights = self.weights(scores, function)
            return (0..<valueDim).map { c in Float(zip(weights, seen).map { $0 * Double(vs[$1][c]) }.reduce(0, +)) }
        }
        // Squares of large scores make large sums.
        let size = expected.joined().map(abs).max() ?? 1
        try expectStep(
            [q, k.sliced(0, held..<held + tokens), v.sliced(0, held..<held + tokens) / Double(size)],
            outputs: valueDim, expected: expected.map { $0.map { $0 / size } }
        ) { program, inputs, y in
            program.appendWeighing(
                inputs[0], inputs[1], inputs[2], by: function, scale: 0.7, bias: .table(bias),
                past: (k.sliced(0, 0..<held), v.sliced(0, 0..<held) / Double(size)), chunk: chunk, to: y)
        }
    }

    @Test(arguments: [(1, true), (3, true), (1, false), (3, false)])
    func positionSum(_ heads: Int, _ isDense: Bool) throws {
        let (length, held, channels) = (13, 4, heads * 71)
        let (v, bias) = (random(length, channels), random(heads, length))
        let weights = isDense ? random(heads, length, length) : random(heads, 2 * length - 1)
        let numbers: [Float] = weights.scalars()
        let (vs, b) = (rows(v), rows(bias))
        let expected = (held..<length).map { t in
            (0..<channels).map { c -> Float in
                let head = c / 71
                return (0...t).reduce(b[head][t]) { sum, s in
                    let place =
                        isDense ? (head * length + t) * length + s : head * (2 * length - 1) + length - 1 + s - t
                    return sum + numbers[place] * vs[s][c]
                }
            }
        }
        try expectStep([v.sliced(0, held..<length)], outputs: channels, expected: expected) { program, inputs, y in
            program.appendPositionSum(
                inputs[0], weights: weights, bias: bias, past: v.sliced(0, 0..<held), to: y)
        }
    }

    // MARK: Recurrent cells

    @Test(arguments: LocalRecurrentCell.allCases, [1, 2, 5]) func cells(_ cell: LocalRecurrentCell, _ window: Int)
        throws
    {
        let (tokens, channels) = (9, 83)
        let gates = cell == .gru ? 3 : cell == .lstm ? 4 : 1
        let x = random(tokens, channels) * 0.5
        let (w, u) = (random(gates * channels, channels) * 0.2, random(gates * channels, channels) * 0.2)
        let (a, b) = (random(gates * channels), random(gates * channels))
        let whole = localRecurrence(
            x.unsqueezed(0), cell, inputWeight: w, hiddenWeight: u, inputBias: a, hiddenBias: b, window: window)
        // From the first complete window on it does not matter what stands in the state at first.
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let program = StepProgram()
                let (input, projected) = (program.vector(count: channels), program.vector(count: gates * channels))
                let (h, c) = (
                    program.vector(count: (window - 1) * channels), program.vector(count: (window - 1) * channels)
                )
                let products = program.vector(count: (window - 1) * gates * channels)
                let y = program.vector(count: channels)
                program.appendLinear(input, weight: w, bias: a, to: projected)
                program.appendProducts(h, weight: u, bias: b, to: products)
                program.appendCells(
                    cell, projected, products: products, bias: b, window: window, state: (h, cell == .lstm ? c : nil),
                    to: y)
                for token in 0..<tokens {
                    program.set(input, to: x.selected(0, token))
                    program.run()
                    if token < window - 1 { continue }
                    let expected = whole.selected(0, 0).selected(0, token)
                    let found = Tensor(program.numbers(of: y), shape: [channels])
                    #expect((found - expected).abs().maximum().item() < 2e-5, "\(isa), token \(token)")
                }
            }
        }
    }
}
