import Torch

extension SparseRegion {
    /// Whether what every query sees is a few ranges of keys.
    var isFewRanges: Bool {
        switch atom {
        case .window(let radius, let dilation): radius == 0 || dilation == 1 || dilation >= length
        case .stride(let stride): stride == 1 || stride >= length
        case .columns(let size, let count): count == size
        case .block, .global, .star, .bigBird, .random, .custom: true
        }
    }

    /// The keys that query i sees, in any order, as long as there are few ranges of them.
    func ranges(of i: Int) -> [Range<Int>] {
        switch atom {
        case .window(let radius, let dilation):
            let reach = dilation == 1 ? min(radius, length) : 0
            return [i - reach..<i + reach + 1]
        case .stride(let stride): return stride == 1 ? [0..<length] : [i..<i + 1]
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

    /// What ``intervalAttention(_:_:_:intervals:keyMask:scale:distances:)`` takes: int32 `[ranges, length, 2]`, the same for
    /// all heads, or `[heads, ranges, length, 2]`; nil where a query sees too many ranges.
    func intervals(length: Int, heads: Int, isCausal: Bool) -> Tensor? {
        let ofHeads = (0..<heads).map { regions(length: length, head: $0, isCausal: isCausal) }
        guard ofHeads.joined().allSatisfy(\.isFewRanges) else { return nil }
        let isShared = choices.count == 1 && !ofHeads.joined().contains(where: \.isPerHead)
        var lists: [[Range<Int>]] = []
        for head in isShared ? Array(ofHeads.prefix(1)) : ofHeads {
            for i in 0..<length {
                let seen = head.flatMap { $0.ranges(of: i) } + [i..<i + 1]
                lists.append(Self.merged(seen, within: 0..<(isCausal ? i + 1 : length)))
                if lists[lists.count - 1].count > Self.mostRanges { return nil }
            }
        }
        return Self.table(lists, length: length, isShared: isShared)
    }

    /// In order, without overlaps.
    private static func merged(_ ranges: [Range<Int>], within bounds: Range<Int>) -> [Range<Int>] {
        var found: [Range<Int>] = []
        let inside = ranges.map { $0.clamped(to: bounds) }.filter { !$0.isEmpty }
        for range in inside.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = found.last, range.lowerBound <= last.upperBound {
                found[found.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                found.append(range)
            }
        }
        return found
    }

    /// The lists of all queries of one head after the other, filled up with empty ranges.
    private static func table(_ lists: [[Range<Int>]], length: Int, isShared: Bool) -> Tensor {
        let count = max(1, lists.map(\.count).max() ?? 0)
        var numbers = [Int32](repeating: 0, count: lists.count * count * 2)
        for (row, list) in lists.enumerated() {
            let (head, i) = (row / length, row % length)
            for (index, range) in list.enumerated() {
                let place = ((head * count + index) * length + i) * 2
                numbers[place] = Int32(clamping: range.lowerBound)
                numbers[place + 1] = Int32(clamping: range.upperBound)
            }
        }
        let shape = (isShared ? [] : [lists.count / length]) + [count, length, 2]
        return Tensor(numbers, shape: shape)
    }
}
