// Sums of exponentials that neither overflow nor cancel, in parallel over the positions of a sequence.
//
// A sum over keys is a triple: Σ e^k v = n e^m and Σ e^k = c e^m with m the largest k, so that c is at least 1 and the
// mean n / c never needs e^m. Two triples merge at M = max(m₁, m₂) as n = n₁ e^(m₁-M) + n₂ e^(m₂-M), c alike. Nothing
// is ever subtracted from a sum. The m are constants of autograd: the mean does not depend on them.
import Torch

/// Σ e^k v = numerator · e^exponent and Σ e^k = denominator · e^exponent, at each position over keys of its own.
///
/// Exponents and denominators `[…, positions, channels or 1]`, numerators `[…, positions, channels]`.
struct ExponentialSums {
    var exponent: Tensor
    var numerator: Tensor
    var denominator: Tensor

    /// The exponent of a sum over no keys, and of a key that does not count: beside any other, e to it is 0. It is
    /// finite, so that positions which see no other key give the mean 0 and not NaN.
    static let nothing = -1e30

    /// Sums of one key each.
    static func ofKeys(_ k: Tensor, _ v: Tensor) -> ExponentialSums {
        ExponentialSums(exponent: k, numerator: v, denominator: .ones(like: k))
    }

    private func changed(_ change: (_ part: Tensor, _ nothing: Double) -> Tensor) -> ExponentialSums {
        ExponentialSums(
            exponent: change(exponent, Self.nothing), numerator: change(numerator, 0),
            denominator: change(denominator, 0))
    }

    func mapped(_ change: (Tensor) -> Tensor) -> ExponentialSums { changed { part, _ in change(part) } }

    /// More positions around, of sums over nothing.
    func padded(_ dim: Int, before: Int, after: Int) -> ExponentialSums {
        changed { $0.padded(dim, before: before, after: after, value: $1) }
    }

    /// Moved on by `count` positions; the first ones are sums over nothing.
    func shifted(_ dim: Int, by count: Int) -> ExponentialSums {
        changed { $0.padded(dim, before: count, value: $1).sliced(dim, 0..<$0.size(dim)) }
    }

    /// The positions of `next` after these.
    func followed(by next: ExponentialSums) -> ExponentialSums {
        ExponentialSums(
            exponent: concatenate([exponent, next.exponent], dim: -2),
            numerator: concatenate([numerator, next.numerator], dim: -2),
            denominator: concatenate([denominator, next.denominator], dim: -2))
    }

    /// At each position the sums over its own keys and those of `other`.
    func merged(with other: ExponentialSums) -> ExponentialSums {
        let largest = withNoGrad { maximum(exponent, other.exponent) }
        let (own, others) = ((exponent - largest).exp(), (other.exponent - largest).exp())
        return ExponentialSums(
            exponent: largest, numerator: numerator * own + other.numerator * others,
            denominator: denominator * own + other.denominator * others)
    }

    /// At each position of the last dimension but one the sums over all keys up to it. Time and memory O(positions).
    func prefixes() -> ExponentialSums {
        let length = exponent.size(-2)
        let largest = withNoGrad { exponent.detached().cumulativeMaximum(-2) }
        let before = concatenate(
            [largest.sliced(-2, 0..<1), largest.sliced(-2, 0..<max(length - 1, 0))], dim: -2)
        let weight = (exponent - largest).exp()
        let sums = gatedSums((before - largest).exp(), [weight * numerator, weight * denominator])
        return ExponentialSums(exponent: largest, numerator: sums[0], denominator: sums[1])
    }

    /// Σ e^k v / Σ e^k over the keys of all parts and windows together.
    static func mean(_ parts: [ExponentialSums], _ windows: [ExponentialWindow]) -> Tensor {
        let tops = windows.map { $0.largest() } + parts.map(\.exponent)
        let largest = tops[1...].reduce(tops[0]) { maximum($0, $1) }
        var pairs = windows.map { $0.sums(relativeTo: largest) }
        for part in parts {
            let scale = (part.exponent - largest).exp()
            pairs.append((part.numerator * scale, part.denominator * scale))
        }
        let numerator = pairs[1...].reduce(pairs[0].numerator) { $0 + $1.numerator }
        return numerator / pairs[1...].reduce(pairs[0].denominator) { $0 + $1.denominator }
    }
}

// MARK: - Running sums

/// h_t = gate_t h_{t-1} + x_t along the last dimension but one, for each x of `values`; the gates, at most 1, are
/// constants.
///
/// Its gradient is the same recurrence backwards. Time and memory O(positions).
private func gatedSums(_ gates: Tensor, _ values: [Tensor]) -> [Tensor] {
    withCustomGradient(values) { values in
        (
            runningSums(gates, values, backwards: false),
            { gradients in
                // dL/dx_t = dL/dh_t + gate_{t+1} dL/dx_{t+1}
                let later = gates.sliced(-2, 1..<gates.size(-2)).padded(-2, after: 1)
                var found = runningSums(later, gradients.compactMap { $0 }, backwards: true)[...]
                return gradients.map { $0 == nil ? nil : found.removeFirst() }
            }
        )
    }
}

/// h_t = x_t + gate_t h_{t-1}, or backwards x_t + gate_t h_{t+1}.
///
/// In chunks of a fixed size, all chunks at once; the chunks' last sums then go the same way and are carried into the
/// next.
private func runningSums(_ gates: Tensor, _ values: [Tensor], backwards: Bool) -> [Tensor] {
    let (length, dim) = (gates.size(-2), gates.rank - 1)
    if length < 2 || values.isEmpty { return values }
    let chunk = min(16, length)
    let chunks = (length + chunk - 1) / chunk
    // A copy [..., chunks, chunk, channels], to be worked on in place.
    func cut(_ x: Tensor) -> Tensor {
        let missing = chunks * chunk - length
        let whole = missing > 0 ? x.padded(-2, after: missing) : x.cloned()
        return whole.reshaped(to: Array(x.shape.dropLast(2)) + [chunks, chunk, x.size(-1)])
    }
    let decay = cut(gates)  // becomes the product of the chunk's gates up to each
    let sums = values.map(cut)
    let order = backwards ? Array((0..<chunk).reversed()) : Array(0..<chunk)
    for (before, place) in zip(order, order.dropFirst()) {
        let gate = decay.selected(dim, place)
        for x in sums { x.selected(dim, place).addProductInPlace(gate, x.selected(dim, before)) }
        gate.copyInPlace(from: gate * decay.selected(dim, before))
    }
    if chunks > 1 {
        let last = order[chunk - 1]
        let ends = runningSums(
            decay.selected(dim, last), sums.map { $0.selected(dim, last) }, backwards: backwards)
        for (x, end) in zip(sums, ends) {
            let carried =
                backwards
                ? end.sliced(-2, 1..<chunks).padded(-2, after: 1) : end.sliced(-2, 0..<chunks - 1).padded(-2, before: 1)
            x.addProductInPlace(decay, carried.unsqueezed(dim))
        }
    }
    return zip(sums, values).map { sum, value in
        sum.reshaped(to: Array(value.shape.dropLast(2)) + [chunks * chunk, value.size(-1)]).sliced(-2, 0..<length)
    }
}

// MARK: - Windows

/// Keys around each position of a grid, with a bias for each place in the window: position (y, x) sees the keys
/// (y + i, x + j) of a grid that is larger than its own by `rows` - 1 and `columns` - 1. A sequence is a grid of one
/// row.
///
/// Time O(positions × window), memory O(positions): weights are computed again in the backward pass.
struct ExponentialWindow {
    /// `[batch, heads, height + rows - 1, width + columns - 1, channels or 1]`
    var exponent: Tensor
    /// `[…, channels]`
    var numerator: Tensor
    /// As the exponents; nil where all are 1, as those of single keys.
    var denominator: Tensor?
    /// `[batch or 1, heads or 1, height or 1, width or 1, rows * columns]`; nil is 0.
    var bias: Tensor?
    var rows: Int
    var columns: Int

    private var places: Range<Int> { 0..<rows * columns }

    /// Some of the grid's rows, or of a single row's positions, so few that all places of their windows can be gone
    /// through while the numbers stay near the processor.
    private struct Block {
        let dim: Int
        let range: Range<Int>

        /// Its part of a tensor with an entry for each position, or one for all.
        func part(_ x: Tensor) -> Tensor { x.size(dim) > 1 ? x.sliced(dim, range) : x }
    }

    private var blocks: [Block] {
        let (height, width) = (exponent.size(2) - rows + 1, exponent.size(3) - columns + 1)
        let (dim, extent) = height > 1 ? (2, height) : (3, width)
        let each = numerator.size(0) * numerator.size(1) * numerator.size(4) * (dim == 2 ? width : 1)
        let step = max(8, (1 << 16) / max(each, 1))
        return stride(from: 0, to: extent, by: step).map { Block(dim: dim, range: $0..<min($0 + step, extent)) }
    }

    /// Of a tensor as large as the keys' grid, what a block's windows reach: a view.
    private func around(_ x: Tensor, _ block: Block) -> Tensor {
        x.sliced(
            block.dim, block.range.lowerBound..<block.range.upperBound + (block.dim == 2 ? rows : columns) - 1)
    }

    private func window(of block: Block) -> ExponentialWindow {
        ExponentialWindow(
            exponent: around(exponent, block), numerator: around(numerator, block),
            denominator: denominator.map { around($0, block) }, bias: bias.map(block.part), rows: rows,
            columns: columns)
    }

    /// Of a tensor as large as the keys' grid, what the positions see at one place of their windows: a view.
    private func seen(_ x: Tensor, _ place: Int) -> Tensor {
        let (i, j) = (place / columns, place % columns)
        return x.sliced(2, i..<i + max(x.size(2) - rows + 1, 0)).sliced(3, j..<j + max(x.size(3) - columns + 1, 0))
    }

    private func biased(_ exponents: Tensor, _ place: Int) -> Tensor {
        bias.map { exponents + $0.selected(4, place).unsqueezed(4) } ?? exponents
    }

    /// e^(k + bias - largest), the large numbers subtracted first.
    private func weights(_ place: Int, at largest: Tensor) -> Tensor {
        biased(seen(exponent, place) - largest, place).exp()
    }

    /// The largest exponent that each position sees, bias included.
    func largest() -> Tensor {
        withNoGrad {
            let whole = detached()
            let parts = blocks.map { block in
                let window = whole.window(of: block)
                return window.places.dropFirst().reduce(window.biased(window.seen(window.exponent, 0), 0)) {
                    maximum($0, window.biased(window.seen(window.exponent, $1), $1))
                }
            }
            return concatenate(parts, dim: blocks.first?.dim ?? 3)
        }
    }

    /// Numerators and denominators of the windows' sums at the exponents `largest`, one for each position.
    func sums(relativeTo largest: Tensor) -> (numerator: Tensor, denominator: Tensor) {
        let inputs = [exponent, numerator] + [denominator, bias].compactMap { $0 }
        let sums = withCustomGradient(inputs) { _ in
            let window = detached()
            return (window.summed(at: largest), { window.pulledBack($0, at: largest) })
        }
        return (sums[0], sums[1])
    }

    private func detached() -> ExponentialWindow {
        ExponentialWindow(
            exponent: exponent.detached(), numerator: numerator.detached(), denominator: denominator?.detached(),
            bias: bias?.detached(), rows: rows, columns: columns)
    }

    private func zeroNumerators(like largest: Tensor) -> Tensor {
        .zeros(
            Array(largest.shape.dropLast()) + [numerator.size(-1)], dtype: numerator.dtype, device: numerator.device)
    }

    private func summed(at largest: Tensor) -> [Tensor] {
        let (total, count) = (zeroNumerators(like: largest), Tensor.zeros(like: largest))
        for block in blocks {
            window(of: block).add(to: block.part(total), block.part(count), at: block.part(largest))
        }
        return [total, count]
    }

    private func add(to total: Tensor, _ count: Tensor, at largest: Tensor) {
        for place in places {
            let weight = weights(place, at: largest)
            total.addProductInPlace(weight, seen(numerator, place))
            if let denominator {
                count.addProductInPlace(weight, seen(denominator, place))
            } else {
                count.addInPlace(weight)
            }
        }
    }

    private func pulledBack(_ gradients: [Tensor?], at largest: Tensor) -> [Tensor?] {
        let ofTotal = gradients[0] ?? zeroNumerators(like: largest)
        let ofCount = gradients[1] ?? .zeros(like: largest)
        let found = ExponentialWindow(
            exponent: .zeros(like: exponent), numerator: .zeros(like: numerator),
            denominator: denominator.map { .zeros(like: $0) }, bias: bias.map { .zeros(like: $0) }, rows: rows,
            columns: columns)
        for block in blocks {
            window(of: block).addGradients(
                to: found.window(of: block), block.part(ofTotal), block.part(ofCount), at: block.part(largest))
        }
        let present: [Tensor] = [found.denominator, found.bias].compactMap { $0 }
        return [found.exponent, found.numerator] + present
    }

    private func addGradients(
        to found: ExponentialWindow, _ ofTotal: Tensor, _ ofCount: Tensor, at largest: Tensor
    ) {
        for place in places {
            let weight = weights(place, at: largest)
            seen(found.numerator, place).addProductInPlace(weight, ofTotal)
            if let ofDenominator = found.denominator {
                seen(ofDenominator, place).addProductInPlace(weight, ofCount)
            }
            var slope = ofTotal * seen(numerator, place)
            if exponent.size(-1) < numerator.size(-1) { slope = slope.sum(-1, keepDim: true) }
            slope += denominator.map { ofCount * seen($0, place) } ?? ofCount
            slope *= weight
            seen(found.exponent, place).addInPlace(slope)
            if let ofBias = found.bias?.selected(4, place) {
                ofBias.addInPlace(summed(slope.sum(-1), to: ofBias))
            }
        }
    }

    /// Summed over the dimensions that are 1 in `model`.
    private func summed(_ x: Tensor, to model: Tensor) -> Tensor {
        zip(0..., model.shape).reduce(x) { $1.1 == 1 ? $0.sum($1.0, keepDim: true) : $0 }
    }
}
