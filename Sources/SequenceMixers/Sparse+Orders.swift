/// An order of the keys in which what a query sees through an atom is a few ranges.
///
/// What a query may see stands in rising order: so a range of tokens is a range of places, and what one order has already shown
/// leaves ranges of the next.
enum SparseOrder: Equatable {
    /// p, p + n, p + 2 n, … for every p < n. Each query sees only tokens of its own class; with n = 1 there is one.
    case residues(Int)
    /// The last `count` positions of every block of `size`, and no others; queries stand as in the sequence.
    case columns(size: Int, count: Int)

    static let sequence = SparseOrder.residues(1)

    /// What covers others comes before them.
    var rank: Int {
        switch self {
        case .residues(let count): count
        case .columns: .max
        }
    }

    /// Whether all that a query can see in the other order is in this one's class.
    func covers(_ other: SparseOrder) -> Bool {
        switch (self, other) {
        case (.residues(let mine), .residues(let others)): others.isMultiple(of: mine)
        case (.residues(let mine), .columns): mine == 1
        case (.columns, _): false
        }
    }

    /// The queries at its places; nil where they stand as in the sequence.
    func queries(_ length: Int) -> [Int]? {
        guard case .residues(let count) = self, count > 1 else { return nil }
        return (0..<min(count, length)).flatMap { Array(stride(from: $0, to: length, by: count)) }
    }

    /// The keys at its places; nil where they stand as in the sequence.
    func keys(_ length: Int) -> [Int]? {
        guard case .columns(let size, let count) = self else { return queries(length) }
        return (0..<length).filter { $0 % size >= size - count }
    }

    /// Where the keys are that query i can see in this order and that lie among the tokens.
    func places(of tokens: Range<Int>, from i: Int, length: Int) -> Range<Int> {
        switch self {
        case .residues(let count):
            let residue = i % count
            let start = residue * (length / count) + min(residue, length % count)
            func place(_ token: Int) -> Int { start + (token - residue + count - 1) / count }
            return place(tokens.lowerBound)..<place(tokens.upperBound)
        case .columns(let size, let count):
            func place(_ token: Int) -> Int { token / size * count + max(0, token % size - (size - count)) }
            return place(tokens.lowerBound)..<place(tokens.upperBound)
        }
    }
}
