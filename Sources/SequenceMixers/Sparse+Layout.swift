import Torch

/// An order of the positions in which what one query sees lies close together, cut into blocks of one size.
///
/// Positions fall into classes of one length; each class begins with a new block, and what is missing is filled up.
struct SparseLayout {
    private enum Order {
        /// 0, 1, 2, …
        case sequence
        /// p, p + s, p + 2 s, … for every p < s.
        case residues
        /// s positions after each other.
        case chunks
        /// Some of the positions, in rising order, and for every position its place among them or after the last.
        case listed([Int], places: Tensor, inverse: Tensor)
    }

    private let order: Order
    let length: Int
    let classes: Int
    let classLength: Int
    /// Positions in a block.
    let block: Int
    let blocksPerClass: Int

    private init(_ order: Order, length: Int, classes: Int, classLength: Int, block: Int) {
        self.order = order
        self.length = length
        self.classes = classes
        self.classLength = classLength
        self.block = max(1, min(block, classLength))
        blocksPerClass = (classLength + self.block - 1) / self.block
    }

    static func sequence(_ length: Int, block: Int) -> SparseLayout {
        SparseLayout(.sequence, length: length, classes: 1, classLength: length, block: block)
    }

    /// - Parameter count: at most `length`.
    static func residues(_ count: Int, _ length: Int, block: Int) -> SparseLayout {
        if count == 1 { return .sequence(length, block: block) }
        return SparseLayout(
            .residues, length: length, classes: count, classLength: (length + count - 1) / count, block: block)
    }

    /// - Parameter size: at most `length`.
    static func chunks(of size: Int, _ length: Int, block: Int) -> SparseLayout {
        SparseLayout(.chunks, length: length, classes: (length + size - 1) / size, classLength: size, block: block)
    }

    /// - Parameter positions: in rising order, at least one.
    static func listed(_ positions: [Int], _ length: Int, block: Int) -> SparseLayout {
        var inverse = [Int](repeating: positions.count, count: length)
        for (place, position) in positions.enumerated() { inverse[position] = place }
        return SparseLayout(
            .listed(positions, places: Tensor(positions), inverse: Tensor(inverse)), length: length, classes: 1,
            classLength: positions.count, block: block)
    }

    /// The largest size up to `limit` that cuts `count` into equal blocks, or nearly so.
    static func evenBlock(_ count: Int, limit: Int = 64) -> Int {
        let blocks = (count + limit - 1) / limit
        return (count + blocks - 1) / max(blocks, 1)
    }

    var blockCount: Int { classes * blocksPerClass }

    /// The first and the last position in a block, for layouts of one class.
    func bounds(_ index: Int) -> (first: Int, last: Int) {
        let (first, last) = (index * block, min((index + 1) * block, classLength) - 1)
        if case .listed(let positions, _, _) = order { return (positions[first], positions[last]) }
        return (first, last)
    }

    // MARK: Tensors

    /// x `[batch, heads, length, d]` in this order, zeros where positions are missing:
    /// `[batch, heads, blockCount * block, d]`.
    func arranged(_ x: Tensor) -> Tensor {
        let (batch, heads, width) = (x.size(0), x.size(1), x.size(3))
        let filled = blocksPerClass * block
        switch order {
        case .sequence: return x.padded(2, after: filled - length)
        case .listed(_, let places, _):
            return x.indexed(2, places.to(x.device)).padded(2, after: filled - classLength)
        case .residues:
            let grid = x.padded(2, after: classes * classLength - length)
                .reshaped(batch, heads, classLength, classes, width).transposed(2, 3)
            return grid.padded(3, after: filled - classLength).reshaped(batch, heads, classes * filled, width)
        case .chunks:
            let grid = x.padded(2, after: classes * classLength - length)
                .reshaped(batch, heads, classes, classLength, width)
            return grid.padded(3, after: filled - classLength).reshaped(batch, heads, classes * filled, width)
        }
    }

    /// The inverse: `[batch, heads, blockCount * block, d]` to `[batch, heads, length, d]`, with `value` for positions that
    /// the layout does not have. With zeros it is the adjoint, too.
    func restored(_ y: Tensor, missing value: Double = 0) -> Tensor {
        let (batch, heads, width) = (y.size(0), y.size(1), y.size(3))
        let filled = blocksPerClass * block
        switch order {
        case .sequence: return y.sliced(2, 0..<length)
        case .listed(_, _, let inverse):
            return y.sliced(2, 0..<classLength).padded(2, after: 1, value: value).indexed(2, inverse.to(y.device))
        case .residues:
            let grid = y.reshaped(batch, heads, classes, filled, width).sliced(3, 0..<classLength).transposed(2, 3)
            return grid.reshaped(batch, heads, classes * classLength, width).sliced(2, 0..<length)
        case .chunks:
            let grid = y.reshaped(batch, heads, classes, filled, width).sliced(3, 0..<classLength)
            return grid.reshaped(batch, heads, classes * classLength, width).sliced(2, 0..<length)
        }
    }

    /// The position that stands at each place, -1 where there is none: `[blockCount, block]`.
    var positions: Tensor {
        let counted = Tensor.arange(1..<length + 1).reshaped(1, 1, length, 1)
        return arranged(counted).reshaped(blockCount, block) - 1
    }
}
