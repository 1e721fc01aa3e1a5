// How LSH attention is evaluated: the tokens of each round in the order of their buckets, chunk against chunks.
//
// All rounds of a token are one softmax over everything it sees. With t_i its largest logit, l_i = Σ_rj exp(s_ij - t_i):
//   p_ij = exp(s_ij - t_i) / l_i,   out_i = Σ p_ij v_j,   ds_ij = p_ij (dout_i·v_j - dout_i·out_i)
// so that the backward pass needs t and l, not the probabilities. They are kept apart, since ln l would be lost beside
// a t of -10⁵.
import Torch

/// Where each token stands once the rounds are sorted, and which chunks each chunk sees. The heads of all sequences are
/// counted through as groups; slot `r · length + i` of a group is the i-th of round r.
struct SortedRounds {
    let groups: Int
    let rounds: Int
    /// Slots of a chunk.
    let chunk: Int
    let chunksPerRound: Int
    /// Which chunks a chunk sees, from its own.
    let offsets: ClosedRange<Int>

    /// The token in each slot, int32 `[groups, chunks, chunk]`; and with `length` in the place of one that is hidden.
    let tokens: Tensor
    let keyTokens: Tensor
    let hidesTokens: Bool
    /// Of each slot the row in `[groups · length, …]`; of each token and round that in `[groups · rounds · length, …]`.
    private let tokenRows: Tensor
    private let slotRows: Tensor
    /// The chunks that each chunk sees, numbered through all groups: `[groups, chunks, window]`.
    let seen: Tensor
    /// The bucket and round of each slot, int32 `[groups, chunks, chunk]`; where it matters.
    let buckets: Tensor?
    let pairs: PairCounts?

    var length: Int { chunksPerRound * chunk }
    var chunks: Int { rounds * chunksPerRound }
    var window: Int { offsets.count }

    /// - Parameters:
    ///   - ids: int64 `[batch, heads, rounds, n]`.
    ///   - paddingMask: `[batch, n]`.
    init(_ ids: Tensor, paddingMask: Tensor?, bucketCount: Int, _ settings: LSHSettings) {
        let (batch, heads, n) = (ids.size(0), ids.size(1), ids.size(3))
        let isWhole = n <= settings.chunk
        let (groups, rounds) = (batch * heads, isWhole ? 1 : ids.size(2))
        let chunk = min(settings.chunk, n)
        let chunksPerRound = (n + chunk - 1) / chunk
        let length = chunksPerRound * chunk
        self.groups = groups
        self.rounds = rounds
        self.chunk = chunk
        self.chunksPerRound = chunksPerRound
        let offsets = isWhole ? 0...0 : -settings.chunksBefore...settings.chunksAfter
        self.offsets = offsets

        let real = RealTokens(paddingMask, n, length, chunk: chunk, settings.roundLength, ids.device)
        var keys = (isWhole ? Tensor.zeros(like: ids.sliced(2, 0..<1)) : ids).padded(3, after: length - n)
        keys = real.sorted(keys, last: bucketCount)
        let order = keys.argsort(3, stable: true)  // [batch, heads, rounds, length]
        let places = Tensor.arange(0..<length, device: ids.device)
        let ranks = Tensor.zeros(like: order).scattered(3, order, places.expanded(to: order.shape))

        let group = Tensor.arange(0..<groups, device: ids.device).unsqueezed(1)
        let round = Tensor.arange(0..<rounds, device: ids.device).unsqueezed(1)
        let slots = [groups, rounds * chunksPerRound, chunk]
        tokenRows = (order.reshaped(groups, -1) + group * length).flattened()
        slotRows = ((ranks + round * length).reshaped(groups, -1) + group * (rounds * length)).flattened()
        let tokens = order.reshaped(to: slots).to(.int32)
        self.tokens = tokens
        hidesTokens = real.mask != nil
        keyTokens =
            real.mask.map { mask in
                let isReal = mask.unsqueezed(1).unsqueezed(1).expanded(to: order.shape).gathered(3, order)
                return order.masked(where: .!isReal, with: length).reshaped(to: slots).to(.int32)
            } ?? tokens

        let seen = Self.seen(rounds, chunksPerRound, own: real.chunks, offsets, ids.device)
        self.seen =
            seen.unsqueezed(1).expanded(to: [batch, heads, -1, -1]).reshaped(groups, slots[1], -1)
            + group.unsqueezed(2) * slots[1]
        let marked = keys + round * (bucketCount + 1)
        buckets = settings.withinBucket ? marked.gathered(3, order).reshaped(to: slots).to(.int32) : nil
        pairs =
            settings.uniquePairs
            ? PairCounts(
                order, ranks.floorDivided(by: chunk) + round * real.chunks, chunksOfAll: real.chunks * rounds,
                buckets: settings.withinBucket ? marked : nil, slots, offsets) : nil
    }

    /// For each chunk those it sees, `[1 or batch, chunks, window]`. Only the first `own` chunks of a round count: on
    /// the last of them follows the next round's first, and on the last of all the first of all.
    private static func seen(
        _ rounds: Int, _ perRound: Int, own: Tensor, _ offsets: ClosedRange<Int>, _ device: Device
    ) -> Tensor {
        let number = Tensor.arange(0..<rounds * perRound, device: device).unsqueezed(1)
        let round = number.floorDivided(by: perRound)
        let own = own.squeezed(3)  // [1 or batch, 1, 1]
        let place = round * own + number - round * perRound
        let shifts = Tensor.arange(offsets.lowerBound..<offsets.upperBound + 1, device: device)
        let target = (place + shifts).remainder(dividingBy: own * rounds)
        return target + target.floorDivided(by: own) * (perRound - own)
    }

    /// `[batch, heads, length, width]` → `[groups · chunks, chunk · width]`: what belongs to the token in each slot.
    func slots(of x: Tensor) -> Tensor {
        x.reshaped(groups * length, -1).indexed(0, tokenRows).reshaped(groups * chunks, -1)
    }

    /// `[groups, chunks, chunk, width]` → `[groups, rounds, length, width]`: what each token has in each round.
    func rounds(of x: Tensor) -> Tensor {
        x.reshaped(groups * chunks * chunk, -1).indexed(0, slotRows).reshaped(groups, rounds, length, -1)
    }

    /// Of a table by slot, int32 `[groups, chunks, chunk]`, a run of chunks `[groups, count, chunk, 1]`.
    func queries(_ table: Tensor, _ range: Range<Int>) -> Tensor { table.sliced(1, range).unsqueezed(3) }
    /// And what they see, `[groups, count, 1, window · chunk]`.
    func keys(_ table: Tensor, _ range: Range<Int>) -> Tensor {
        table.reshaped(groups * chunks, chunk).indexed(0, seen.sliced(1, range).flattened())
            .reshaped(groups, range.count, 1, window * chunk)
    }
}

/// Which tokens are real, and how many chunks they need in a round.
private struct RealTokens {
    /// `[1 or batch, length]`; nil when all are.
    let mask: Tensor?
    /// int64 `[1 or batch, 1, 1, 1]`
    let chunks: Tensor
    private let isShort: Tensor?

    init(_ paddingMask: Tensor?, _ n: Int, _ length: Int, chunk: Int, _ kind: ReformerLength, _ device: Device) {
        let all = Tensor.full([1, 1, 1, 1], length / chunk, dtype: .int64, device: device)
        guard let paddingMask else {
            mask = n == length ? nil : (Tensor.arange(0..<length, device: device) .< n).unsqueezed(0)
            chunks = all
            isShort = nil
            return
        }
        let extra = Tensor.zeros([paddingMask.size(0), length - n], dtype: .bool, device: device)
        mask = n == length ? paddingMask : concatenate([paddingMask, extra], dim: 1)
        guard kind == .real else {
            chunks = all
            isShort = nil
            return
        }
        let counts = paddingMask.to(.int64).sum(1).reshaped(-1, 1, 1, 1)
        chunks = Torch.maximum((counts + (chunk - 1)).floorDivided(by: chunk), Tensor.ones(like: counts))
        isShort = (counts .<= chunk)
    }

    /// The numbers to sort by: what is padded comes last, and a sequence that fits into one chunk has one bucket. Since
    /// all its tokens then see it equally often, that is as good as once.
    func sorted(_ ids: Tensor, last: Int) -> Tensor {
        let buckets = isShort.map { ids.masked(where: $0, with: 0) } ?? ids
        return mask.map { buckets.masked(where: (.!$0).unsqueezed(1).unsqueezed(1), with: last) } ?? buckets
    }
}

/// How often a token sees another in all rounds together.
struct PairCounts {
    /// For each round the number of the chunk that a slot's token is in then, int32 `[groups, chunks, chunk]`.
    private let chunkTables: [Tensor]
    private let bucketTables: [Tensor]?
    /// How many chunks there are to wrap around, int32 `[groups or 1, 1, 1, 1]`.
    private let chunksOfAll: Tensor
    private let offsets: ClosedRange<Int>

    /// - Parameters:
    ///   - order: the token in each slot, `[batch, heads, rounds, length]`.
    ///   - chunks, buckets: of each token in each round, of the same shape.
    init(
        _ order: Tensor, _ chunks: Tensor, chunksOfAll: Tensor, buckets: Tensor?, _ slots: [Int],
        _ offsets: ClosedRange<Int>
    ) {
        let (batch, heads) = (order.size(0), order.size(1))
        let tokens = order.flattened(2, 3)
        func tables(_ values: Tensor) -> [Tensor] {
            (0..<order.size(2)).map {
                values.selected(2, $0).gathered(2, tokens).reshaped(to: slots).to(.int32)
            }
        }
        chunkTables = tables(chunks.expanded(to: order.shape))
        bucketTables = buckets.map(tables)
        self.chunksOfAll = chunksOfAll.expanded(to: [batch, heads, 1, 1]).reshaped(-1, 1, 1, 1).to(.int32)
        self.offsets = offsets
    }

    /// n_ij for the queries and keys of a run of chunks: int32 `[groups, count, chunk, window · chunk]`. At least 1,
    /// also for padded tokens, which may stand outside the chunks that count.
    func callAsFunction(_ layout: SortedRounds, _ range: Range<Int>) -> Tensor {
        var total: Tensor?
        for round in chunkTables.indices {
            let from = layout.queries(chunkTables[round], range)
            // Buckets of two rounds are never the same.
            for other in chunkTables.indices where bucketTables == nil || other == round {
                let ahead = (layout.keys(chunkTables[other], range) - from - offsets.lowerBound)
                    .remainder(dividingBy: chunksOfAll)
                var times = (offsets.count - 1 - ahead + chunksOfAll).floorDivided(by: chunksOfAll)
                if let bucket = bucketTables?[round] {
                    times = times * (layout.queries(bucket, range) .== layout.keys(bucket, range)).to(.int32)
                }
                total = total.map { $0 + times } ?? times
            }
        }
        guard let total else { return .ones([1], dtype: .int32) }
        return Torch.maximum(total, Tensor.ones(like: total))
    }
}

/// Attention over sorted rounds, with a gradient that computes the scores again.
struct SortedAttention {
    let settings: LSHSettings
    let layout: SortedRounds
    let logitsAtOnce: Int

    /// What the forward pass leaves to the backward one.
    private struct Result {
        let out: Tensor  // [groups, length, valueDim]
        let largest: Tensor  // t: [groups, length, 1]
        let sum: Tensor  // l: [groups, length, 1]
    }

    /// A run of chunks beside what they see.
    private struct Block {
        let q: Tensor  // [groups, count, chunk, headDim]
        let k: Tensor  // [groups, count, window · chunk, headDim]
        let v: Tensor  // [groups, count, window · chunk, valueDim]
        let logits: Tensor  // [groups, count, chunk, window · chunk]
        let isSelf: Tensor
    }

    /// q, k `[batch, heads, length, headDim]`, v `[batch, heads, length, valueDim]` → the shape of v.
    func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let shape = v.shape
        return withCustomGradient([q, k, v]) { inputs in
            let (q, k, v) = (inputs[0], inputs[1], inputs[2])
            let result = forward(q, k, v)
            let pullback = { (gradients: [Tensor?]) -> [Tensor?] in
                guard let gradient = gradients[0] else { return [nil, nil, nil] }
                return backward(q, k, v, result, gradient)
            }
            return ([result.out.reshaped(to: shape)], pullback)
        }[0]
    }

    private func forward(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Result {
        let width = v.size(3)
        let (q, k, v) = (layout.slots(of: q), layout.slots(of: k), layout.slots(of: v))
        // Per slot the largest logit, Σ exp(s - largest) and Σ exp(s - largest) v.
        let found = [1, 1, width].map { room(layout.chunk, $0, v) }
        for range in ranges {
            let block = block(range, q, k, v)
            let largest = block.logits.maximum(-1, keepDim: true)
            let weights = (block.logits - largest).exp()
            found[0].copyInPlace(1, range, from: largest)
            found[1].copyInPlace(1, range, from: weights.sum(-1, keepDim: true))
            found[2].copyInPlace(1, range, from: matmul(weights, block.v))
        }
        let parts = found.map { layout.rounds(of: $0) }  // [groups, rounds, length, …]
        let largest = parts[0].maximum(1, keepDim: true)
        let share = (parts[0] - largest).exp()
        let sum = (share * parts[1]).sum(1)
        return Result(out: (share * parts[2]).sum(1) / sum, largest: largest.squeezed(1), sum: sum)
    }

    private func backward(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ result: Result, _ gradient: Tensor) -> [Tensor?] {
        var parts = slotGradients(q, k, v, result, gradient.reshaped(to: result.out.shape))
        for index in 1...2 { parts[index] = folded(parts[index]) }
        return zip(parts, [q, k, v]).map { layout.rounds(of: $0).sum(1).reshaped(to: $1.shape) }
    }

    /// The gradients of q by slot, and of k and v by slot for each chunk that sees them:
    /// `[groups, chunks, chunk, headDim]`, `[groups, chunks, window · chunk, …]`.
    private func slotGradients(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ result: Result, _ gradient: Tensor) -> [Tensor]
    {
        let (headDim, valueDim, seen) = (q.size(3), v.size(3), layout.window * layout.chunk)
        let (q, k, v) = (layout.slots(of: q), layout.slots(of: k), layout.slots(of: v))
        func bySlot(_ x: Tensor) -> Tensor {
            layout.slots(of: x).reshaped(layout.groups, layout.chunks, layout.chunk, -1)
        }
        let dout = bySlot(gradient)
        let drift = bySlot((gradient * result.out).sum(-1, keepDim: true))
        let (largest, sum) = (bySlot(result.largest), bySlot(result.sum))
        let parts = [room(layout.chunk, headDim, q), room(seen, headDim, q), room(seen, valueDim, q)]
        for range in ranges {
            let block = block(range, q, k, v)
            let own = { (x: Tensor) in x.sliced(1, range) }
            let p = (block.logits - own(largest)).exp() / own(sum)
            let moved = p * (matmul(own(dout), block.v.transposed()) - own(drift))
            let dlogits = moved.masked(where: block.isSelf, with: 0) * settings.scale(headDim: headDim)
            parts[0].copyInPlace(1, range, from: matmul(dlogits, block.k))
            parts[1].copyInPlace(1, range, from: matmul(dlogits.transposed(), block.q))
            parts[2].copyInPlace(1, range, from: matmul(p.transposed(), own(dout)))
        }
        return parts
    }

    private func room(_ rows: Int, _ width: Int, _ like: Tensor) -> Tensor {
        .uninitialized([layout.groups, layout.chunks, rows, width], dtype: like.dtype, device: like.device)
    }

    /// What all chunks have for those they see, `[groups, chunks, window · chunk, width]`, added up where it belongs.
    private func folded(_ x: Tensor) -> Tensor {
        let rows = x.reshaped(layout.groups * layout.chunks * layout.window, -1)
        let zeros = Tensor.zeros([layout.groups * layout.chunks, rows.size(1)], dtype: x.dtype, device: x.device)
        return zeros.indexAdded(0, layout.seen.flattened(), rows)
            .reshaped(layout.groups, layout.chunks, layout.chunk, -1)
    }

    private var ranges: [Range<Int>] {
        let perChunk = layout.groups * layout.chunk * layout.window * layout.chunk
        let count = max(1, logitsAtOnce / perChunk)
        return stride(from: 0, to: layout.chunks, by: count).map { $0..<min($0 + count, layout.chunks) }
    }

    /// q, k, v by slot, `[groups · chunks, chunk · width]`.
    private func block(_ range: Range<Int>, _ q: Tensor, _ k: Tensor, _ v: Tensor) -> Block {
        let index = layout.seen.sliced(1, range).flattened()
        func seen(_ x: Tensor) -> Tensor {
            x.indexed(0, index).reshaped(layout.groups, range.count, layout.window * layout.chunk, -1)
        }
        let queries = q.reshaped(layout.groups, layout.chunks, layout.chunk, -1).sliced(1, range)
        let (keys, values) = (seen(k), seen(v))
        var logits = matmul(queries, keys.transposed())
        if settings.logitScale != .unit { logits = logits * settings.scale(headDim: queries.size(3)) }
        if let pairs = layout.pairs { logits -= settings.discount(pairs(layout, range)).to(q.dtype) }
        let tokens = layout.queries(layout.tokens, range)
        if let hidden = hidden(range, tokens) { logits = logits.masked(where: hidden, with: LSHSettings.hiddenLogit) }
        let isSelf = tokens .== layout.keys(layout.tokens, range)
        logits = logits.masked(where: isSelf, with: settings.selfLogit)
        return Block(q: queries, k: keys, v: values, logits: logits, isSelf: isSelf)
    }

    /// Bool, broadcast to the logits; nil where nothing is hidden.
    private func hidden(_ range: Range<Int>, _ tokens: Tensor) -> Tensor? {
        var parts: [Tensor] = []
        if settings.isCausal {
            parts.append(layout.keys(layout.keyTokens, range) .> tokens)
        } else if layout.hidesTokens {
            parts.append(layout.keys(layout.keyTokens, range) .>= layout.length)
        }
        if let buckets = layout.buckets {
            parts.append(layout.queries(buckets, range) .!= layout.keys(buckets, range))
        }
        guard let first = parts.first else { return nil }
        return parts.dropFirst().reduce(first) { ($0 .|| $1) }
    }
}
