import Torch

/// Queries and keys, each in an order of its own, and which blocks of keys each block of queries meets.
///
/// `lists` covers every pair for which `contains` is true, and more: within the blocks `contains` decides.
struct SparsePart {
    var queries: SparseLayout
    var keys: SparseLayout
    var lists: [[Int]]
    var contains: (_ i: Tensor, _ j: Tensor) -> Tensor

    /// Every block of keys for every block of queries, both of one class; causal, those that are not wholly later.
    static func crossed(
        _ queries: SparseLayout, _ keys: SparseLayout, isCausal: Bool,
        _ contains: @escaping (_ i: Tensor, _ j: Tensor) -> Tensor
    ) -> SparsePart {
        let firsts = (0..<keys.blockCount).map { keys.bounds($0).first }
        let lists = (0..<queries.blockCount).map { block in
            let last = queries.bounds(block).last
            return firsts.indices.filter { !isCausal || firsts[$0] <= last }
        }
        return SparsePart(queries: queries, keys: keys, lists: lists, contains: contains)
    }
}

/// An atom for one length and one head: negative positions resolved, random blocks drawn.
struct SparseRegion {
    let atom: SparseAtom
    let length: Int
    let isCausal: Bool
    /// Of global and star, those of the tokens that the sequence has, in order.
    let tokens: [Int]
    /// For each block of queries.
    let randomBlocks: [[Int]]
    /// The same as `[blocks, most]`, filled up with -1; nil where there are none.
    private let randomTable: Tensor?
    /// The rows of a custom mask after each other.
    private let customTable: Tensor?

    init(_ atom: SparseAtom, length: Int, head: Int, isCausal: Bool) {
        self.atom = atom
        self.length = length
        self.isCausal = isCausal
        switch atom {
        case .global(let tokens): self.tokens = Self.present(tokens, length)
        case .star(let relay, _): tokens = Self.present([relay], length)
        default: tokens = []
        }
        randomBlocks = RandomBlockLists(atom, length: length, head: head, isCausal: isCausal).lists
        let most = randomBlocks.map(\.count).max() ?? 0
        randomTable =
            most == 0
            ? nil
            : Tensor(
                randomBlocks.flatMap { $0 + Array(repeating: -1, count: most - $0.count) },
                shape: [randomBlocks.count, most])
        if case .custom(let rows) = atom {
            torchPrecondition(
                length <= rows.count, in: "SparsePattern",
                "the custom mask is for sequences of up to \(rows.count) tokens; got \(length)")
            customTable = Tensor(Array(rows.joined()))
        } else {
            customTable = nil
        }
    }

    private static func present(_ tokens: [Int], _ length: Int) -> [Int] {
        Set(tokens.map { $0 < 0 ? $0 + length : $0 }).filter { (0..<length).contains($0) }.sorted()
    }

    /// Whether the choice differs from head to head.
    var isPerHead: Bool { randomTable != nil }

    /// Whether every position is seen from itself.
    var containsDiagonal: Bool {
        switch atom {
        case .window, .stride, .block, .star, .bigBird: true
        case .columns, .global, .random, .custom: false
        }
    }

    // MARK: Membership

    /// Bool, positions i and j broadcast; which of a pair is later does not count here.
    func contains(_ i: Tensor, _ j: Tensor) -> Tensor {
        switch atom {
        case .window(let radius, let dilation):
            let distance = (i - j).abs()
            let near = (distance .<= radius * dilation)
            return dilation == 1 ? near : (near .&& (distance.remainder(dividingBy: dilation) .== 0))
        case .stride(let stride): return (i - j).remainder(dividingBy: stride) .== 0
        case .block(let size): return i.floorDivided(by: size) .== j.floorDivided(by: size)
        case .columns(let size, let count): return j.remainder(dividingBy: size) .>= size - count
        case .global: return isToken(i) .|| isToken(j)
        case .star(_, let ring): return (isToken(i) .|| isToken(j)) .|| isOnRing(i, j, ring)
        case .bigBird(let block, _):
            let (a, b) = (i.floorDivided(by: block), j.floorDivided(by: block))
            let edges = (isEdge(a, block) .|| isEdge(b, block))
            return (((a - b).abs() .<= 1) .|| edges) .|| isRandom(a, b)
        case .random(let block, _): return isRandom(i.floorDivided(by: block), j.floorDivided(by: block))
        case .custom(let rows):
            guard let customTable else { return i .!= i }
            let place = i * rows.count + j
            let inside = place.masked(where: ((i .< 0) .|| (j .< 0)), with: 0)
            return customTable.to(i.device).indexed(0, inside.flattened()).reshaped(to: inside.shape)
        }
    }

    private func isToken(_ x: Tensor) -> Tensor {
        tokens.reduce(x .!= x) { ($0 .|| (x .== $1)) }
    }

    private func isOnRing(_ i: Tensor, _ j: Tensor, _ ring: Int) -> Tensor {
        let size = length - tokens.count
        let (a, b) = (ringPlace(i), ringPlace(j))
        let distance = (a - b).abs()
        return minimum(distance, size - distance) .<= ring
    }

    private func ringPlace(_ x: Tensor) -> Tensor { tokens.reduce(x) { $0 - (x .> $1).to(.int64) } }

    private func isEdge(_ blockIndex: Tensor, _ block: Int) -> Tensor {
        (blockIndex .== 0) .|| (blockIndex .== (length + block - 1) / block - 1)
    }

    private func isRandom(_ queryBlock: Tensor, _ keyBlock: Tensor) -> Tensor {
        guard let randomTable else { return queryBlock .!= queryBlock }
        let row = queryBlock.masked(where: queryBlock .< 0, with: 0)
        let chosen = randomTable.to(row.device).indexed(0, row.flattened()).reshaped(to: row.shape + [-1])
        var found = (chosen.selected(-1, 0) .== keyBlock)
        for place in 1..<max(1, randomTable.size(1)) { found = (found .|| (chosen.selected(-1, place) .== keyBlock)) }
        return found
    }

    // MARK: Blocks

    /// What there is to evaluate: every pair of the atom is in one of the parts.
    func parts() -> [SparsePart] {
        switch atom {
        case .window(let radius, let dilation):
            // Beyond the sequence a dilated window has nothing but its own token.
            return dilation >= length ? [window(0, 1)] : [window(min(radius, length), dilation)]
        case .stride(let stride):
            let classes = min(stride, length)
            return [
                classed(.residues(classes, length, block: SparseLayout.evenBlock((length + classes - 1) / classes)))
            ]
        case .block(let size):
            let size = min(size, length)
            return [classed(.chunks(of: size, length, block: SparseLayout.evenBlock(size)))]
        case .columns(let size, let count): return seen((0..<length).filter { $0 % size >= size - count }, contains)
        case .global: return tokenParts
        case .star(_, let ring): return tokenParts + self.ring(ring)
        case .bigBird(let block, _): return bigBird(min(block, length), rowBlock: block)
        case .random(let block, _):
            let layout = SparseLayout.sequence(length, block: min(block, length))
            return [SparsePart(queries: layout, keys: layout, lists: randomBlocks, contains: contains)]
        case .custom(let rows): return length <= rows.count ? [custom(rows)] : []
        }
    }

    /// Each query's own token.
    static func diagonal(_ length: Int) -> SparsePart {
        SparseRegion(.window(radius: 0), length: length, head: 0, isCausal: true).window(0, 1)
    }

    private func window(_ radius: Int, _ dilation: Int) -> SparsePart {
        let classLength = (length + dilation - 1) / dilation
        let layout = SparseLayout.residues(dilation, length, block: tile(radius, classLength))
        let (block, perClass) = (layout.block, layout.blocksPerClass)
        let reach = min(radius, classLength)
        let lists = (0..<layout.blockCount).map { index in
            let (first, start) = (index / perClass * perClass, index % perClass * block)
            let last = min(start + block - 1 + (isCausal ? 0 : reach), classLength - 1)
            return (max(0, start - reach) / block...last / block).map { first + $0 }
        }
        return SparsePart(queries: layout, keys: layout, lists: lists, contains: contains)
    }

    /// Blocks that fit what is seen: with much larger ones most of the work would be for nothing.
    private func tile(_ radius: Int, _ classLength: Int) -> Int {
        var size = radius == 0 ? 8 : 16
        while size < 64 && size <= radius { size *= 2 }
        return min(size, classLength)
    }

    /// Everything within each class of the layout.
    private func classed(_ layout: SparseLayout) -> SparsePart {
        let perClass = layout.blocksPerClass
        let lists = (0..<layout.blockCount).map { index in
            let first = index / perClass * perClass
            return Array(first..<(isCausal ? index + 1 : first + perClass))
        }
        return SparsePart(queries: layout, keys: layout, lists: lists, contains: contains)
    }

    /// Keys that every query sees.
    private func seen(_ positions: [Int], _ contains: @escaping (_ i: Tensor, _ j: Tensor) -> Tensor) -> [SparsePart] {
        guard !positions.isEmpty else { return [] }
        return [
            .crossed(
                .sequence(length, block: 64),
                .listed(positions, length, block: SparseLayout.evenBlock(positions.count)), isCausal: isCausal, contains
            )
        ]
    }

    /// Queries that see every key.
    private func seeing(_ positions: [Int], _ contains: @escaping (_ i: Tensor, _ j: Tensor) -> Tensor) -> [SparsePart]
    {
        guard !positions.isEmpty else { return [] }
        return [
            .crossed(
                .listed(positions, length, block: 16), .sequence(length, block: 64), isCausal: isCausal, contains)
        ]
    }

    private var tokenParts: [SparsePart] {
        seeing(tokens) { i, _ in isToken(i) } + seen(tokens) { _, j in isToken(j) }
    }

    /// All positions but the relay, closed to a circle.
    private func ring(_ reach: Int) -> [SparsePart] {
        let positions = (0..<length).filter { !tokens.contains($0) }
        let count = positions.count
        guard count > 0 else { return [] }
        let layout = SparseLayout.listed(positions, length, block: tile(min(reach, count), count))
        let block = layout.block
        let lists = (0..<layout.blockCount).map { index -> [Int] in
            let (start, end) = (index * block - reach, min((index + 1) * block, count) - 1 + reach)
            if end - start + 1 >= count { return Array(0..<layout.blockCount) }
            var blocks = Set(max(start, 0) / block...min(end, count - 1) / block)
            if start < 0 { blocks.formUnion((count + start) / block...(count - 1) / block) }
            if end >= count { blocks.formUnion(0...(end - count) / block) }
            return blocks.sorted()
        }
        return [SparsePart(queries: layout, keys: layout, lists: causal(lists, layout), contains: contains)]
    }

    /// The first and last block of queries see everything; those between see five blocks and the random ones.
    private func bigBird(_ block: Int, rowBlock: Int) -> [SparsePart] {
        let layout = SparseLayout.sequence(length, block: block)
        let last = layout.blockCount - 1
        let lists = (0...last).map { index -> [Int] in
            if index == 0 || index == last { return [] }
            return Set([0, index - 1, index, index + 1, last] + randomBlocks[index]).sorted()
        }
        let edges = Array(0..<layout.block) + Array(max(last * layout.block, layout.block)..<max(length, layout.block))
        let rows = seeing(edges) { i, _ in isEdge(i.floorDivided(by: rowBlock), rowBlock) }
        return rows + [SparsePart(queries: layout, keys: layout, lists: causal(lists, layout), contains: contains)]
    }

    private func custom(_ rows: [[Bool]]) -> SparsePart {
        let layout = SparseLayout.sequence(length, block: 32)
        let block = layout.block
        let lists = (0..<layout.blockCount).map { index -> [Int] in
            let members = rows[index * block..<min((index + 1) * block, length)]
            return (0..<layout.blockCount).filter { key in
                let range = key * block..<min((key + 1) * block, length)
                return members.contains { $0[range].contains(true) }
            }
        }
        return SparsePart(queries: layout, keys: layout, lists: causal(lists, layout), contains: contains)
    }

    /// Without the blocks of keys that are wholly later than the queries.
    private func causal(_ lists: [[Int]], _ layout: SparseLayout) -> [[Int]] {
        guard isCausal else { return lists }
        return lists.enumerated().map { index, list in
            list.filter { layout.bounds($0).first <= layout.bounds(index).last }
        }
    }
}

/// Random blocks of keys for one head: made from a seed, so that a pattern is a value, and the same for every evaluation.
private struct RandomBlockLists {
    private(set) var lists: [[Int]] = []

    init(_ atom: SparseAtom, length: Int, head: Int, isCausal: Bool) {
        switch atom {
        case .bigBird(let block, let random):
            let count = (length + block - 1) / block
            lists = Self.lists(random, head, rows: count > 2 ? 1..<count - 1 : 0..<0, of: count) { row in
                // Neighbors and edges are seen anyway. Next to an edge the far neighbor of the other edge is left out, as
                // in the authors' code.
                var excluded = Set([row - 1, row, row + 1])
                if row == 1 { excluded.insert(count - 2) }
                if row == count - 2 { excluded.insert(1) }
                return (range: 1..<(isCausal ? max(1, row) : count - 1), excluded: excluded)
            }
        case .random(let block, let random):
            let count = (length + block - 1) / block
            lists = Self.lists(random, head, rows: 0..<count, of: count) { row in
                (range: 0..<(isCausal ? row : count), excluded: [row])
            }
        default: break
        }
    }

    private static func lists(
        _ random: RandomBlocks, _ head: Int, rows: Range<Int>, of count: Int,
        candidates: (Int) -> (range: Range<Int>, excluded: Set<Int>)
    ) -> [[Int]] {
        var lists = [[Int]](repeating: [], count: count)
        switch random {
        case .given(let heads):
            let given = heads[head % heads.count]
            torchPrecondition(
                given.count == rows.count && !given.joined().contains { $0 >= count }, in: "SparsePattern",
                "randomBlocks lists \(given.count) blocks of queries; a sequence of \(count) blocks needs \(rows.count)"
            )
            for (row, list) in zip(rows, given) { lists[row] = list }
        case .drawn(let wanted, let seed):
            for row in rows {
                let (range, excluded) = candidates(row)
                var generator = SplitMix(UInt64(bitPattern: Int64(seed ?? 0)), UInt64(head), UInt64(row))
                lists[row] = draw(wanted, from: range, excluding: excluded, using: &generator)
            }
        }
        return lists
    }

    private static func draw(
        _ count: Int, from range: Range<Int>, excluding excluded: Set<Int>, using generator: inout SplitMix
    ) -> [Int] {
        // Few are asked for from many: draw until they are different. Else pick from all that there are.
        if range.count > 4 * (count + excluded.count) {
            var chosen: [Int] = []
            while chosen.count < count {
                let next = Int.random(in: range, using: &generator)
                if !excluded.contains(next) && !chosen.contains(next) { chosen.append(next) }
            }
            return chosen.sorted()
        }
        return range.filter { !excluded.contains($0) }.shuffled(using: &generator).prefix(count).sorted()
    }
}

/// Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators": a stream for each seed, head and row.
private struct SplitMix: RandomNumberGenerator {
    private var state: UInt64 = 0

    init(_ words: UInt64...) {
        for word in words { state = mixed(state &+ word &+ 0x9E37_79B9_7F4A_7C15) }
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        return mixed(state)
    }

    private func mixed(_ word: UInt64) -> UInt64 {
        var z = word
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
