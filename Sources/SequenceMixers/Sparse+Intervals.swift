import Torch

extension SparseRegion {
    /// In which order what every query sees is a few ranges.
    var order: SparseOrder {
        switch atom {
        case .window(let radius, let dilation): radius == 0 || dilation >= length ? .sequence : .residues(dilation)
        case .stride(let stride): stride >= length ? .sequence : .residues(stride)
        case .columns(let size, let count): count == size ? .sequence : .columns(size: size, count: count)
        case .block, .global, .star, .bigBird, .random, .custom: .sequence
        }
    }

    /// Ranges of tokens, in any order: query i sees those tokens in them that its ``order`` lets it see.
    func ranges(of i: Int) -> [Range<Int>] {
        switch atom {
        case .window(let radius, let dilation):
            let reach = dilation >= length ? 0 : min(radius, length) * dilation
            return [i - reach..<i + reach + 1]
        case .stride(let stride): return stride >= length ? [i..<i + 1] : [0..<length]
        case .block(let size): return [i / size * size..<i / size * size + min(size, length)]
        case .columns: return [0..<length]
        case .global: return tokens.contains(i) ? [0..<length] : tokens.map { $0..<$0 + 1 }
        case .star(_, let ring): return tokens.contains(i) ? [0..<length] : tokens.map { $0..<$0 + 1 } + circle(i, ring)
        case .bigBird(let block, _):
            let (own, last) = (i / block, (length - 1) / block)
            if own == 0 || own == last { return [0..<length] }
            return ([0, own - 1, own, own + 1, last] + randomBlocks[own]).map { $0 * block..<($0 + 1) * block }
        case .random(let block, _): return randomBlocks[i / block].map { $0 * block..<($0 + 1) * block }
        case .custom(let rows): return i < rows.count ? Self.runs(rows[i]) : []
        }
    }

    /// What lies up to `ring` places from i on the circle of all positions but the relay, which every query sees anyway.
    private func circle(_ i: Int, _ ring: Int) -> [Range<Int>] {
        let relay = tokens.first ?? length
        let count = length - tokens.count
        guard count > 2 * ring else { return [0..<length] }
        func position(_ place: Int) -> Int { place < relay ? place : place + 1 }
        func stretch(_ places: Range<Int>) -> Range<Int> {
            position(places.lowerBound)..<position(places.upperBound - 1) + 1
        }
        let place = i < relay ? i : i - 1
        let (from, to) = (place - ring, place + ring + 1)
        if from < 0 { return [stretch(0..<to), stretch(from + count..<count)] }
        if to > count { return [stretch(from..<count), stretch(0..<to - count)] }
        return [stretch(from..<to)]
    }

    private static func runs(_ row: [Bool]) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        var start: Int?
        for (j, isSeen) in (row + [false]).enumerated() {
            if isSeen, start == nil { start = j }
            if !isSeen, let from = start { (runs, start) = (runs + [from..<j], nil) }
        }
        return runs
    }
}

extension SparsePattern {
    /// More ranges than this are quicker in blocks that fit the pattern.
    private static let mostRanges = 24

    /// What ``intervalAttention(_:_:_:passes:keyMask:scale:)`` takes, a pass for each order that the atoms need; nil where a
    /// query sees too many ranges, or atoms of one head in orders that do not fit together.
    func passes(length: Int, heads: Int, isCausal: Bool) -> [IntervalPass]? {
        let ofHeads = (0..<heads).map { regions(length: length, head: $0, isCausal: isCausal) }
        let isShared = choices.count == 1 && !ofHeads.joined().contains(where: \.isPerHead)
        let views = (isShared ? Array(ofHeads.prefix(1)) : ofHeads).map {
            SparseView(regions: $0, length: length, isCausal: isCausal)
        }
        guard views.allSatisfy(\.isOrderly) else { return nil }
        // Columns come last, after a pass that has every query's own token: so the first one has all queries and all keys.
        let orders = Self.distinct(views.flatMap(\.orders))
        // [order][head · length + i]
        var lists = orders.map { _ in [[Range<Int>]]() }
        for view in views {
            for i in 0..<length {
                for (index, ranges) in view.places(in: orders, from: i).enumerated() {
                    if ranges.count > Self.mostRanges { return nil }
                    lists[index].append(ranges)
                }
            }
        }
        return zip(orders, lists).compactMap { order, lists in
            lists.allSatisfy(\.isEmpty) ? nil : Self.pass(order, lists, length: length, isShared: isShared)
        }
    }

    private static func distinct(_ orders: [SparseOrder]) -> [SparseOrder] {
        var found: [SparseOrder] = []
        for order in orders where !found.contains(order) { found.append(order) }
        return found.sorted { $0.rank < $1.rank }
    }

    /// The lists of all queries of one head after the other, each head in the pass's order, filled up with empty ranges.
    private static func pass(_ order: SparseOrder, _ lists: [[Range<Int>]], length: Int, isShared: Bool) -> IntervalPass
    {
        let count = lists.map(\.count).max() ?? 0
        let (queries, keys) = (order.queries(length), order.keys(length))
        var numbers = [Int32](repeating: 0, count: lists.count * count * 2)
        for row in lists.indices {
            let (head, place) = (row / length, row % length)
            for (index, range) in lists[head * length + (queries?[place] ?? place)].enumerated() {
                let start = ((head * count + index) * length + place) * 2
                numbers[start] = Int32(clamping: range.lowerBound)
                numbers[start + 1] = Int32(clamping: range.upperBound)
            }
        }
        let shape = (isShared ? [] : [lists.count / length]) + [count, length, 2]
        func tensor(_ order: [Int]?) -> Tensor? { order.map { Tensor($0).to(.int32) } }
        return IntervalPass(Tensor(numbers, shape: shape), queries: tensor(queries), keys: tensor(keys))
    }
}

/// What the queries of one head see, order by order.
private struct SparseView {
    let regions: [SparseRegion]
    let length: Int
    let isCausal: Bool
    let orders: [SparseOrder]

    init(regions: [SparseRegion], length: Int, isCausal: Bool) {
        self.regions = regions
        self.length = length
        self.isCausal = isCausal
        orders = [.sequence] + regions.map(\.order)
    }

    /// Whether a key that a query sees in two orders can be told from its place in the later one.
    var isOrderly: Bool {
        orders.allSatisfy { a in orders.allSatisfy { b in a == b || a.rank > b.rank || a.covers(b) } }
    }

    /// For every order, the places that query i sees of keys which it does not see in those before.
    func places(in orders: [SparseOrder], from i: Int) -> [[Range<Int>]] {
        let bounds = 0..<(isCausal ? i + 1 : length)
        var seen: [Range<Int>] = []
        return orders.map { order in
            var wanted = regions.filter { $0.order == order }.flatMap { $0.ranges(of: i) }
            if order == .sequence, !regions.contains(where: \.containsDiagonal) { wanted.append(i..<i + 1) }
            let tokens = merged(wanted.map { $0.clamped(to: bounds) })
            defer { seen += tokens }
            let new = seen.reduce(tokens) { rest, hole in rest.flatMap { $0.without(hole) } }
            return merged(new.map { order.places(of: $0, from: i, length: length) })
        }
    }
}

/// In rising order, without overlaps; neighbors are joined.
private func merged(_ ranges: [Range<Int>]) -> [Range<Int>] {
    var found: [Range<Int>] = []
    for range in ranges.filter({ !$0.isEmpty }).sorted(by: { $0.lowerBound < $1.lowerBound }) {
        if let last = found.last, range.lowerBound <= last.upperBound {
            found[found.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
        } else {
            found.append(range)
        }
    }
    return found
}

extension Range<Int> {
    /// What lies before and after the hole.
    fileprivate func without(_ hole: Range<Int>) -> [Range<Int>] {
        [
            lowerBound..<Swift.max(lowerBound, Swift.min(upperBound, hole.lowerBound)),
            Swift.min(upperBound, Swift.max(lowerBound, hole.upperBound))..<upperBound,
        ]
    }
}
