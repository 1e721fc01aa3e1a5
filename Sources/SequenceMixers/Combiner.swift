// Combiner. Ren, Dai, Dai, Yang, Leskovec, Schuurmans, Dai 2021, "Combiner: Full Attention Transformer with Sparse
// Computation Cost", arXiv 2107.05768, eq. 7 to 10.
//
//   out_i = ( Σ_{j∈D_i} e^{q_i·k_j/√D} v_j + Σ_{s∈S_i} e^{q_i·k̄_s/√D} v̄_s )
//           / ( Σ_{j∈D_i} e^{q_i·k_j/√D} + Σ_{s∈S_i} e^{q_i·k̄_s/√D} )
//   q̄_s = pool_{j∈s} φ_q(q_j),   k̄_s = pool_{j∈s} φ_k(k_j),   v̄_s = Σ_{j∈s} softmax_{j∈s}(q̄_s·k_j/√D) v_j
//
// A query weighs the positions D_i one by one, and all others in the spans S_i, each with one score. Its instantiations
// differ in D_i and S_i alone (`CombinerPattern`); axial-rowmajor has a v̄ and a k̄ of its own (`CombinerRowKey`).
import Torch
import TorchNN

/// Which positions a query weighs one by one, and how it groups the others.
///
/// In a grid of `columns`, position i stands in row i / columns, at column i % columns.
public enum CombinerPattern: Equatable, Sendable {
    /// Neighbors of the same span one by one, the other spans as wholes; `includesOwnSpan`, only without `isCausal`, takes
    /// the own span both ways.
    case fixed(span: Int, includesOwnSpan: Bool = false)
    /// Spans that double in length with their distance, causal only.
    case logsparse
    /// Row and column one by one, the rest of each other column as a span above (and one below).
    case axialVertical(columns: Int)
    /// Row and column one by one, each other row as a span to the left and one to the right of the query's column.
    case axialHorizontal(columns: Int)
    /// The spans of both.
    case mixture(columns: Int, CombinerCombination = .joint)
    /// The own row one by one, and of each other row what its token in the query's column sees of that row;
    /// `includesOwnRow`, only without `isCausal`, takes the own row both ways.
    case axialRowmajor(columns: Int, CombinerKeySummary = .wsum, includesOwnRow: Bool = false)

    var needsFuture: Bool {
        switch self {
        case .fixed(_, let includesOwnSpan): includesOwnSpan
        case .axialRowmajor(_, _, let includesOwnRow): includesOwnRow
        default: false
        }
    }

    var needsRowKey: Bool {
        if case .axialRowmajor(_, .proj, _) = self { true } else { false }
    }

    var size: Int {
        switch self {
        case .fixed(let size, _), .axialVertical(let size), .axialHorizontal(let size), .mixture(let size, _),
            .axialRowmajor(let size, _, _):
            size
        case .logsparse: 1
        }
    }
}

/// How the mixture puts vertical and horizontal spans together.
public enum CombinerCombination: String, NamedChoice {
    /// One softmax over the spans of both: the authors' code.
    case joint
    /// The mean of the two outputs: the paper.
    case average
}

/// k̄ of a row, seen from one of its tokens.
public enum CombinerKeySummary: String, NamedChoice {
    /// That token's key.
    case none
    /// The mean of the row's keys, with the weights of the values.
    case wsum
    /// A projection of the layer's input and the row's mean value: see ``CombinerRowKey``.
    case proj
}

/// Combiner attention between the projections.
///
/// Time for length N, heads of width D: O(N (s + N/s) D) for spans or rows of s, best with s ≈ √N; O(N log N · D) for
/// `logsparse`. Memory O(N D): scores are computed for some rows at a time, and again in the backward pass; `fixed` on
/// the CPU keeps none. Streaming keeps one key and value for every full span of `fixed`, and a few of every token otherwise.
public final class CombinerCore: Module, StreamingCore {
    public let isCausal: Bool
    public let pattern: CombinerPattern
    public let pooling: CombinerPooling
    /// Of `axialRowmajor` with ``CombinerKeySummary/proj``.
    public let rowKey: CombinerRowKey?

    /// Told the shape of every tensor of scores, before it is made. The fused form, which makes none, is then not used.
    var scoreObserver: (([Int]) -> Void)?

    private let ranges = KeyRanges()

    /// - Parameter headDim: of queries and keys, for the pooling's weights.
    public init(
        _ pattern: CombinerPattern, isCausal: Bool, summary: CombinerSummary = .identityMax,
        rowKey: CombinerRowKey? = nil,
        headDim: Int, using generator: RandomGenerator
    ) {
        torchPrecondition(pattern.size > 0, in: "CombinerCore", "expected a positive size, got \(pattern)")
        torchPrecondition(
            isCausal ? !pattern.needsFuture : pattern != .logsparse, in: "CombinerCore",
            "\(pattern) has no \(isCausal ? "causal" : "bidirectional") form")
        torchPrecondition(
            pattern.needsRowKey == (rowKey != nil), in: "CombinerCore",
            "expected a rowKey for keys of rows by projection, and only there")
        self.pattern = pattern
        self.isCausal = isCausal
        self.rowKey = rowKey
        pooling = CombinerPooling(summary, headDim: headDim, using: generator)
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        output(of: tokens(q, k, v, paddingMask))
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        referenceOutput(of: tokens(q, k, v, paddingMask))
    }

    func output(of tokens: CombinerTokens) -> Tensor {
        guard accepts(tokens) else { return tokens.v }
        let wide = tokens.widened()
        return mean(forms.map { $0.parallel(wide) }).to(tokens.v.dtype)
    }

    /// - Parameter x: the layer's input `[batch, length, modelDim]`, for row keys made from it.
    func tokens(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?, x: Tensor? = nil) -> CombinerTokens {
        check(q, k, v, paddingMask)
        torchPrecondition(
            q.size(2) == k.size(2), in: "CombinerCore",
            "expected queries and keys of one sequence; got q \(q.shape), k \(k.shape)")
        torchPrecondition(
            (rowKey != nil) == (x != nil), in: "CombinerCore",
            "keys of rows by projection are made from a layer's input: use CombinerLayer")
        torchPrecondition(
            pooling.headDim == nil || pooling.headDim == q.size(-1), in: "CombinerCore",
            "expected heads of width \(pooling.headDim ?? 0), as the weights of the summary; got q \(q.shape)")
        return CombinerTokens(q: q, k: k, v: v, x: x?.unsqueezed(1), real: paddingMask?.unsqueezed(1))
    }

    /// Whether shapes fit. Where they do not, that has been reported, and nothing else should go wrong after.
    func accepts(_ tokens: CombinerTokens) -> Bool {
        tokens.isSound && (pooling.headDim == nil || pooling.headDim == tokens.q.size(3))
    }

    /// What the output is the mean of: one form, or two.
    var forms: [any CombinerForm] {
        let vertical: [CombinerGrid.Part] = isCausal ? [.above] : [.above, .below]
        let horizontal: [CombinerGrid.Part] = [.left, .right]
        switch pattern {
        case .fixed(let span, let includesOwn): return [grid(span, [.ownRow, .spans], includesOwn: includesOwn)]
        case .logsparse: return [CombinerLogsparse(pooling: pooling, observer: scoreObserver)]
        case .axialVertical(let columns): return [grid(columns, [.ownRow, .column] + vertical)]
        case .axialHorizontal(let columns): return [grid(columns, [.ownRow, .column] + horizontal)]
        case .mixture(let columns, .joint): return [grid(columns, [.ownRow, .column] + vertical + horizontal)]
        case .mixture(let columns, .average):
            return [vertical, horizontal].map { grid(columns, [.ownRow, .column] + $0) }
        case .axialRowmajor(let columns, let keys, let includesOwn):
            return [grid(columns, [.ownRow, .rows], keys: keys, includesOwn: includesOwn)]
        }
    }

    private func grid(
        _ columns: Int, _ parts: [CombinerGrid.Part], keys: CombinerKeySummary = .none, includesOwn: Bool = false
    ) -> CombinerGrid {
        CombinerGrid(
            columns: columns, parts: parts, isCausal: isCausal, includesOwn: includesOwn, pooling: pooling,
            keySummary: keys, rowKey: rowKey, observer: scoreObserver, ranges: ranges)
    }

    private func mean(_ outputs: [Tensor]) -> Tensor {
        outputs.count == 1 ? outputs[0] : (outputs[0] + outputs[1]) / 2
    }

    // MARK: Streaming

    public func initialState(_ shape: CoreShape) -> CombinerState { CombinerState(forms: forms.count) }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout CombinerState)
        -> Tensor
    {
        prefill(tokens(q, k, v, paddingMask), &state)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout CombinerState) -> Tensor {
        step(tokens(q.unsqueezed(2), k.unsqueezed(2), v.unsqueezed(2), nil), &state).squeezed(2)
    }

    func prefill(_ tokens: CombinerTokens, _ state: inout CombinerState) -> Tensor {
        torchPrecondition(isCausal, in: "CombinerCore.prefill", "bidirectional attention cannot stream")
        guard isCausal, accepts(tokens) else { return tokens.v }
        let (batch, count) = (tokens.q.size(0), tokens.count)
        let lengths = tokens.real.map { realLengths($0.squeezed(1)) } ?? Array(repeating: count, count: batch)
        let wide = tokens.widened().marked()
        if state.groups.count == 1, let length = lengths.first, lengths.allSatisfy({ $0 == length }) {
            return taken(wide, length, &state.groups[0]).to(tokens.v.dtype)
        }
        state.split(into: batch)
        let outputs = (0..<batch).map { taken(wide.sequence($0), lengths[$0], &state.groups[$0]) }
        return concatenate(outputs).to(tokens.v.dtype)
    }

    /// The outputs of the first `length` tokens, and zeros for those after them, which only pad.
    private func taken(_ tokens: CombinerTokens, _ length: Int, _ memories: inout [CombinerMemory]) -> Tensor {
        guard length > 0 else { return Tensor.zeros(like: tokens.v) }
        let real = tokens.sliced(0..<length)
        let forms = forms
        let outputs = forms.indices.map { forms[$0].prefill(real, &memories[$0]) }
        return mean(outputs).padded(2, after: tokens.count - length)
    }

    func step(_ token: CombinerTokens, _ state: inout CombinerState) -> Tensor {
        torchPrecondition(isCausal, in: "CombinerCore.step", "bidirectional attention cannot stream")
        guard isCausal, accepts(token) else { return token.v }
        let wide = token.widened().marked()
        let forms = forms
        let isOneGroup = state.groups.count == 1
        let outputs = state.groups.indices.map { group in
            let own = isOneGroup ? wide : wide.sequence(group)
            return mean(forms.indices.map { forms[$0].step(own, &state.groups[group][$0]) })
        }
        return concatenate(outputs).to(token.v.dtype)
    }
}

/// What Combiner attention remembers.
///
/// Sequences that stand at the same place are kept together; prompts of different lengths part them for good, and are then
/// stepped one by one.
public struct CombinerState: StreamingState {
    /// For each group of sequences, what each form remembers.
    var groups: [[CombinerMemory]]

    init(forms: Int) { groups = [Array(repeating: CombinerMemory(), count: forms)] }

    public var tensors: [String: Tensor] {
        var tensors: [String: Tensor] = [:]
        for (group, memories) in groups.enumerated() {
            for (form, memory) in memories.enumerated() {
                for (name, tensor) in memory.tensors { tensors["\(group).\(form).\(name)"] = tensor }
            }
        }
        return tensors
    }

    mutating func split(into count: Int) {
        guard groups.count == 1, count > 1 else { return }
        let together = groups[0]
        groups = (0..<count).map { index in together.map { $0.sequence(index) } }
    }
}

/// What one form remembers of a group of sequences that stand at the same place. All tensors are replaced, never changed.
struct CombinerMemory {
    /// How many tokens there were.
    var count = 0
    /// The tokens of the row that is not full yet.
    var open: CombinerTokens?
    /// Where something is seen of rows as wholes, the tokens of the last full one: step programs begin with it.
    var lastRow: CombinerTokens?
    /// Of the full rows, what later queries look at.
    var closed: [CombinerGrid.Part: CombinerTerm] = [:]
    /// The queries of the full rows `[batch, heads, columns, rows, headDim]`, where columns are spans.
    var queries: Tensor?
    /// Of `logsparse`: blocks of falling lengths, one for each bit of `count`.
    var blocks: [CombinerLogsparse.Block] = []

    var tensors: [String: Tensor] {
        var tensors = ["count": Tensor([count])]
        tensors["queries"] = queries
        func add(_ name: String, _ found: [String: Tensor]) {
            for (key, tensor) in found { tensors["\(name).\(key)"] = tensor }
        }
        if let open { add("open", open.tensors) }
        if let lastRow { add("last-row", lastRow.tensors) }
        for (part, term) in closed { add(part.rawValue, term.tensors) }
        for (index, block) in blocks.enumerated() {
            add("block\(index)", block.tokens.tensors)
            add("block\(index).summary", block.summary.tensors)
        }
        return tensors
    }

    func sequence(_ index: Int) -> CombinerMemory {
        let own = { (x: Tensor) in x.sliced(0, index..<index + 1) }
        return CombinerMemory(
            count: count, open: open?.mapped(own), lastRow: lastRow?.mapped(own),
            closed: closed.mapValues { $0.mapped(own) },
            queries: queries.map(own),
            blocks: blocks.map {
                CombinerLogsparse.Block(tokens: $0.tokens.mapped(own), summary: $0.summary.mapped(own))
            })
    }
}

/// One way to group positions: a whole sequence at once, or the next tokens after those that made a memory.
protocol CombinerForm {
    func parallel(_ tokens: CombinerTokens) -> Tensor
    func prefill(_ tokens: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor
    /// One token, as `[batch, heads, 1, ·]`.
    func step(_ token: CombinerTokens, _ memory: inout CombinerMemory) -> Tensor
}
