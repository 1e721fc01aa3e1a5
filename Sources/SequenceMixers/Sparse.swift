// Sparse attention with a fixed pattern. Yun, Chang, Bhojanapalli, Rawat, Reddi, Kumar 2020, "O(n) Connections are Expressive
// Enough: Universal Approximability of Sparse Transformers", arXiv 2006.04862, section 3; the patterns' own papers stand in
// SparsePattern.swift.
//
//   out_i = Σ_{j ∈ A_i} p_ij v_j,   p_ij = exp(s_ij) / Σ_{j ∈ A_i} exp(s_ij),   s_ij = q_i·k_j / √D
//
// A_i is what the pattern lets query i see, itself always; causal, of that the keys with j ≤ i; of that the real ones. A query
// that may look at no key gives 0.
import Foundation
import Torch
import TorchNN

/// Softmax attention over the pairs of a ``SparsePattern``.
///
/// Time O(visited pairs D), memory O(N D), gradients included: the pattern is evaluated in blocks, no matrix of N × N occurs.
/// What is visited are the pairs of the pattern, rounded up to blocks. Causal patterns of windows, blocks and tokens counted
/// from the start stream with a state of constant size, those with strides and columns with one that keeps all tokens.
public final class SparseCore: Module, StreamingCore {
    public let isCausal: Bool
    public let pattern: SparsePattern
    /// Chooses the random blocks, where the pattern leaves them open: int64 `[1]`.
    public let seed: Buffer?
    private let evaluator: SparseEvaluator

    /// - Parameter generator: draws the seed of random blocks that have none of their own.
    public init(_ pattern: SparsePattern, isCausal: Bool, using generator: RandomGenerator? = nil) {
        do {
            try pattern.validate()
        } catch {
            torchPrecondition(false, in: "SparseCore", "\(error)")
        }
        self.isCausal = isCausal
        self.pattern = pattern
        if pattern.needsSeed {
            let drawn = generator.map { Tensor.random(in: 0..<Int(Int32.max), [1], using: $0) }
            seed = Buffer(drawn ?? Tensor([0]))
        } else {
            seed = nil
        }
        evaluator = SparseEvaluator(pattern, isCausal: isCausal)
        super.init()
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isSound(q, k, v, paddingMask) else { return v }
        return evaluator.attention(q, k, v, paddingMask: paddingMask, seed: currentSeed)
    }

    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isSound(q, k, v, paddingMask) else { return v }
        let mask = pattern.seeded(currentSeed).mask(length: q.size(2), heads: q.size(1), isCausal: isCausal)
        var visible = mask.to(q.device).unsqueezed(0)
        if let paddingMask { visible = (visible .&& paddingMask.unsqueezed(1).unsqueezed(1)) }
        // In double: a logit of some hundreds has too few digits after the point in float32 to be the truth.
        let logits = matmul(q.to(.float64), k.to(.float64).transposed()) / Double(q.size(3)).squareRoot()
        return visibleAttention(logits, visible, v.to(.float64)).to(v.dtype)
    }

    private var currentSeed: Int { seed?.value.integerItem() ?? 0 }

    /// Reports sizes that do not fit; false lets the caller give up where the report does not end the program.
    private func isSound(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Bool {
        check(q, k, v, paddingMask)
        guard q.rank == 4, v.rank == 4, k.rank == 4, q.count > 0, v.count > 0 else { return false }
        let fits = q.size(2) == k.size(2)
        torchPrecondition(
            fits, in: "SparseCore",
            "a pattern is for one sequence, with as many keys as queries; got q \(q.shape), k \(k.shape)")
        let longest = pattern.maximumLength ?? .max
        torchPrecondition(
            q.size(2) <= longest, in: "SparseCore",
            "the custom mask is for sequences of up to \(longest) tokens; got q \(q.shape)")
        return fits && q.size(2) <= longest && q.shape == k.shape && v.size(2) == k.size(2) && v.size(1) == k.size(1)
    }

    // MARK: Streaming

    public var canStream: Bool { isCausal && pattern.keptTokens != nil }

    public func initialState(_ shape: CoreShape) -> SparseState {
        guard let kept = pattern.keptTokens, let last = kept.last else { return .all(GrowingCache(shape)) }
        return .ring(RingCache(shape, first: kept.first, last: last))
    }

    public func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout SparseState) -> Tensor
    {
        checkStreams()
        guard canStream, isSound(q, k, v, paddingMask) else { return v }
        guard state.isFresh else { return attention(q, k, v, paddingMask, &state) }
        state.takeUp(k, v, paddingMask: paddingMask)
        return self(q, k, v, paddingMask: paddingMask)
    }

    public func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout SparseState) -> Tensor {
        checkStreams()
        guard canStream else { return v }
        return attention(q.unsqueezed(2), k.unsqueezed(2), v.unsqueezed(2), nil, &state).squeezed(2)
    }

    private func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ mask: Tensor?, _ state: inout SparseState) -> Tensor
    {
        state.attention(q, k, v, paddingMask: mask) { visible($0, $1, heads: q.size(1)) }
    }

    private func checkStreams() {
        torchPrecondition(
            canStream, in: "SparseCore.prefill",
            isCausal
                ? "the pattern depends on how long the sequence will be, so it cannot stream"
                : "bidirectional attention cannot stream")
    }

    /// Bool `[batch, 1 or heads, n, m]` for positions i `[batch, n, 1]` and j `[batch, 1, m]`.
    private func visible(_ i: Tensor, _ j: Tensor, heads: Int) -> Tensor {
        let choices = pattern.choices.indices.prefix(heads).map { choice in
            // No atom that streams looks at the length.
            pattern.regions(length: .max, head: choice, isCausal: true).reduce((i .== j)) { ($0 .|| $1.contains(i, j)) }
        }
        if choices.count == 1 { return choices[0].unsqueezed(1) }
        return stack((0..<heads).map { choices[$0 % choices.count] }, dim: 1)
    }
}

/// What a sparse decoder remembers: what its pattern can still look at.
public enum SparseState: StreamingState, PositionedCache {
    case ring(RingCache)
    case all(GrowingCache)

    public var tensors: [String: Tensor] {
        switch self {
        case .ring(let cache): cache.tensors
        case .all(let cache): cache.tensors
        }
    }

    var next: [Int] {
        switch self {
        case .ring(let cache): cache.next
        case .all(let cache): cache.next
        }
    }

    var piece: Int {
        switch self {
        case .ring(let cache): cache.piece
        case .all(let cache): cache.piece
        }
    }

    mutating func taking(_ k: Tensor, _ v: Tensor, _ positions: Tensor, lengths: [Int]) -> PositionedKeys {
        switch self {
        case .ring(var cache):
            defer { self = .ring(cache) }
            return cache.taking(k, v, positions, lengths: lengths)
        case .all(var cache):
            defer { self = .all(cache) }
            return cache.taking(k, v, positions, lengths: lengths)
        }
    }
}

// MARK: - In the catalogue

/// How several patterns are shared out.
public enum SparseHeadsMode: String, NamedChoice {
    /// Every head sees what any of them does.
    case union
    /// Head h has pattern h mod their number.
    case multihead
    /// Layer l has pattern l mod their number.
    case sequential
}

/// Options of `sparse` in a recipe.
public struct SparseOptions: MixerOptions {
    /// As `[{ type: window, radius: 64 }, { type: global, tokens: [0] }]`; left out, a window of 128 tokens on each side, and
    /// the first token seen by all.
    public var patterns: [SparsePattern]?
    public var headsMode = SparseHeadsMode.union

    public init() {}

    public init(_ patterns: SparsePattern..., headsMode: SparseHeadsMode = .union) {
        self.patterns = patterns
        self.headsMode = headsMode
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        patterns = try container.decodeIfPresent([SparsePattern].self, forKey: .patterns)
        headsMode = try container.decodeIfPresent(SparseHeadsMode.self, forKey: .headsMode) ?? headsMode
    }

    public func build(_ context: MixerContext) throws -> any SequenceMixer {
        let patterns = patterns ?? [.longformer(radius: 128, tokens: [0])]
        for pattern in patterns { try pattern.validate() }
        guard let first = patterns.first else { throw ConfigurationError("sparse: patterns must name at least one") }
        let pattern =
            switch headsMode {
            case .union: patterns.dropFirst().reduce(first) { $0.union($1) }
            case .multihead: SparsePattern.multihead(patterns)
            case .sequential: patterns[context.layer % patterns.count]
            }
        if let longest = pattern.maximumLength, let needed = context.maximumLength, needed > longest {
            throw ConfigurationError(
                "sparse: the custom mask is for sequences of up to \(longest) tokens, the model's are up to \(needed)")
        }
        return Attention(
            SparseCore(pattern, isCausal: context.isCausal, using: context.generator), modelDim: context.modelDim,
            heads: context.heads, rotary: try context.rotaryEmbedding(), using: context.generator)
    }

    public static let catalogueEntry = CatalogueEntry(
        name: "sparse", title: "Sparse attention with a fixed pattern",
        paper: Paper(
            "O(n) Connections are Expressive Enough: Universal Approximability of Sparse Transformers",
            authors: "Yun et al.", year: 2020, arXiv: "2006.04862"),
        causal: true, bidirectional: true, padding: true, crossAttention: false, streaming: .constant, rotary: true,
        time: "O(nnz D)", memory: "O(N D)",
        remark:
            "nnz is the number of pairs in the pattern: N w for windows and Big Bird, N √N for strided and fixed. Strides and "
            + "columns stream with a state that keeps all tokens; star, Big Bird, random and custom patterns do not stream. "
            + "Star, Big Bird and positions counted from the end depend on the length, so padding moves them.",
        options: SparseOptions.self,
        golden: { golden in
            try golden.expect(variants: ["window", "strided", "fixed", "star", "longformer", "bigbird", "custom"])
            return .core(try goldenCore(golden))
        })
}

// MARK: - Golden files

extension SparseOptions {
    private static func goldenCore(_ golden: GoldenCase) throws -> SparseCore {
        let settings = golden.settings
        let isCausal = try settings.bool("causal")
        let patterns = try settings.array("patterns").map { try goldenPattern($0, golden) }
        guard let first = patterns.first else { throw ConfigurationError("setting 'patterns' names none") }
        let mode = try settings.string("heads_mode", or: "union", expecting: ["union", "multihead"])
        let pattern = mode == "multihead" ? .multihead(patterns) : patterns.dropFirst().reduce(first) { $0.union($1) }
        try pattern.validate()
        if let expected = golden.optionalTensor("mask").map({ $0 .!= 0 }) {
            let mask = pattern.mask(length: expected.size(-1), heads: expected.size(0), isCausal: isCausal)
            guard mask.isIdentical(to: expected) else {
                throw ConfigurationError("the pattern differs from the file's mask")
            }
        }
        return SparseCore(pattern, isCausal: isCausal)
    }

    private static func goldenPattern(_ value: GoldenValue, _ golden: GoldenCase) throws -> SparsePattern {
        guard case .object(let fields) = value, case .string(let type)? = fields["type"] else {
            throw ConfigurationError("setting 'patterns' should be a list of objects with a type")
        }
        var unread = Set(fields.keys).subtracting(["type"])
        func int(_ key: String, or standard: Int? = nil) throws -> Int {
            unread.remove(key)
            if case .number(let number)? = fields[key], let value = Int(exactly: number) { return value }
            guard fields[key] == nil, let standard else {
                throw ConfigurationError("'\(key)' of pattern '\(type)' should be a whole number")
            }
            return standard
        }
        let pattern: SparsePattern
        switch type {
        case "window": pattern = try .window(radius: int("radius"), dilation: int("dilation", or: 1))
        case "stride": pattern = try SparsePattern(.stride(int("stride")))
        case "block": pattern = try SparsePattern(.block(int("size")))
        case "columns": pattern = try SparsePattern(.columns(size: int("size"), count: int("count")))
        case "global":
            unread.remove("tokens")
            pattern = .global(try goldenTokens(fields["tokens"]))
        case "star": pattern = try .star(relay: int("relay"), ring: int("ring"))
        case "bigbird":
            pattern = try .bigBird(block: int("block"), random: .given(lists(golden.tensor("random_blocks"))))
        case "custom":
            let mask = try golden.tensor("mask") .!= 0
            pattern = .multihead(lists(mask.to(.int64)).map { SparsePattern(.custom($0.map { $0.map { $0 != 0 } })) })
        default: throw ConfigurationError("unknown pattern '\(type)'")
        }
        if let key = unread.min() { throw ConfigurationError("unknown setting '\(key)' of pattern '\(type)'") }
        return pattern
    }

    private static func goldenTokens(_ value: GoldenValue?) throws -> [Int] {
        guard case .array(let values)? = value else {
            throw ConfigurationError("'tokens' of pattern 'global' should be a list")
        }
        return try values.map {
            guard case .number(let number) = $0, let token = Int(exactly: number) else {
                throw ConfigurationError("'tokens' of pattern 'global' should be whole numbers")
            }
            return token
        }
    }

    private static func lists(_ tensor: Tensor) -> [[[Int]]] {
        let (rows, columns) = (tensor.size(1), tensor.size(2))
        let numbers = tensor.scalars(as: Int.self)
        return (0..<tensor.size(0)).map { head in
            (0..<rows).map { row in
                let start = (head * rows + row) * columns
                return Array(numbers[start..<start + columns])
            }
        }
    }
}
