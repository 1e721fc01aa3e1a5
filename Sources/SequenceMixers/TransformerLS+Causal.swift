// The causal form of long-short attention. With pe(t) the sinusoids of distance t and n_i the number of mixtures that query i
// sees, those of the segments before its own:
//
//   s_ij = (q_i + u_w)·k_j + (q_i + u_r)·(pe(i - j) W_Rᵀ)     for the W keys up to i
//   s_iv = q_i·k̄_v + q_i·(pe(n_i - 1 - v) W_RCᵀ + b_RC)       for the mixtures v < n_i
//
// where q is scaled by 1/√d already. Segments of a cache (what the layer was given for the text before) are mixed as hidden
// states, each head its own channels, and projected afterwards; those of the input are projected first.
import Foundation
import Torch
import TorchNN

/// What distances add to the scores of causal long-short attention.
public final class LongShortDistances: Module {
    /// W_R
    public let window: Linear
    /// W_RC and b_RC
    public let long: Linear
    /// u_r `[heads, headDim]`
    public let distanceBias: Parameter
    /// u_w `[heads, headDim]`
    public let contentBias: Parameter

    init(modelDim: Int, heads: Int, using generator: RandomGenerator) {
        window = Linear(modelDim, modelDim, bias: false, using: generator)
        long = Linear(modelDim, modelDim, using: generator)
        let shape = [heads, modelDim / heads]
        distanceBias = Parameter(.randomNormal(shape, using: generator) * 0.02)
        contentBias = Parameter(.randomNormal(shape, using: generator) * 0.02)
        super.init()
        LongShortProjections.initialize(window, generator)
        LongShortProjections.initialize(long, generator)
    }

    /// Of pe's sines, and again of its cosines `[⌈dim / 2⌉]`: in double, so that long distances keep their digits.
    static func frequencies(_ dim: Int) -> Tensor {
        (Tensor.arange(from: 0.0, to: Double(dim), step: 2.0) * (-Foundation.log(10_000.0) / Double(dim))).exp()
    }

    /// pe of the distances through the projection: `[heads, distances, headDim]`.
    func projected(_ range: Range<Int>, _ projection: Linear) -> Tensor {
        let weight = projection.weight.value
        let dim = projection.inputs
        let angles = Tensor.arange(range).to(.float64).unsqueezed(1) * Self.frequencies(dim).unsqueezed(0)
        let waves = concatenate([angles.sin(), angles.cos()], dim: 1).sliced(1, 0..<dim)
        return projection(waves.to(weight.dtype).to(weight.device))
            .reshaped(range.count, distanceBias.value.size(0), dim / distanceBias.value.size(0)).transposed(0, 1)
    }
}

/// Causal long-short attention: the last W keys, and r mixtures of every closed segment of C positions before the query's own.
///
/// Time O(N (W + r N / C) D), memory O(N D); elsewhere than on the CPU also the scores of a thousand queries at a time. Streaming
/// keeps W keys and values, one open segment and the mixtures of all closed ones, so its state grows by 2 r vectors for every C
/// tokens.
public final class CausalLongShortAttention: Module, ReferenceEvaluating {
    public let projections: LongShortProjections
    /// nil where distances do not count.
    public let distances: LongShortDistances?
    /// W
    public let window: Int
    /// C
    public let chunk: Int
    public var usesReference = false
    let ranges = KeyRanges()
    /// Keeps to LibTorch's operations where the fused form would serve.
    var isComposed = false

    public init(
        modelDim: Int, heads: Int, window: Int, chunk: Int, rank: Int, positions: LongShortPositionKind,
        epsilon: Double = 1e-5, using generator: RandomGenerator
    ) {
        torchPrecondition(
            window > 0 && chunk > 0 && rank > 0, in: "CausalLongShortAttention",
            "expected a window, a chunk and a rank above 0, got \(window), \(chunk) and \(rank)")
        projections = LongShortProjections(
            modelDim: modelDim, heads: heads, rank: rank, bias: false, epsilon: epsilon, using: generator)
        distances =
            positions == .none ? nil : LongShortDistances(modelDim: modelDim, heads: heads, using: generator)
        self.window = max(window, 1)
        self.chunk = max(chunk, 1)
        super.init()
    }

    public var isCausal: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        self(x, cache: nil, paddingMask: paddingMask)
    }

    /// With the hidden states before x, `[batch, a multiple of chunk, modelDim]`, all of them real.
    public func callAsFunction(_ x: Tensor, cache: Tensor?, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: projections.modelDim)
        guard isInput(x, paddingMask, modelDim: projections.modelDim), isSound(cache, x) else { return x }
        let q = projections.queries(x)
        let stream = cache.map { concatenate([$0, x], dim: 1) } ?? x
        let found = attended(
            q, x, projections.key(stream), projections.value(stream), cache: cache, paddingMask: paddingMask)
        return projections.output(found.mergedHeads())
    }

    /// - Parameters:
    ///   - q: scaled `[batch, heads, n, headDim]`.
    ///   - x: what chooses the mixtures `[batch, n, modelDim]`.
    ///   - rawKeys, rawValues: of the cache and of x, before the norms `[batch, past + n, modelDim]`.
    func attended(
        _ q: Tensor, _ x: Tensor, _ rawKeys: Tensor, _ rawValues: Tensor, cache: Tensor?, paddingMask: Tensor?
    ) -> Tensor {
        if isRanged(q) { return ranged(q, x, rawKeys, rawValues, cache: cache, paddingMask: paddingMask) }
        let past = rawKeys.size(1) - x.size(1)
        let tokens = StreamTokens(
            keys: projections.windowNorm(rawKeys).splitHeads(projections.heads),
            values: projections.windowNorm(rawValues).splitHeads(projections.heads),
            isReal: paddingMask?.padded(1, before: past, value: 1), past: past)
        let mixed = mixtures(x, cache, rawKeys, rawValues, paddingMask)
        return usesReference ? dense(q, tokens, mixed) : windowed(q, tokens, mixed)
    }

    private func isSound(_ cache: Tensor?, _ x: Tensor) -> Bool {
        guard let cache else { return true }
        let fits =
            cache.rank == 3 && cache.size(0) == x.size(0) && cache.size(2) == x.size(2)
            && cache.size(1).isMultiple(of: chunk)
        torchPrecondition(
            fits, in: "CausalLongShortAttention",
            "expected a cache [\(x.size(0)), a multiple of \(chunk), \(x.size(2))]; got \(cache.shape)")
        return fits
    }

    // MARK: Mixtures

    /// Those of the cache's segments and of all segments of x but the last, which no query sees.
    func mixtures(_ x: Tensor, _ cache: Tensor?, _ keys: Tensor, _ values: Tensor, _ mask: Tensor?) -> Mixtures {
        let past = cache?.size(1) ?? 0
        let closed = (x.size(1) - 1) / chunk
        let own = past..<past + closed * chunk
        let ofTokens = mixed(
            projections.mixtureLogits(x.sliced(1, 0..<closed * chunk)), keys.sliced(1, own), values.sliced(1, own),
            mask?.sliced(1, 0..<closed * chunk))
        guard let cache, past > 0 else { return ofTokens.normalized(projections) }
        let hidden = mixed(projections.mixtureLogits(cache), cache, cache, nil)
        let projected = Mixtures(
            keys: projections.key(hidden.keys), values: projections.value(hidden.values), isReal: hidden.isReal)
        return projected.joined(ofTokens).normalized(projections)
    }

    /// Σ_t P_a(t) y_t of every segment, head by head, before the norm; segment by segment, in it mixture by mixture.
    ///
    /// - Parameters:
    ///   - logits: `[batch, heads, rank, n]`, n a multiple of C.
    ///   - keys, values: `[batch, n, modelDim]`.
    func mixed(_ logits: Tensor, _ keys: Tensor, _ values: Tensor, _ mask: Tensor?) -> Mixtures {
        let (batch, heads, rank) = (keys.size(0), projections.heads, projections.rank)
        let segments = keys.size(1) / chunk
        let real = mask.map { $0.reshaped(batch, 1, 1, segments, chunk) }
        let weights = mixtureWeights(logits.reshaped(batch, heads, rank, segments, chunk), real)
            .permuted(0, 3, 1, 2, 4)  // [batch, segments, heads, rank, chunk]
        func mix(_ y: Tensor) -> Tensor {
            let bySegment = y.reshaped(batch, segments, chunk, heads, projections.headDim).transposed(2, 3)
            return matmul(weights, bySegment).transposed(2, 3).reshaped(batch, segments * rank, projections.modelDim)
        }
        return Mixtures(
            keys: mix(keys), values: mix(values),
            isReal: mask?.reshaped(batch, segments, chunk).any(2).repeated(rank, dim: 1))
    }

    // MARK: All pairs

    /// The equations with a matrix of all scores.
    private func dense(_ q: Tensor, _ tokens: StreamTokens, _ mixed: Mixtures) -> Tensor {
        let (length, rank) = (q.size(2), projections.rank)
        let (i, j) = (Tensor.arange(0..<length).unsqueezed(1), Tensor.arange(0..<tokens.keys.size(2)).unsqueezed(0))
        let distance = i + tokens.past - j
        var visible = ((distance .>= 0) .&& (distance .< window)).unsqueezed(0).unsqueezed(0)
        if let real = tokens.isReal { visible = (visible .&& real.unsqueezed(1).unsqueezed(1)) }
        let seen = (i.floorDivided(by: chunk) + tokens.past / chunk) * rank  // n_i
        let mixtureDistance = seen - 1 - Tensor.arange(0..<mixed.keys.size(1)).unsqueezed(0)
        var visibleMixtures = (mixtureDistance .>= 0).unsqueezed(0).unsqueezed(0)
        if let real = mixed.isReal { visibleMixtures = (visibleMixtures .&& real.unsqueezed(1).unsqueezed(1)) }
        let batch = max(visible.size(0), visibleMixtures.size(0))
        let all = concatenate(
            [visible, visibleMixtures].map { $0.expanded(to: [batch, -1, -1, -1]) }, dim: 3)
        let (longKeys, longValues) = mixed.byHeads(projections.heads)
        let found = [
            scores(q, tokens.keys, bias: distances?.contentBias)
                + distanceScores(
                    q, distance.unsqueezed(0), distances.map { $0.projected(0..<tokens.keys.size(2), $0.window) },
                    distances?.distanceBias),
            scores(q, longKeys, bias: nil)
                + distanceScores(
                    q, mixtureDistance.unsqueezed(0), distances.map { $0.projected(0..<longKeys.size(2), $0.long) }, nil
                ),
        ]
        return visibleAttention(
            concatenate(found, dim: 3), all, concatenate([tokens.values, longValues], dim: 2))
    }

    private func scores(_ q: Tensor, _ keys: Tensor, bias: Parameter?) -> Tensor {
        matmul(bias.map { q + $0.value.unsqueezed(1) } ?? q, keys.transposed())
    }

    /// (q + u)·R_distance `[batch, heads, n, m]` for distances `[batch or 1, n, m]`, those below 0 taken for 0; `table` is R
    /// `[heads, distances, headDim]`. Without one, 0.
    func distanceScores(_ q: Tensor, _ distance: Tensor, _ table: Tensor?, _ bias: Parameter?) -> Tensor {
        guard let table, distance.count > 0 else { return Tensor.zeros([1], dtype: q.dtype, device: q.device) }
        let place = distance.masked(where: distance .< 0, with: 0).unsqueezed(1)
        return scores(q, table, bias: bias).gathered(3, place.expanded(to: [q.size(0), q.size(1), -1, -1]))
    }
}

/// Keys and values of the window `[batch, heads, past + n, headDim]`, and which of them are real `[batch, past + n]`.
struct StreamTokens {
    let keys: Tensor
    let values: Tensor
    let isReal: Tensor?
    /// How many stand before the first query.
    let past: Int
}

/// Compressed keys and values `[batch, mixtures, modelDim]`; `isReal` `[batch, mixtures]` is false where a segment has nothing
/// but padding.
struct Mixtures {
    let keys: Tensor
    let values: Tensor
    let isReal: Tensor?

    func joined(_ later: Mixtures) -> Mixtures {
        let real = [self, later].map { mixtures in
            mixtures.isReal ?? Tensor.ones([keys.size(0), mixtures.keys.size(1)], dtype: .bool, device: keys.device)
        }
        return Mixtures(
            keys: concatenate([keys, later.keys], dim: 1), values: concatenate([values, later.values], dim: 1),
            isReal: isReal == nil && later.isReal == nil ? nil : concatenate(real, dim: 1))
    }

    func normalized(_ projections: LongShortProjections) -> Mixtures {
        Mixtures(keys: projections.longNorm(keys), values: projections.longNorm(values), isReal: isReal)
    }

    /// Keys and values `[batch, heads, mixtures, headDim]`.
    func byHeads(_ heads: Int) -> (keys: Tensor, values: Tensor) {
        (keys.splitHeads(heads), values.splitHeads(heads))
    }
}

// MARK: - The efficient form

extension CausalLongShortAttention {
    /// The same in tiles of about W queries, with the scores of a thousand queries in memory at a time.
    fileprivate func windowed(_ q: Tensor, _ tokens: StreamTokens, _ mixed: Mixtures) -> Tensor {
        let layout = TileLayout(
            length: q.size(2), past: tokens.past, window: min(window, tokens.past + q.size(2)), chunk: chunk,
            rank: projections.rank)
        let queries = q.padded(2, after: layout.padded - layout.length)
        let keys = layout.reaching(tokens.keys, 2)
        let values = layout.reaching(tokens.values, 2)
        let exists = layout.existence(tokens.isReal, q.device)
        let missing = layout.mixtures(before: layout.padded) - mixed.keys.size(1)
        let filled = Mixtures(
            keys: mixed.keys.padded(1, after: missing), values: mixed.values.padded(1, after: missing),
            isReal: mixed.isReal?.padded(1, after: missing))
        let (longKeys, longValues) = filled.byHeads(projections.heads)
        let ofDistances = distances.map { distances in
            [
                distances.projected(0..<layout.window, distances.window),
                distances.projected(0..<longKeys.size(2), distances.long),
                distances.contentBias.value, distances.distanceBias.value,
            ]
        }
        let outs = layout.groups.map { group -> Tensor in
            let seen = 0..<layout.mixtures(before: group.upperBound)
            let reach = group.lowerBound..<group.upperBound + layout.window - 1
            let inputs = [
                queries.sliced(2, group), keys.sliced(2, reach), values.sliced(2, reach), longKeys.sliced(2, seen),
                longValues.sliced(2, seen),
            ]
            let visible = layout.visible(group, exists.sliced(1, reach), filled.isReal?.sliced(1, seen))
            let body = { (inputs: [Tensor]) in [Self.attention(inputs, layout, visible)] }
            let all = inputs + (ofDistances ?? [])
            // What one group needs for its gradient is computed again; a single one may keep it.
            return (layout.groups.count > 1 ? checkpointed(all, body) : body(all))[0]
        }
        return concatenate(outs, dim: 2).sliced(2, 0..<layout.length)
    }

    /// One group of queries. `inputs`: q, keys and values with what they reach back to, compressed keys and values; and where
    /// distances count their projections for both kinds, u_w and u_r.
    private static func attention(_ inputs: [Tensor], _ layout: TileLayout, _ visible: Tensor) -> Tensor {
        let (q, long, longValues) = (inputs[0], inputs[3], inputs[4])
        let hasDistances = inputs.count > 5
        let (contentQueries, distanceQueries) =
            hasDistances ? (q + inputs[7].unsqueezed(1), q + inputs[8].unsqueezed(1)) : (q, q)
        let tiles = { (x: Tensor) in
            x.reshaped(x.size(0), x.size(1), x.size(2) / layout.tile, layout.tile, x.size(3))
        }
        // [batch, heads, tiles, headDim, keys]
        let neighborhoods = { (x: Tensor) in x.unfolded(2, size: layout.keysOfTile, step: layout.tile) }
        var ofWindow = matmul(tiles(contentQueries), neighborhoods(inputs[1]))
        if hasDistances { ofWindow += layout.windowDistances(tiles(distanceQueries), inputs[5]) }
        var ofLong = matmul(q, long.transposed())
        if hasDistances && long.size(2) > 0 { ofLong += layout.longDistances(q, inputs[6].sliced(1, 0..<long.size(2))) }

        let count = ofLong.size(3)
        let scores = concatenate([tiles(ofLong), ofWindow], dim: -1)
        let weights = visibleSoftmax(scores, visible).to(q.dtype)
        let fromWindow = matmul(
            weights.sliced(4, count..<weights.size(4)), neighborhoods(inputs[2]).transposed()
        ).flattened(2, 3)
        return fromWindow + matmul(weights.sliced(4, 0..<count).flattened(2, 3), longValues)
    }
}

/// How queries are cut: tiles of whole segments, about as long as the window, and groups of tiles of about a thousand queries.
private struct TileLayout {
    let length: Int
    let past: Int
    let window: Int
    let chunk: Int
    let rank: Int
    /// Queries in a tile, a multiple of C.
    let tile: Int
    /// The length filled up to whole tiles.
    let padded: Int

    init(length: Int, past: Int, window: Int, chunk: Int, rank: Int) {
        (self.length, self.past, self.window, self.chunk, self.rank) = (length, past, window, chunk, rank)
        tile = (min(window, length) + chunk - 1) / chunk * chunk
        padded = (length + tile - 1) / tile * tile
    }

    /// Keys that a tile reaches: back to its first query's window, and on to its last query.
    var keysOfTile: Int { tile + window - 1 }

    var groups: [Range<Int>] {
        let size = max(1, 1024 / tile) * tile
        return stride(from: 0, to: padded, by: size).map { $0..<min($0 + size, padded) }
    }

    /// How many mixtures the last query before `end`, a segment's end, sees.
    func mixtures(before end: Int) -> Int { (past / chunk + end / chunk - 1) * rank }

    /// From W - 1 positions before the first query to the end of the last tile, zeros where there is nothing.
    func reaching(_ x: Tensor, _ dim: Int) -> Tensor {
        let cut = max(past - (window - 1), 0)
        return x.sliced(dim, cut..<past + length)
            .padded(dim, before: max(window - 1 - past, 0), after: padded - length)
    }

    /// Whether there is a key, in the order of ``reaching(_:_:)``: `[batch or 1, keys]`.
    func existence(_ isReal: Tensor?, _ device: Device) -> Tensor {
        reaching(isReal ?? Tensor.ones([1, past + length], dtype: .bool, device: device), 1)
    }

    /// Bool `[batch or 1, 1, tiles, tile, mixtures + keys]` for a group of queries and the keys it reaches.
    func visible(_ group: Range<Int>, _ exists: Tensor, _ mixtures: Tensor?) -> Tensor {
        let device = exists.device
        let (i, column) = (Tensor.arange(0..<tile, device: device), Tensor.arange(0..<keysOfTile, device: device))
        let distance = i.unsqueezed(1) + (window - 1) - column.unsqueezed(0)
        let band = ((distance .>= 0) .&& (distance .< window)).unsqueezed(0).unsqueezed(0)
        let inWindow = (exists.unfolded(1, size: keysOfTile, step: tile).unsqueezed(2) .&& band).unsqueezed(1)
        let queries = Tensor.arange(group, device: device).unsqueezed(1)
        let seen = (queries.floorDivided(by: chunk) + past / chunk) * rank
        let places = Tensor.arange(0..<self.mixtures(before: group.upperBound), device: device).unsqueezed(0)
        var long = (places .< seen).unsqueezed(0)
        if let mixtures { long = (long .&& mixtures.unsqueezed(1)) }
        let tiled = long.reshaped(long.size(0), 1, group.count / tile, tile, places.size(1))
        let batch = max(inWindow.size(0), long.size(0))
        return concatenate([tiled, inWindow].map { $0.expanded(to: [batch, -1, -1, -1, -1]) }, dim: 4)
    }

    /// q·R_distance for each query and key of a tile. q `[batch, heads, tiles, tile, headDim]`, R `[heads, W, headDim]`.
    ///
    /// Query t meets column c at distance t + W - 1 - c: products in the order of falling distance, each row moved on by its
    /// own number t. Rows of W + tile entries read as rows of one less do that.
    func windowDistances(_ q: Tensor, _ projected: Tensor) -> Tensor {
        let products = matmul(q, projected.flipped(1).transposed().unsqueezed(1))  // [batch, heads, tiles, tile, W]
        let rows = products.padded(4, after: tile).flattened(3, 4)
        return rows.sliced(3, 0..<tile * keysOfTile).reshaped(rows.size(0), rows.size(1), -1, tile, keysOfTile)
    }

    /// q·R_distance for each query and mixture of a group. q `[batch, heads, n, headDim]`, R `[heads, V, headDim]`.
    ///
    /// The queries of segment u meet mixture v at distance n_u - 1 - v, where n_u = V - r (segments - 1 - u): products in the
    /// order of falling distance, each segment's row moved back by r less than the one before. Rows of V + r entries read as
    /// rows of V do that.
    func longDistances(_ q: Tensor, _ projected: Tensor) -> Tensor {
        let (batch, heads, count) = (q.size(0), q.size(1), projected.size(1))
        let segments = q.size(2) / chunk
        let bySegment = q.reshaped(batch, heads, segments, chunk, q.size(3)).transposed(2, 3)
        let products = matmul(bySegment, projected.flipped(1).transposed().unsqueezed(1))
        let rows = products.padded(4, before: rank).flattened(3, 4)  // [batch, heads, chunk, segments · (V + r)]
        let moved = rows.sliced(3, rank * segments..<rank * segments + segments * count)
        return moved.reshaped(batch, heads, chunk, segments, count).transposed(2, 3)
            .reshaped(batch, heads, segments * chunk, count)
    }
}
