// Mega's attention (arXiv 2209.10655, sections 3.3 to 3.5): one head, whose scores get a bias that depends on distance.
//
//   softmax   A = softmax(Q Kᵀ / √z + b)
//   laplace   A = ½ (1 + erf((S - μ) / (σ √2))),  S = Q Kᵀ / len + b,  μ = √½, σ = √(1/4π), rounded as the authors do
//   relu2     A = relu(S)²
//
// len is the number of keys: of real ones where there is padding, and t + 1 for row t when causal. The bias b_ts is a
// number for each distance s - t (simple), or ⟨R_t a, R_s b⟩ with the rotations R of rotary positions, which is also a
// function of s - t. With chunks, queries and keys of one chunk meet each other only.
import Torch
import TorchNN

/// What makes weights of scores.
public enum MegaAttentionFunction: String, NamedChoice {
    case softmax, laplace
    /// relu(S)²
    case relu2
}

/// How scores know of distances.
public enum MegaBias: String, NamedChoice {
    /// A number for every distance up to a maximum.
    case simple
    /// A sum of sines and cosines of the distance, from two vectors; any length.
    case rotary
}

/// A number b added to the score of every pair of positions, by their distance.
public final class MegaRelativeBias: Module {
    /// Of `simple`: `[2 M - 1]` for distances s - t from 1 - M to M - 1.
    public let bias: Parameter?
    /// Of `rotary`: a `[z]`.
    public let alpha: Parameter?
    /// Of `rotary`: b `[z]`.
    public let beta: Parameter?
    /// Of `simple`: M.
    public let maximumLength: Int?

    /// - Parameters:
    ///   - queryDim: z, even for `rotary`.
    ///   - maximumLength: M, used by `simple` only.
    public init(_ kind: MegaBias, queryDim: Int, maximumLength: Int, using generator: RandomGenerator) {
        torchPrecondition(
            kind == .simple ? maximumLength > 0 : queryDim > 0 && queryDim.isMultiple(of: 2), in: "MegaRelativeBias",
            "expected a positive maximumLength, or for rotary an even queryDim, got \(maximumLength) and \(queryDim)")
        func normal(_ count: Int) -> Parameter {
            Parameter(Tensor.randomNormal([max(count, 1)], using: generator) * 0.02)
        }
        bias = kind == .simple ? normal(2 * maximumLength - 1) : nil
        alpha = kind == .rotary ? normal(queryDim) : nil
        beta = kind == .rotary ? normal(queryDim) : nil
        self.maximumLength = kind == .simple ? maximumLength : nil
        super.init()
    }

    /// b for the distances s - t of the range, which contains 0: a vector. Beyond M it is 0.
    func values(_ distances: Range<Int>) -> Tensor {
        if let bias, let maximumLength {
            let known = max(distances.lowerBound, 1 - maximumLength)..<min(distances.upperBound, maximumLength)
            let first = known.lowerBound + maximumLength - 1
            return bias.value.sliced(0, first..<first + known.count)
                .padded(
                    0, before: known.lowerBound - distances.lowerBound,
                    after: distances.upperBound - known.upperBound)
        }
        let waves = waves
        let angles = angles(distances, waves.cosines)
        return matmul(angles.cosines, waves.cosines) + matmul(angles.sines, waves.sines)
    }

    /// ⟨a, R_d b⟩ as a sum of cosines and sines of the distance d, one of each for a pair of channels: their frequencies
    /// (in double) and factors `[z / 2]`. Of `simple` there are none.
    var waves: (frequencies: Tensor, cosines: Tensor, sines: Tensor) {
        guard let alpha, let beta else { return (.zeros([0], dtype: .float64), .zeros([0]), .zeros([0])) }
        let (a, b) = (alpha.value.split(into: 2, dim: 0), beta.value.split(into: 2, dim: 0))
        return (frequencies(a[0]), a[0] * b[0] + a[1] * b[1], a[1] * b[0] - a[0] * b[1])
    }

    /// b_ts = b[M - 1 + s - t], or ⟨R_t a, R_s b⟩: `[n, n]`.
    func matrix(_ n: Int) -> Tensor {
        if let bias, let maximumLength {
            let places = (0..<n).flatMap { t in (0..<n).map { s in maximumLength - 1 + s - t } }
            return bias.value.indexed(0, Tensor(places, device: bias.value.device)).reshaped(n, n)
        }
        guard let alpha, let beta else { return .zeros([n, n]) }
        return matmul(rotated(alpha.value, n), rotated(beta.value, n).transposed())
    }

    /// R_t x for t from 0 up to n: `[n, z]`. Channels i and i + z/2 turn by t · 10000^(-2i/z).
    private func rotated(_ x: Tensor, _ n: Int) -> Tensor {
        let halves = x.split(into: 2, dim: 0)
        let angles = angles(0..<n, halves[0])
        return concatenate(
            [
                halves[0] * angles.cosines - halves[1] * angles.sines,
                halves[1] * angles.cosines + halves[0] * angles.sines,
            ], dim: 1)
    }

    /// `[positions, z/2]`; in double first, for a large angle has few digits after the point in float32.
    private func angles(_ positions: Range<Int>, _ half: Tensor) -> (cosines: Tensor, sines: Tensor) {
        let angles = Tensor.arange(positions, dtype: .float64, device: half.device).unsqueezed(1) * frequencies(half)
        return (angles.cos().to(half.dtype), angles.sin().to(half.dtype))
    }

    private func frequencies(_ half: Tensor) -> Tensor {
        let count = half.size(0)
        return pow(10000.0, Tensor.arange(0..<count, dtype: .float64, device: half.device) * (-1 / Double(count)))
    }
}

/// The attention inside a Mega layer, over the whole sequence or within chunks.
///
/// q, k `[batch, n, z]`, v `[batch, n, e]`. Time O(n c (z + e)) with chunks of c, O(n² (z + e)) without. Memory
/// O(n (z + e)): beyond a million weights they are computed tile by tile, and again for the gradients.
public final class MegaAttention: Module {
    public let relativeBias: MegaRelativeBias
    public let function: MegaAttentionFunction
    public let isCausal: Bool
    /// c; nil for none.
    public let chunk: Int?
    /// The probability that a weight is dropped in training.
    public let dropout: Double
    private let generator: RandomGenerator

    public init(
        _ function: MegaAttentionFunction, relativeBias: MegaRelativeBias, isCausal: Bool, chunk: Int?,
        dropout: Double = 0, using generator: RandomGenerator
    ) {
        torchPrecondition(
            chunk ?? 1 > 0 && (0..<1).contains(dropout), in: "MegaAttention",
            "expected a positive chunk and a dropout of at least 0 and below 1, got \(chunk ?? 1) and \(dropout)")
        self.function = function
        self.relativeBias = relativeBias
        self.isCausal = isCausal
        self.chunk = chunk
        self.dropout = dropout
        self.generator = generator
        super.init()
    }

    /// A V, chunk by chunk: `[batch, n, e]`.
    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        let n = q.size(1)
        checkLength(n)
        guard let chunk, chunk < n else { return attend(q, k, v, keys: paddingMask) }
        let chunks = (n + chunk - 1) / chunk
        let extra = chunks * chunk - n
        func cut(_ x: Tensor) -> Tensor { x.padded(1, after: extra).reshaped(-1, chunk, x.size(2)) }
        var keys = paddingMask
        // What fills up the last chunk comes after every causal query, but before the others it must be hidden.
        if keys == nil && extra > 0 && !isCausal {
            keys = .ones([q.size(0), n], dtype: .bool, device: q.device)
        }
        if let mask = keys, extra > 0 {
            keys = concatenate([mask, .zeros([q.size(0), extra], dtype: .bool, device: q.device)], dim: 1)
        }
        let out = attend(cut(q), cut(k), cut(v), keys: keys?.reshaped(-1, chunk))
        return out.reshaped(q.size(0), chunks * chunk, v.size(2)).sliced(1, 0..<n)
    }

    /// The equations, with all weights of a chunk at once.
    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        let n = q.size(1)
        checkLength(n)
        let pieces = stride(from: 0, to: n, by: chunk ?? n).map { start in
            let range = start..<min(start + (chunk ?? n), n)
            let part = [q, k, v].map { $0.sliced(1, range) }
            return equations(part[0], part[1], part[2], paddingMask?.sliced(1, range))
        }
        return concatenate(pieces, dim: 1)
    }

    private func equations(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ keys: Tensor?) -> Tensor {
        let n = q.size(1)
        var visible = Tensor.ones([n, n], dtype: .bool, device: q.device)
        if isCausal { visible = visible.lowerTriangle() }
        if let keys { visible = (visible .&& open(keys).unsqueezed(1)) }
        let products = matmul(q, k.transposed())
        let scores: Tensor
        switch function {
        case .softmax: scores = products / Double(q.size(2)).squareRoot() + relativeBias.matrix(n)
        case .laplace, .relu2:
            scores = products / counts(keys, rows: 0..<n, like: q) + relativeBias.matrix(n)
        }
        return matmul(dropped(weights(scores, visible), generator), v)
    }

    func checkLength(_ n: Int) {
        torchPrecondition(
            chunk != nil || n <= relativeBias.maximumLength ?? n, in: "Mega",
            "the relative bias is for up to \(relativeBias.maximumLength ?? n) tokens; got \(n)")
    }

    // MARK: Weights

    private func weights(_ scores: Tensor, _ visible: Tensor?) -> Tensor {
        switch function {
        case .softmax:
            guard let visible else { return scores.softmax() }
            let blind = .!visible.any(-1, keepDim: true)
            let shown = scores.masked(where: .!(visible .|| blind), with: -Double.infinity)
            return shown.softmax().masked(where: blind, with: 0)
        case .laplace:
            let (mean, deviation) = (0.707107, 0.282095)
            // ½ (1 + erf(x)) as ½ erfc(-x): far below μ the sum would cancel.
            let weights = ((mean - scores) / (deviation * 2.0.squareRoot())).erfc() * 0.5
            return visible.map { weights.masked(where: .!$0, with: 0) } ?? weights
        case .relu2:
            let weights = scores.relu().square()
            return visible.map { weights.masked(where: .!$0, with: 0) } ?? weights
        }
    }

    /// The keys that may be looked at `[groups, n]`. Softmax looks at all of a group that has no real one, as in the
    /// authors' code: only padded queries see that.
    private func open(_ keys: Tensor) -> Tensor {
        function == .softmax ? (keys .|| .!keys.any(1, keepDim: true)) : keys
    }

    /// len for the rows: `[rows, 1]`, `[groups, 1, 1]` or a single number.
    private func counts(_ keys: Tensor?, rows: Range<Int>, like x: Tensor) -> Tensor {
        if isCausal {
            return Tensor.arange(rows.lowerBound + 1..<rows.upperBound + 1, device: x.device).to(x.dtype).unsqueezed(1)
        }
        guard let keys else { return Tensor(Double(rows.upperBound), dtype: x.dtype, device: x.device) }
        return keys.to(.int64).sum(1).to(x.dtype).clamped(min: 1).reshaped(-1, 1, 1)
    }

    private func dropped(_ weights: Tensor, _ generator: RandomGenerator) -> Tensor {
        guard isTraining && dropout > 0 else { return weights }
        return weights * Tensor.bernoulli(like: weights.detached(), probability: 1 - dropout, using: generator)
            / (1 - dropout)
    }

    // MARK: Tiles

    /// Some rows of some groups, and the keys that they can see.
    private struct Tile {
        let groups: Range<Int>
        let rows: Range<Int>
        let keys: Int
    }

    /// The weights of a tile: at most so many, unless a single group's 64 rows have more.
    private static let tileSize = 1 << 20

    /// A V for the last rows: k, v `[groups, n, …]`, q `[groups, rows, z]`; keys `[groups, n]` true for a real one.
    func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, keys: Tensor?) -> Tensor {
        let (groups, n) = (k.size(0), k.size(1))
        let rows = max(0, n - q.size(1))..<n
        let scaled: Tensor
        switch function {
        case .softmax: scaled = q / Double(q.size(2)).squareRoot()
        case .laplace, .relu2: scaled = q / counts(keys, rows: rows, like: q)
        }
        let bias = relativeBias.values(1 - n..<rows.count)
        let open = keys.map { self.open($0) }
        let tiles = tiles(groups, rows)
        if let tile = tiles.first, tiles.count == 1 {
            return evaluate(tile, [scaled, k, v, bias], open, generator)
        }
        return tiled(tiles, first: rows.lowerBound, [scaled, k, v, bias], open)
    }

    private func tiles(_ groups: Int, _ rows: Range<Int>) -> [Tile] {
        let n = rows.upperBound
        let size = rows.count * n
        if groups * size <= Self.tileSize { return [Tile(groups: 0..<groups, rows: rows, keys: n)] }
        let groupsAtOnce = max(1, Self.tileSize / size)
        let rowsAtOnce = size <= Self.tileSize ? rows.count : max(64, Self.tileSize / n)
        return stride(from: 0, to: groups, by: groupsAtOnce).flatMap { group in
            stride(from: rows.lowerBound, to: n, by: rowsAtOnce).map { row in
                let end = min(row + rowsAtOnce, n)
                return Tile(
                    groups: group..<min(group + groupsAtOnce, groups), rows: row..<end, keys: isCausal ? end : n)
            }
        }
    }

    /// The parts of q, k, v and the bias that a tile needs: views. The bias of n keys begins with distance 1 - n.
    private func parts(_ tile: Tile, _ inputs: [Tensor], first: Int) -> [Tensor] {
        let n = inputs[1].size(1)
        let rows = tile.rows.lowerBound - first..<tile.rows.upperBound - first
        return [
            inputs[0].sliced(0, tile.groups).sliced(1, rows),
            inputs[1].sliced(0, tile.groups).sliced(1, 0..<tile.keys),
            inputs[2].sliced(0, tile.groups).sliced(1, 0..<tile.keys),
            inputs[3].sliced(0, n - tile.rows.upperBound..<n + tile.keys - 1 - tile.rows.lowerBound),
        ]
    }

    /// A V of a tile, from its parts.
    private func evaluate(_ tile: Tile, _ parts: [Tensor], _ open: Tensor?, _ generator: RandomGenerator) -> Tensor {
        let (q, k, v) = (parts[0], parts[1], parts[2])
        let bias = parts[3].unfolded(0, size: tile.keys).flipped(0)  // [rows, keys]
        let scores = (matmul(q, k.transposed()) + bias).to(q.dtype.accumulator)
        let weights = weights(scores, visible(tile, open, q.device))
        return matmul(dropped(weights, generator).to(v.dtype), v)
    }

    /// `[rows, keys]`, `[groups, 1, keys]` or `[groups, rows, keys]`; nil where everything is.
    private func visible(_ tile: Tile, _ open: Tensor?, _ device: Device) -> Tensor? {
        let first = tile.rows.lowerBound
        let past =
            isCausal && tile.keys > first + 1
            ? Tensor.ones([tile.rows.count, tile.keys], dtype: .bool, device: device).lowerTriangle(diagonal: first)
            : nil
        guard let open else { return past }
        let real = open.sliced(0, tile.groups).sliced(1, 0..<tile.keys).unsqueezed(1)
        return past.map { ($0 .&& real) } ?? real
    }

    /// One tile after the other, none of their weights kept: the gradient computes them again, with the same dropout.
    private func tiled(_ tiles: [Tile], first: Int, _ inputs: [Tensor], _ open: Tensor?) -> Tensor {
        let seed = isTraining && dropout > 0 ? generator.state : nil
        let generator = generator
        return withCustomGradient(inputs) { inputs in
            let (q, v) = (inputs[0], inputs[2])
            let out = Tensor.uninitialized([q.size(0), q.size(1), v.size(2)], dtype: v.dtype, device: v.device)
            for tile in tiles {
                let rows = tile.rows.lowerBound - first..<tile.rows.upperBound - first
                let found = self.evaluate(tile, self.parts(tile, inputs, first: first), open, generator)
                out.sliced(0, tile.groups).copyInPlace(1, rows, from: found)
            }
            return (
                [out],
                { given in
                    guard let gradient = given[0] else { return [nil, nil, nil, nil] }
                    let replay = RandomGenerator(seed: 0)
                    if let seed { replay.state = seed }
                    return self.pullback(tiles, first: first, inputs, open, gradient, replay)
                }
            )
        }[0]
    }

    private func pullback(
        _ tiles: [Tile], first: Int, _ inputs: [Tensor], _ open: Tensor?, _ gradient: Tensor,
        _ generator: RandomGenerator
    ) -> [Tensor?] {
        let sums = inputs.map { Tensor.zeros(like: $0) }
        for tile in tiles {
            let leaves = parts(tile, inputs, first: first).map { $0.requiringGrad() }
            let rows = tile.rows.lowerBound - first..<tile.rows.upperBound - first
            let found = withGrad {
                gradients(
                    of: [evaluate(tile, leaves, open, generator)],
                    weightedBy: [gradient.sliced(0, tile.groups).sliced(1, rows)], withRespectTo: leaves)
            }
            for (sum, part) in zip(parts(tile, sums, first: first), found) {
                if let part { sum.addInPlace(part) }
            }
        }
        return sums
    }
}
