// Step programs of the cores that look at some of the tokens before: see StepCompiling.swift.
import Torch
import TorchNN

extension SparseCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: SparseState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard q.count == v.count, let sights = pattern.sights, let past = state.compileStep(into: program) else {
            return false
        }
        program.appendAttention(
            StepProgram.View(q, program.look(at: sights, in: past)), adding: (k, v), heads: heads,
            scale: 1 / Double(q.count / heads).squareRoot(),
            to: y)
        return true
    }
}

extension NGramCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: SparseState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        window.compileStep(q, k, v, heads: heads, state: state, to: y, into: program)
    }
}

extension SparsePattern {
    /// What a query sees of the tokens before, for each choice of heads; nil where that depends on the sequence's end.
    fileprivate var sights: [[StepProgram.Sight]]? {
        guard keptTokens != nil else { return nil }
        // A token always sees itself.
        return choices.map { [.band(count: 1)] + $0.flatMap(\.sights) }
    }
}

extension SparseAtom {
    fileprivate var sights: [StepProgram.Sight] {
        switch self {
        case .window(let radius, let dilation): [.band(count: radius + 1, step: dilation)]
        case .stride(let stride): [.band(count: nil, step: stride)]
        case .block(let size): [.block(size)]
        case .columns(let size, let count): [.columns(size: size, count: count)]
        case .global(let tokens): tokens.map { .token($0) }
        case .star, .bigBird, .random, .custom: []
        }
    }
}

extension SparseState {
    /// What there was of one sequence; nil, and nothing is appended, if a token of it is padded.
    fileprivate func compileStep(into program: StepProgram) -> StepProgram.Cache? {
        switch self {
        case .ring(let ring):
            ring.whole.map {
                program.cache(
                    keys: tokenRows($0.keys), values: tokenRows($0.values), count: ring.next[0], first: $0.first,
                    room: $0.last)
            }
        case .all(let all):
            all.whole.map {
                program.cache(keys: tokenRows($0.keys), values: tokenRows($0.values), count: all.next[0])
            }
        }
    }
}

extension LocalChunkCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: LocalChunkState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard q.count == v.count, let count = state.wholeCount(chunk, chunksBefore) else { return false }
        let past = program.cache(
            keys: tokenRows(state.keys), values: tokenRows(state.values), count: count, room: window)
        let chunks = program.look(at: [.block(chunk, before: chunksBefore)], in: past)
        program.appendAttention(
            StepProgram.View(q, chunks), adding: (k, v), heads: heads, scale: 1 / Double(q.count / heads).squareRoot(),
            to: y)
        return true
    }
}

extension LocalChunkState {
    /// How many tokens there were of one sequence; nil if one that the next may see is padded.
    fileprivate func wholeCount(_ chunk: Int, _ chunksBefore: Int) -> Int? {
        guard count.size(0) == 1 else { return nil }
        let (count, isReal): (Int, [Bool]) = (count.flattened().integerItem(), mask.flattened().scalars())
        let first = max(0, count / chunk - chunksBefore) * chunk
        return (first..<count).allSatisfy { isReal[$0 % isReal.count] } ? count : nil
    }
}
