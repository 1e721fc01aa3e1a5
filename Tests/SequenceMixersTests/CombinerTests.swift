import Testing
import Torch
import TorchNN

@testable import SequenceMixers

/// What the Combiner computes, counted: its scores are what its cost is made of.
@Suite struct CombinerTests {
    private static let patterns: [(pattern: CombinerPattern, isCausal: Bool)] = [
        (.fixed(span: 64), true), (.fixed(span: 64), false), (.logsparse, true), (.axialVertical(columns: 64), true),
        (.axialHorizontal(columns: 64), false), (.mixture(columns: 64), true), (.mixture(columns: 64), false),
        (.mixture(columns: 64, .average), true), (.axialRowmajor(columns: 64), true),
        (.axialRowmajor(columns: 64, .none), false),
    ]

    private func core(_ pattern: CombinerPattern, _ isCausal: Bool) -> CombinerCore {
        CombinerCore(pattern, isCausal: isCausal, headDim: 4, using: RandomGenerator(seed: 1))
    }

    /// Forward and backward over 4096 tokens: never 4096 × 4096 scores, neither at a time nor in all.
    @Test(arguments: patterns) func noSquareOfScores(_ pattern: CombinerPattern, _ isCausal: Bool) {
        let length = 4096
        let core = core(pattern, isCausal)
        var scores: [Int] = []
        core.scoreObserver = { scores.append($0.reduce(1, *)) }
        let inputs = (0..<3).map { _ in
            Tensor.randomNormal([1, 1, length, 4], using: RandomGenerator(seed: 2)).requiringGrad()
        }
        let out = core(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        let forward = scores.reduce(0, +)
        let found = gradients(of: [out.sum()], withRespectTo: inputs)
        #expect(found.allSatisfy { $0?.isFinite().all().integerItem() == 1 })
        // √N = 64 is the row, and there are at most six keys or spans for each row or column, and one row for good.
        #expect(forward <= 6 * 64 * length + length)
        #expect(scores.reduce(0, +) <= 2 * forward)
        #expect((scores.max() ?? 0) <= 32 * length + 64 * 64 * 6)
        #expect(!scores.isEmpty)
    }

    /// What is asked for in pieces and again in the backward pass is what one piece gives.
    @Test func piecesGiveWhatTheWholeGives() {
        for (pattern, isCausal) in Self.patterns.map({ ($0.pattern.resized(4), $0.isCausal) }) {
            let core = core(pattern, isCausal)
            core.to(.float64)
            var pieces = 0
            core.scoreObserver = { _ in pieces += 1 }
            let generator = RandomGenerator(seed: 3)
            let inputs = (0..<3).map { _ in
                Tensor.randomNormal([1, 2, 150, 4], using: generator, dtype: .float64).requiringGrad()
            }
            let forms = [core.callAsFunction, core.reference].map { form in
                let out = form(inputs[0], inputs[1], inputs[2], nil)
                return [out] + gradients(of: [out.square().sum()], withRespectTo: inputs).compactMap { $0 }
            }
            if pattern != .logsparse { #expect(pieces > 2, "\(pattern) \(isCausal)") }
            for (found, expected) in zip(forms[0], forms[1]) {
                #expect(found.relativeError(to: expected) < 1e-9, "\(pattern) \(isCausal)")
            }
        }
    }

    /// Fixed spans in one softmax over ranges of keys.
    @Test(arguments: [CombinerSummary.identityMax, .identityMean, .reluSum, .deepsetMax], [1, 4, 16, 70])
    func rangesGiveTheEquations(_ summary: CombinerSummary, _ span: Int) {
        for (isCausal, includesOwn) in [(true, false), (false, false), (false, true)] {
            let core = CombinerCore(
                .fixed(span: span, includesOwnSpan: includesOwn), isCausal: isCausal, summary: summary, headDim: 4,
                using: RandomGenerator(seed: 1))
            core.to(.float64)
            let generator = RandomGenerator(seed: 4)
            let inputs = (0..<3).map { _ in
                Tensor.randomNormal([2, 2, 37, 4], using: generator, dtype: .float64).requiringGrad()
            }
            for mask in [nil, rightPadding([37, 15], of: 37)] {
                let leaves = inputs + core.parameters().map(\.value)
                let forms = [core.callAsFunction, core.reference].map { form in
                    let out = form(inputs[0], inputs[1], inputs[2], mask)
                    return [out] + gradients(of: [out.square().sum()], withRespectTo: leaves).compactMap { $0 }
                }
                #expect(forms[0].count == forms[1].count)
                for (found, expected) in zip(forms[0], forms[1]) {
                    #expect(found.deviation(from: expected) < 1e-9, "causal \(isCausal), own \(includesOwn)")
                }
            }
        }
    }

    /// Full spans are kept as one key and value each.
    @Test func fixedKeepsOneKeyForASpan() {
        let core = core(.fixed(span: 10), true)
        var state = core.initialState(CoreShape(batch: 2, heads: 3, headDim: 4, valueDim: 5))
        let q = Tensor.ones([2, 3, 47, 4])
        _ = core.prefill(q, q, .ones([2, 3, 47, 5]), paddingMask: nil, state: &state)
        let shapes = state.tensors.mapValues(\.shape)
        #expect(shapes["0.0.spans.keys"] == [2, 3, 4, 4])
        #expect(shapes["0.0.spans.values"] == [2, 3, 4, 5])
        #expect(shapes["0.0.open.key"] == [2, 3, 7, 4])
        #expect(state.tensors["0.0.count"]?.scalars(as: Int64.self) == [47])
    }

    @Test func logsparseKeepsOneSummaryForEachBit() {
        let core = core(.logsparse, true)
        var state = core.initialState(CoreShape(batch: 1, heads: 1, headDim: 4, valueDim: 4))
        let x = Tensor.randomNormal([1, 1, 22, 4], using: RandomGenerator(seed: 4))
        _ = core.prefill(x, x, x, paddingMask: nil, state: &state)
        let lengths = { (0..<3).map { state.tensors["0.0.block\($0).key"]?.size(2) } }
        #expect(lengths() == [16, 4, 2])
        let token = x.selected(2, 0)
        _ = core.step(token, token, token, state: &state)
        _ = core.step(token, token, token, state: &state)
        #expect(lengths() == [16, 8, nil])
    }

    /// The sights themselves: every position once, in axial patterns with spans of both kinds twice.
    @Test func sightsCoverEverythingOnce() {
        for (pattern, isCausal) in Self.patterns.map({ ($0.pattern.resized(5), $0.isCausal) }) {
            for length in [1, 4, 5, 6, 23] {
                for i in 0..<length {
                    let sight = pattern.sight(of: i, length, isCausal: isCausal)
                    var counts = [Int](repeating: 0, count: length)
                    for j in sight.direct { counts[j] += 1 }
                    for case .span(let first, let step, let count) in sight.groups {
                        for index in 0..<count { counts[first + step * index] += 1 }
                    }
                    for case .row(let position) in sight.groups {
                        for j in position / 5 * 5..<min(position / 5 * 5 + 5, length) { counts[j] += 1 }
                    }
                    let seen = isCausal ? i + 1 : length
                    #expect(counts[seen...].allSatisfy { $0 == 0 }, "\(pattern), \(i) of \(length)")
                    if case .axialRowmajor = pattern { continue }  // a short last row has no token in some columns
                    let most = if case .mixture = pattern { 2 } else { 1 }
                    #expect(counts[..<seen].allSatisfy { (1...most).contains($0) }, "\(pattern), \(i) of \(length)")
                }
            }
        }
    }
}

extension CombinerPattern {
    fileprivate func resized(_ size: Int) -> CombinerPattern {
        switch self {
        case .fixed(_, let includesOwn): .fixed(span: size, includesOwnSpan: includesOwn)
        case .logsparse: .logsparse
        case .axialVertical: .axialVertical(columns: size)
        case .axialHorizontal: .axialHorizontal(columns: size)
        case .mixture(_, let combination): .mixture(columns: size, combination)
        case .axialRowmajor(_, let keys, let includesOwn):
            .axialRowmajor(columns: size, keys, includesOwnRow: includesOwn)
        }
    }
}
