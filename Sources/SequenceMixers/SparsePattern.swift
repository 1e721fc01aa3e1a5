// Fixed sparse patterns as values: which keys a query may look at, whatever stands there.
//
// Yun, Chang, Bhojanapalli, Rawat, Reddi, Kumar 2020, "O(n) Connections are Expressive Enough: Universal Approximability of
// Sparse Transformers", arXiv 2006.04862, which covers the patterns of
//   Child, Gray, Radford, Sutskever 2019, "Generating Long Sequences with Sparse Transformers", arXiv 1904.10509 (strided, fixed)
//   Guo et al. 2019, "Star-Transformer", arXiv 1902.09113
//   Beltagy, Peters, Cohan 2020, "Longformer: The Long-Document Transformer", arXiv 2004.05150
//   Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", arXiv 2007.14062
import Torch

/// One kind of connection between query i and key j, positions counted from 0.
///
/// A negative position counts from the end; one beyond the sequence is not there.
public enum SparseAtom: Equatable, Sendable {
    /// |i - j| is a multiple of `dilation`, at most `radius` of them.
    case window(radius: Int, dilation: Int = 1)
    /// i - j is a multiple of the stride.
    case stride(Int)
    /// i and j lie in one block of the size.
    case block(Int)
    /// j is among the last `count` positions of its block of `size`.
    case columns(size: Int, count: Int)
    /// i or j is one of the tokens.
    case global([Int])
    /// i or j is the relay, or they are at most `ring` apart on the circle of all other positions.
    case star(relay: Int, ring: Int)
    /// In blocks of `block`: neighbors, the first and the last block, and random ones for each block between those.
    case bigBird(block: Int, random: RandomBlocks)
    /// In blocks of `block`: random ones for each block of queries, of the blocks before it where attention is causal.
    case random(block: Int, RandomBlocks)
    /// Row i says of every j whether it is seen. Shorter sequences take the upper left corner; longer ones there are none.
    case custom([[Bool]])
}

/// Which blocks of keys a block of queries meets by chance.
public enum RandomBlocks: Equatable, Sendable {
    /// As many as `count` for each head and block of queries. The seed makes the choice; nil leaves it to who builds the layer.
    case drawn(count: Int, seed: Int? = nil)
    /// `[heads][blocks of queries][count]`, one head's for all where only one is given. Big Bird's list begins with the
    /// second block and ends with the last but one, since the others see everything.
    case given([[[Int]]])
}

/// A set of pairs of a query and a key, for every length: a union of atoms, which may differ from head to head.
///
/// Every query sees itself whatever the atoms say.
///
/// ```swift
/// let pattern = SparsePattern.window(radius: 64).union(.global([0]))
/// print(pattern.picture(length: 16))
/// ```
public struct SparsePattern: Equatable, Sendable {
    /// Head h sees the union of the atoms `choices[h mod choices.count]`.
    public let choices: [[SparseAtom]]

    private init(choices: [[SparseAtom]]) { self.choices = choices }

    /// The union of the atoms, the same for all heads.
    public init(_ atoms: [SparseAtom]) { self.init(choices: [atoms]) }

    public init(_ atom: SparseAtom) { self.init([atom]) }

    // MARK: Atoms as patterns

    public static func window(radius: Int, dilation: Int = 1) -> SparsePattern {
        SparsePattern(.window(radius: radius, dilation: dilation))
    }

    public static func global(_ tokens: [Int]) -> SparsePattern { SparsePattern(.global(tokens)) }

    public static func star(relay: Int = 0, ring: Int = 1) -> SparsePattern {
        SparsePattern(.star(relay: relay, ring: ring))
    }

    public static func bigBird(block: Int = 16, random: RandomBlocks = .drawn(count: 3)) -> SparsePattern {
        SparsePattern(.bigBird(block: block, random: random))
    }

    public static func random(block: Int = 16, _ blocks: RandomBlocks = .drawn(count: 3)) -> SparsePattern {
        SparsePattern(.random(block: block, blocks))
    }

    /// One row of text for each query, `#` where it sees a key and `.` where it does not, as ``picture(length:head:isCausal:)``
    /// prints.
    public static func custom(picture: [String]) -> SparsePattern {
        SparsePattern(.custom(picture.map { row in row.map { $0 == "#" } }))
    }

    // MARK: Named combinations

    /// A window and every `stride`-th position before and after it.
    ///
    /// - Parameter radius: left out, the window reaches the next position of the stride.
    public static func strided(_ stride: Int, radius: Int? = nil) -> SparsePattern {
        SparsePattern([.window(radius: radius ?? max(stride - 1, 0)), .stride(stride)])
    }

    /// The own block, and the last `columns` positions of every block.
    public static func fixed(block: Int, columns: Int = 1) -> SparsePattern {
        SparsePattern([.block(block), .columns(size: block, count: columns)])
    }

    /// A window, and tokens that see and are seen by all.
    public static func longformer(radius: Int, dilation: Int = 1, tokens: [Int] = [0]) -> SparsePattern {
        SparsePattern([.window(radius: radius, dilation: dilation), .global(tokens)])
    }

    // MARK: Combining

    /// What either sees.
    public func union(_ other: SparsePattern) -> SparsePattern {
        let (mine, theirs) = (choices.count, other.choices.count)
        let count = mine * theirs / greatestCommonDivisor(mine, theirs)
        return SparsePattern(
            choices: (0..<count).map { head in
                let atoms = choices[head % mine]
                return atoms + other.choices[head % theirs].filter { !atoms.contains($0) }
            })
    }

    /// One pattern for each head in turn: head h has `patterns[h mod patterns.count]`. (A pattern that already differs by
    /// heads takes as many turns.)
    public static func multihead(_ patterns: [SparsePattern]) -> SparsePattern {
        SparsePattern(choices: patterns.flatMap(\.choices))
    }

    /// With the seed for the random blocks that have none of their own.
    func seeded(_ seed: Int) -> SparsePattern {
        SparsePattern(
            choices: choices.map { atoms in
                atoms.map { atom in
                    switch atom {
                    case .bigBird(let block, .drawn(let count, nil)):
                        .bigBird(block: block, random: .drawn(count: count, seed: seed))
                    case .random(let block, .drawn(let count, nil)):
                        .random(block: block, .drawn(count: count, seed: seed))
                    default: atom
                    }
                }
            })
    }

    /// Whether random blocks are still to be drawn.
    var needsSeed: Bool { self != seeded(0) }

    // MARK: Looking at it

    /// Who sees whom: `[heads, length, length]`, true where query i (row) may look at key j. Memory O(heads length²).
    public func mask(length: Int, heads: Int = 1, isCausal: Bool = false) -> Tensor {
        let (i, j) = (Tensor.arange(0..<length).unsqueezed(1), Tensor.arange(0..<length).unsqueezed(0))
        return stack(
            (0..<heads).map { head in
                let regions = regions(length: length, head: head, isCausal: isCausal)
                let seen = regions.reduce(i .== j) { $0 .|| $1.contains(i, j) }
                return isCausal ? (seen .&& (j .<= i)) : seen
            })
    }

    /// A row for each query, `#` where it sees the key and `.` where it does not.
    public func picture(length: Int, head: Int = 0, isCausal: Bool = false) -> String {
        let mask = mask(length: length, heads: head + 1, isCausal: isCausal).selected(0, head)
        let seen = mask.scalars(as: Bool.self)
        return (0..<length).map { row in
            String(seen[row * length..<(row + 1) * length].map { $0 ? "#" : "." })
        }.joined(separator: "\n")
    }

    /// The number of pairs that are evaluated in one head.
    public func connections(length: Int, head: Int = 0, isCausal: Bool = false) -> Int {
        mask(length: length, heads: head + 1, isCausal: isCausal).selected(0, head).sum().integerItem()
    }

    func regions(length: Int, head: Int, isCausal: Bool) -> [SparseRegion] {
        choices[head % choices.count].map { SparseRegion($0, length: length, head: head, isCausal: isCausal) }
    }

    // MARK: Streaming

    /// For a decoder: how many of the first tokens must be kept for ever, and how many of the last, nil for all; nothing where
    /// what is seen depends on the end of the sequence.
    var keptTokens: (first: Int, last: Int?)? {
        var (first, last, isGrowing) = (0, 1, false)
        for atom in choices.joined() {
            switch atom {
            case .window(let radius, let dilation): last = max(last, radius * dilation + 1)
            case .block(let size): last = max(last, size)
            case .global(let tokens) where !tokens.contains { $0 < 0 }: first = max(first, (tokens.max() ?? -1) + 1)
            case .stride, .columns: isGrowing = true
            default: return nil
            }
        }
        return isGrowing ? (0, nil) : (first, last)
    }
}

private func greatestCommonDivisor(_ a: Int, _ b: Int) -> Int { b == 0 ? max(a, 1) : greatestCommonDivisor(b, a % b) }

// MARK: - Settings that make sense

extension SparsePattern {
    /// - Throws: ``ConfigurationError`` for a size out of range.
    func validate() throws {
        guard !choices.isEmpty, !choices.contains(where: \.isEmpty) else {
            throw ConfigurationError("sparse: patterns must name at least one")
        }
        for atom in choices.joined() { try atom.validate() }
    }

    /// The longest sequence that it is defined for.
    var maximumLength: Int? {
        choices.joined().compactMap { atom in
            if case .custom(let rows) = atom { rows.count } else { nil }
        }.min()
    }
}

extension SparseAtom {
    /// Sizes beyond any sequence; products of two of them still are numbers.
    static let largest = 1 << 30

    fileprivate func validate() throws {
        switch self {
        case .window(let radius, let dilation):
            try check("window", "radius", radius, from: 0)
            try check("window", "dilation", dilation)
        case .stride(let stride): try check("stride", "stride", stride)
        case .block(let size): try check("block", "size", size)
        case .columns(let size, let count):
            try check("columns", "size", size)
            guard (1...size).contains(count) else {
                throw ConfigurationError("sparse: columns' count must be 1 to its size \(size), not \(count)")
            }
        case .global(let tokens):
            guard !tokens.isEmpty else { throw ConfigurationError("sparse: global's tokens must name at least one") }
            for token in tokens { try check("global", "tokens", token, from: -Self.largest) }
        case .star(let relay, let ring):
            try check("star", "relay", relay, from: -Self.largest)
            try check("star", "ring", ring)
        case .bigBird(let block, let random):
            try check("bigbird", "block", block)
            try random.validate("bigbird")
        case .random(let block, let blocks):
            try check("random", "block", block)
            try blocks.validate("random")
        case .custom(let rows):
            guard !rows.isEmpty, rows.allSatisfy({ $0.count == rows.count }) else {
                throw ConfigurationError("sparse: custom's picture must have as many rows as columns")
            }
        }
    }

    private func check(_ type: String, _ name: String, _ value: Int, from lowest: Int = 1) throws {
        guard (lowest...Self.largest).contains(value) else {
            throw ConfigurationError("sparse: \(type)'s \(name) must be \(lowest) to \(Self.largest), not \(value)")
        }
    }
}

extension RandomBlocks {
    fileprivate func validate(_ type: String) throws {
        switch self {
        case .drawn(let count, _):
            guard (0...SparseAtom.largest).contains(count) else {
                throw ConfigurationError("sparse: \(type)'s random must be at least 0, not \(count)")
            }
        case .given(let heads):
            guard !heads.isEmpty, heads.allSatisfy({ $0.count == heads[0].count }) else {
                throw ConfigurationError(
                    "sparse: \(type)'s randomBlocks must have one list of one length for each head")
            }
            for block in heads.joined().joined() where block < 0 {
                throw ConfigurationError("sparse: \(type)'s randomBlocks must be at least 0, not \(block)")
            }
        }
    }
}

// MARK: - In a recipe

/// As `{ type: window, radius: 64 }`, the type one of the atoms, a named combination, `union` or `multihead` (`of: […]`).
extension SparsePattern: Codable {
    private enum Kind: String, NamedChoice {
        case window, stride, block, columns, global, star
        case bigBird = "bigbird"
        case random, custom, strided, fixed, longformer, union, multihead
    }

    private enum CodingKeys: String, CodingKey {
        case type, radius, dilation, stride, size, count, tokens, relay, ring, block, random, randomBlocks, seed,
            columns
        case picture, of
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        func number(_ key: CodingKeys) throws -> Int { try container.decode(Int.self, forKey: key) }
        func optional(_ key: CodingKeys) throws -> Int? { try container.decodeIfPresent(Int.self, forKey: key) }
        switch try container.decode(Kind.self, forKey: .type) {
        case .window: self = try .window(radius: number(.radius), dilation: optional(.dilation) ?? 1)
        case .stride: self = try SparsePattern(.stride(number(.stride)))
        case .block: self = try SparsePattern(.block(number(.size)))
        case .columns: self = try SparsePattern(.columns(size: number(.size), count: optional(.count) ?? 1))
        case .global: self = try .global(container.decode([Int].self, forKey: .tokens))
        case .star: self = try .star(relay: optional(.relay) ?? 0, ring: optional(.ring) ?? 1)
        case .bigBird: self = try .bigBird(block: optional(.block) ?? 16, random: Self.randomBlocks(container))
        case .random: self = try .random(block: optional(.block) ?? 16, Self.randomBlocks(container))
        case .custom: self = try .custom(picture: container.decode([String].self, forKey: .picture))
        case .strided: self = try .strided(number(.stride), radius: optional(.radius))
        case .fixed: self = try .fixed(block: number(.size), columns: optional(.columns) ?? 1)
        case .longformer:
            self = try .longformer(
                radius: number(.radius), dilation: optional(.dilation) ?? 1,
                tokens: container.decodeIfPresent([Int].self, forKey: .tokens) ?? [0])
        case .union:
            let parts = try container.decode([SparsePattern].self, forKey: .of)
            self = parts.dropFirst().reduce(parts.first ?? SparsePattern([])) { $0.union($1) }
        case .multihead: self = .multihead(try container.decode([SparsePattern].self, forKey: .of))
        }
    }

    private static func randomBlocks(_ container: KeyedDecodingContainer<CodingKeys>) throws -> RandomBlocks {
        if let given = try container.decodeIfPresent([[[Int]]].self, forKey: .randomBlocks) { return .given(given) }
        return try .drawn(
            count: container.decodeIfPresent(Int.self, forKey: .random) ?? 3,
            seed: container.decodeIfPresent(Int.self, forKey: .seed))
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        if choices.count != 1 {
            try container.encode(Kind.multihead, forKey: .type)
            return try container.encode(choices.map { SparsePattern($0) }, forKey: .of)
        }
        guard choices[0].count == 1 else {
            try container.encode(Kind.union, forKey: .type)
            return try container.encode(choices[0].map { SparsePattern($0) }, forKey: .of)
        }
        try encode(choices[0][0], to: &container)
    }

    private func encode(_ atom: SparseAtom, to container: inout KeyedEncodingContainer<CodingKeys>) throws {
        func put(_ kind: Kind, _ numbers: [CodingKeys: Int]) throws {
            try container.encode(kind, forKey: .type)
            for (key, value) in numbers { try container.encode(value, forKey: key) }
        }
        func put(_ blocks: RandomBlocks) throws {
            switch blocks {
            case .drawn(let count, let seed):
                try container.encode(count, forKey: .random)
                try container.encodeIfPresent(seed, forKey: .seed)
            case .given(let lists): try container.encode(lists, forKey: .randomBlocks)
            }
        }
        switch atom {
        case .window(let radius, let dilation): try put(.window, [.radius: radius, .dilation: dilation])
        case .stride(let stride): try put(.stride, [.stride: stride])
        case .block(let size): try put(.block, [.size: size])
        case .columns(let size, let count): try put(.columns, [.size: size, .count: count])
        case .global(let tokens):
            try put(.global, [:])
            try container.encode(tokens, forKey: .tokens)
        case .star(let relay, let ring): try put(.star, [.relay: relay, .ring: ring])
        case .bigBird(let block, let blocks):
            try put(.bigBird, [.block: block])
            try put(blocks)
        case .random(let block, let blocks):
            try put(.random, [.block: block])
            try put(blocks)
        case .custom(let rows):
            try put(.custom, [:])
            try container.encode(rows.map { row in String(row.map { $0 ? "#" : "." }) }, forKey: .picture)
        }
    }
}
