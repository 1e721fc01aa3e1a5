// The position biases w of the Attention Free Transformer (arXiv 2105.14103, sections 3.1 to 3.3).
import Torch
import TorchNN

/// w of AFT-full and AFT-local, one number for each pair of positions up to a maximum length: a matrix, for a window
/// its band, or w_tt' = u_t · v_t'.
public final class AFTPairBias: Module {
    /// `[length, length]`, query positions first; of a band `[length, offsets]`.
    public let w: Parameter?
    /// Of the queries' positions `[length, dim]`.
    public let u: Parameter?
    /// Of the keys' positions `[length, dim]`.
    public let v: Parameter?
    public let maximumLength: Int
    /// s: where |t - t'| is not below it, the bias is 0. nil keeps all, as AFT-full does.
    public let window: Int?
    /// t' - t for the columns of a band.
    let bandOffsets: ClosedRange<Int>?

    /// The band of a window, with numbers for the pairs in it alone; a causal one has no later keys.
    public static func band(
        maximumLength: Int, window: Int, isCausal: Bool, using generator: RandomGenerator
    ) -> AFTPairBias {
        AFTPairBias(
            maximumLength: maximumLength, dim: nil, window: window,
            bandOffsets: 1 - max(window, 1)...(isCausal ? 0 : max(window, 1) - 1), using: generator)
    }

    /// Drawn with the deviation 0.1, for the paper's N(0, 10⁻²).
    ///
    /// - Parameter dim: d', the width of u and v; nil for a matrix.
    public convenience init(maximumLength: Int, dim: Int?, window: Int? = nil, using generator: RandomGenerator) {
        self.init(maximumLength: maximumLength, dim: dim, window: window, bandOffsets: nil, using: generator)
    }

    private init(
        maximumLength: Int, dim: Int?, window: Int?, bandOffsets: ClosedRange<Int>?, using generator: RandomGenerator
    ) {
        torchPrecondition(
            maximumLength > 0 && dim ?? 1 > 0 && window ?? 1 > 0, in: "AFTPairBias",
            "expected positive sizes, got maximumLength \(maximumLength), dim \(dim ?? 1), window \(window ?? 1)")
        self.maximumLength = maximumLength
        self.window = window
        self.bandOffsets = bandOffsets
        func drawn(_ columns: Int) -> Parameter {
            let parameter = Parameter(.uninitialized([max(maximumLength, 0), max(columns, 0)]))
            Initializer.normal(deviation: 0.1).apply(to: parameter, using: generator)
            return parameter
        }
        w = dim == nil ? drawn(bandOffsets?.count ?? maximumLength) : nil
        u = dim.map { drawn($0) }
        v = dim.map { drawn($0) }
        super.init()
    }

    /// What w is made of: itself, or u and v.
    var factors: [Tensor] { [w, u, v].compactMap { $0?.value } }

    /// w of the first positions, literally: `[1, length, length]`.
    func matrix(_ length: Int) -> Tensor {
        if let bandOffsets, let w {
            let places = Tensor.arange(0..<length, device: w.value.device)
            let columns = places.unsqueezed(0) - places.unsqueezed(1) - bandOffsets.lowerBound
            let isMissing = (columns .< 0 .|| columns .>= bandOffsets.count)
            let found = w.value.sliced(0, 0..<length).gathered(1, columns.masked(where: isMissing, with: 0))
            return found.masked(where: isMissing, with: 0).unsqueezed(0)
        }
        let parts = factors.map { $0.sliced(0, 0..<length) }
        var whole = parts.count == 2 ? matmul(parts[0], parts[1].transposed()) : parts[0].sliced(1, 0..<length)
        if let window { whole = whole.lowerTriangle(diagonal: window - 1).upperTriangle(diagonal: 1 - window) }
        return whole.unsqueezed(0)
    }

    /// w_t,t+o for `count` positions t from `first` on and every offset o: `[count, offsets]`, 0 where there is no such
    /// position. Time O(count offsets dim).
    func band(from first: Int, count: Int, offsets: ClosedRange<Int>) -> Tensor {
        let end = max(first, min(first + count, maximumLength))
        let known: Tensor
        if let u, let v {
            known = productBand(
                u.value.sliced(0, first..<end), v.value, keysFrom: first + offsets.lowerBound, offsets.count)
        } else if let bandOffsets, let w {
            let start = offsets.lowerBound - bandOffsets.lowerBound
            known = w.value.sliced(0, first..<end).sliced(1, start..<start + offsets.count)
        } else {
            known = matrixBand(first..<end, offsets)
        }
        return end < first + count ? known.padded(0, after: first + count - end) : known
    }

    /// u_i · v_(i + start + o) for the offsets o from 0 to `count`, as products of blocks of u with the keys around them.
    private func productBand(_ u: Tensor, _ v: Tensor, keysFrom start: Int, _ count: Int) -> Tensor {
        let rows = u.size(0)
        if rows == 0 { return .zeros([0, count], dtype: u.dtype, device: u.device) }
        let block = min(128, rows)
        let blocks = (rows + block - 1) / block
        let columns = block + count - 1
        let end = start + (blocks - 1) * block + columns
        let (lower, upper) = (min(max(start, 0), maximumLength), max(0, min(end, maximumLength)))
        let keys = v.sliced(0, lower..<max(lower, upper))
            .padded(0, before: lower - start, after: end - max(lower, upper))
            .unfolded(0, size: columns, step: block)  // [blocks, dim, columns]
        let products = matmul(u.padded(0, after: blocks * block - rows).reshaped(blocks, block, -1), keys)
        // Row r has its band from column r on: rows longer by one make that a column.
        return products.flattened(1, 2).padded(1, after: block).reshaped(blocks, block, columns + 1)
            .sliced(2, 0..<count).flattened(0, 1).sliced(0, 0..<rows)
    }

    private func matrixBand(_ rows: Range<Int>, _ offsets: ClosedRange<Int>) -> Tensor {
        guard let w else { return .zeros([rows.count, offsets.count]) }
        let device = w.value.device
        let places =
            Tensor.arange(rows, device: device).unsqueezed(1)
            + Tensor.arange(offsets.lowerBound..<offsets.upperBound + 1, device: device).unsqueezed(0)
        let isMissing = (places .< 0 .|| places .>= maximumLength)
        let found = w.value.sliced(0, rows).gathered(1, places.masked(where: isMissing, with: 0))
        return found.masked(where: isMissing, with: 0)
    }
}

/// w of AFT-conv, for each head and distance: a kernel over a sequence, or over a grid that the sequence fills row by
/// row.
///
/// Per head, w = γ (w - mean(w)) / std(w) + β over its taps, γ and β 0 at first: the mechanism starts as AFT-simple.
public final class AFTTapBias: Module {
    /// `[heads, kernel]`, or `[heads, kernel, kernel]` on a grid.
    public let w: Parameter
    /// `[heads]`; nil with a single tap, which has no deviation, and then stands for itself.
    public let gamma: Parameter?
    /// `[heads]`
    public let beta: Parameter?
    /// s, in each direction.
    public let kernel: Int
    /// The length of the grid's rows; nil for a sequence.
    public let gridWidth: Int?

    /// - Parameter standardizes: γ and β; the default is to have them where there is more than one tap.
    public init(
        heads: Int, kernel: Int, gridWidth: Int? = nil, standardizes: Bool? = nil, using generator: RandomGenerator
    ) {
        torchPrecondition(
            heads > 0 && kernel > 0 && gridWidth ?? 1 > 0, in: "AFTTapBias",
            "expected positive sizes, got heads \(heads), kernel \(kernel), gridWidth \(gridWidth ?? 1)")
        self.kernel = kernel
        self.gridWidth = gridWidth
        let shape = [max(heads, 0), max(kernel, 0)] + (gridWidth == nil ? [] : [max(kernel, 0)])
        let hasMany = standardizes ?? (shape.dropFirst().reduce(1, *) > 1)
        let weights = Parameter(.uninitialized(shape))
        (hasMany ? Initializer.normal(deviation: 0.1) : .zeros).apply(to: weights, using: generator)
        w = weights
        gamma = hasMany ? Parameter(.zeros([max(heads, 0)])) : nil
        beta = hasMany ? Parameter(.zeros([max(heads, 0)])) : nil
        super.init()
    }

    public var heads: Int { w.value.size(0) }

    /// The bias of each tap `[heads, kernel]`, or `[heads, kernel²]` row by row.
    var values: Tensor {
        let taps = w.value.flattened(1)
        guard let gamma, let beta else { return taps }
        let deviation = taps.variance(1, correction: 1, keepDim: true).sqrt()
        return gamma.value.unsqueezed(1) * (taps - taps.mean(1, keepDim: true)) / deviation + beta.value.unsqueezed(1)
    }

    /// The taps as biases of pairs, literally: `[heads, length, length]`, 0 outside of the kernel.
    func matrix(_ length: Int, isCausal: Bool) -> Tensor {
        let places = Tensor.arange(0..<length, device: w.value.device)
        let reach = isCausal ? kernel - 1 : (kernel - 1) / 2
        // Which tap it is from the place of the query (down) to that of the key (to the right).
        func tap(_ places: Tensor) -> Tensor { places.unsqueezed(0) - places.unsqueezed(1) + reach }
        func isInside(_ tap: Tensor) -> Tensor { (tap .>= 0 .&& tap .< kernel) }
        var index = tap(places)
        var inside = isInside(index)
        if let gridWidth {
            let (row, column) = (
                tap(places.floorDivided(by: gridWidth)), tap(places.remainder(dividingBy: gridWidth))
            )
            index = row * kernel + column
            inside = (isInside(row) .&& isInside(column))
        }
        let table = values.padded(1, after: 1)  // the last entry is what stands outside
        let entries = index.masked(where: .!inside, with: table.size(1) - 1).flattened()
        return table.indexed(1, entries).reshaped(-1, length, length)
    }
}
