import Torch
import TorchNN

/// What causal long-short attention remembers: the window's keys and values, the tokens of the segment that is still open, and
/// the mixtures of all closed ones. The last grow with the length.
public struct LongShortState: StreamingState {
    /// After the windows' norm.
    var window: RingCache
    /// Of the open segment, by position in it: keys and values before any norm `[batch, C, modelDim]`, P before its softmax
    /// `[batch, C, heads · rank]`, and whether there is a real token `[batch, C]`.
    var open: OpenSegment
    /// Of the closed segments, `[batch, heads, mixtures, headDim]`; a sequence shorter than others has some without meaning.
    var longKeys: Tensor
    var longValues: Tensor
    /// `[batch, mixtures]`
    var longIsReal: Tensor
    /// What distances give, computed once: `[heads, W, headDim]`, and for mixtures `[heads, rank + mixtures, headDim]`.
    var distances: (window: Tensor, long: Tensor)?

    public var tensors: [String: Tensor] {
        var tensors = ["longKeys": longKeys, "longValues": longValues, "longIsReal": longIsReal]
        for (name, tensor) in window.tensors { tensors["window.\(name)"] = tensor }
        for (name, tensor) in open.tensors { tensors["open.\(name)"] = tensor }
        tensors["distances.window"] = distances?.window
        tensors["distances.long"] = distances?.long
        return tensors
    }
}

/// Tokens of a segment before they are mixed.
struct OpenSegment {
    let keys: Tensor
    let values: Tensor
    let logits: Tensor
    let isReal: Tensor

    var tensors: [String: Tensor] { ["keys": keys, "values": values, "logits": logits, "isReal": isReal] }

    /// Tokens taken from here, or from `new` after all that are here: `sources` int64 `[batch, C]`, `isThere` bool.
    func taken(_ new: OpenSegment, _ sources: Tensor, _ isThere: Tensor) -> OpenSegment {
        func take(_ old: Tensor, _ new: Tensor) -> Tensor {
            concatenate([old, new], dim: 1).gathered(1, sources.unsqueezed(2).expanded(to: [-1, -1, old.size(2)]))
        }
        let real = concatenate([isReal, new.isReal], dim: 1).gathered(1, sources)
        return OpenSegment(
            keys: take(keys, new.keys), values: take(values, new.values), logits: take(logits, new.logits),
            isReal: (real .&& isThere))
    }

    var detached: OpenSegment {
        OpenSegment(
            keys: keys.detached(), values: values.detached(), logits: logits.detached(), isReal: isReal)
    }
}

extension CausalLongShortAttention: StreamingMixer {
    public func initialState(batch: Int) -> LongShortState {
        let weight = projections.value.weight.value
        let (dtype, device, heads) = (weight.dtype, weight.device, projections.heads)
        func zeros(_ shape: Int...) -> Tensor { .zeros(shape, dtype: dtype, device: device) }
        let shape = CoreShape(
            batch: batch, heads: heads, headDim: projections.headDim, valueDim: projections.headDim, dtype: dtype,
            device: device)
        return LongShortState(
            window: RingCache(shape, first: 0, last: window),
            open: OpenSegment(
                keys: zeros(batch, chunk, projections.modelDim), values: zeros(batch, chunk, projections.modelDim),
                logits: zeros(batch, chunk, heads * projections.rank),
                isReal: .zeros([batch, chunk], dtype: .bool, device: device)),
            longKeys: zeros(batch, heads, 0, projections.headDim),
            longValues: zeros(batch, heads, 0, projections.headDim),
            longIsReal: .zeros([batch, 0], dtype: .bool, device: device),
            distances: distances.map {
                (
                    window: $0.projected(0..<window, $0.window).detached(),
                    long: $0.projected(0..<projections.rank, $0.long).detached()
                )
            })
    }

    /// Makes the table of distances long enough for the mixtures that are held.
    private func lengthenDistances(_ state: inout LongShortState) {
        guard let distances, let known = state.distances?.long else { return }
        let (count, needed) = (known.size(1), state.longKeys.size(2) + projections.rank)
        guard count < needed else { return }
        let further = distances.projected(count..<needed, distances.long).detached()
        state.distances?.long = concatenate([known, further], dim: 1)
    }

    public func step(_ x: Tensor, state: inout LongShortState) -> Tensor {
        checkStep(x, modelDim: projections.modelDim, batch: state.window.next.count)
        guard x.shape == [state.window.next.count, projections.modelDim] else { return x }
        return advance(x.unsqueezed(1), nil, lengths: Array(repeating: 1, count: x.size(0)), &state).squeezed(1)
    }

    /// Segment by segment; in parallel where it is the beginning.
    public func prefill(_ x: Tensor, paddingMask: Tensor?, state: inout LongShortState) -> Tensor {
        checkInput(x, paddingMask, modelDim: projections.modelDim)
        checkBatch(x, state.window.next.count)
        guard isInput(x, paddingMask, modelDim: projections.modelDim), x.size(0) == state.window.next.count else {
            return x
        }
        let lengths = paddingMask.map(realLengths) ?? Array(repeating: x.size(1), count: x.size(0))
        if state.window.isFresh {
            begin(x, paddingMask, lengths, &state)
            return self(x, paddingMask: paddingMask)
        }
        let outs = stride(from: 0, to: x.size(1), by: chunk).map { start -> Tensor in
            let range = start..<min(start + chunk, x.size(1))
            return advance(
                x.sliced(1, range), paddingMask?.sliced(1, range),
                lengths: lengths.map { min(max($0 - start, 0), range.count) }, &state)
        }
        return concatenate(outs, dim: 1)
    }

    // MARK: The beginning

    /// The state after a beginning of any length.
    private func begin(_ x: Tensor, _ mask: Tensor?, _ lengths: [Int], _ state: inout LongShortState) {
        let new = newTokens(x, mask)
        state.window.takeUp(normalized(new.keys), normalized(new.values), paddingMask: mask)
        let closed = x.size(1) / chunk
        let whole = 0..<closed * chunk
        let long = mixed(
            new.logits.sliced(1, whole).transposed(1, 2)
                .reshaped(x.size(0), projections.heads, projections.rank, whole.count),
            new.keys.sliced(1, whole), new.values.sliced(1, whole), mask?.sliced(1, whole)
        ).normalized(projections)
        let (keys, values) = long.byHeads(projections.heads)
        (state.longKeys, state.longValues) = (keys.detached(), values.detached())
        state.longIsReal =
            long.isReal ?? Tensor.ones([x.size(0), keys.size(2)], dtype: .bool, device: x.device)
        lengthenDistances(&state)
        // The open segments come from the new tokens alone.
        let starts = lengths.map { $0 / chunk * chunk }
        state.open =
            taken(state.open, new, lengths) { row, place in
                starts[row] + place < lengths[row] ? chunk + starts[row] + place : nil
            }.detached
    }

    private func newTokens(_ x: Tensor, _ mask: Tensor?) -> OpenSegment {
        OpenSegment(
            keys: projections.key(x), values: projections.value(x), logits: projections.mixture(x),
            isReal: mask ?? Tensor.ones([x.size(0), x.size(1)], dtype: .bool, device: x.device))
    }

    private func normalized(_ y: Tensor) -> Tensor { projections.windowNorm(y).splitHeads(projections.heads) }

    /// The C tokens that `source` finds for each sequence, among the open segment's and then the new ones; nil for none.
    private func taken(
        _ open: OpenSegment, _ new: OpenSegment, _ lengths: [Int], source: (_ row: Int, _ place: Int) -> Int?
    ) -> OpenSegment {
        let found = lengths.indices.flatMap { row in (0..<chunk).map { source(row, $0) } }
        let shape = [lengths.count, chunk]
        let device = open.keys.device
        return open.taken(
            new, Tensor(found.map { $0 ?? 0 }, shape: shape, device: device),
            Tensor(found.map { $0 != nil }, shape: shape, device: device))
    }

    // MARK: Further on

    /// Takes up at most C tokens of each sequence, so that at most one segment is closed whose mixtures they can see.
    private func advance(_ x: Tensor, _ mask: Tensor?, lengths: [Int], _ state: inout LongShortState) -> Tensor {
        let starts = state.window.next
        let new = newTokens(x, mask)
        // The open segment as it is when it gets all tokens that are there for it.
        let filled = taken(state.open, new, lengths) { row, place in
            let held = starts[row] % chunk
            if place < held { return place }
            return place - held < lengths[row] ? chunk + place - held : nil
        }
        let closing = closed(filled, starts, lengths)
        let out = attention(x, new, mask, lengths, closing, &state)
        append(closing, starts, lengths, &state)
        state.open =
            taken(state.open, new, lengths) { row, place in
                let (held, total) = (starts[row] % chunk, starts[row] % chunk + lengths[row])
                let position = total < chunk ? place : place + chunk
                if position >= total { return nil }
                return position < held ? position : chunk + position - held
            }.detached
        return projections.output(out.mergedHeads())
    }

    /// The mixtures of the segments that were open, false in `isReal` where they still are.
    private func closed(_ open: OpenSegment, _ starts: [Int], _ lengths: [Int]) -> Mixtures {
        let batch = starts.count
        let logits = open.logits.transposed(1, 2).reshaped(batch, projections.heads, projections.rank, chunk)
        let long = mixed(logits, open.keys, open.values, open.isReal).normalized(projections)
        let isClosed = Tensor(
            zip(starts, lengths).map { $0 % chunk + $1 >= chunk }, shape: [batch, 1], device: open.keys.device)
        return Mixtures(keys: long.keys, values: long.values, isReal: long.isReal.map { ($0 .&& isClosed) })
    }

    private func attention(
        _ x: Tensor, _ new: OpenSegment, _ mask: Tensor?, _ lengths: [Int], _ closing: Mixtures,
        _ state: inout LongShortState
    ) -> Tensor {
        let (q, rank, starts) = (projections.queries(x), projections.rank, state.window.next)
        let i = state.window.following(x.size(1), device: x.device).unsqueezed(2)  // [batch, n, 1]
        let near = state.window.taking(
            normalized(new.keys), normalized(new.values), paddingMask: mask, lengths: lengths)
        let j = near.positions.unsqueezed(1)
        let distance = i - j
        let visible = (((distance .>= 0) .&& (distance .< window)) .&& (j .>= 0))

        let (newKeys, newValues) = closing.byHeads(projections.heads)
        let places = placesOfMixtures(starts, held: state.longKeys.size(2), device: x.device).unsqueezed(1)
        let seen = i.floorDivided(by: chunk) * rank  // n_i
        let longDistance = seen - 1 - places
        let closingIsReal = closing.isReal ?? Tensor.ones([x.size(0), rank], dtype: .bool, device: x.device)
        let longIsReal = concatenate([state.longIsReal, closingIsReal], dim: 1).unsqueezed(1)
        let visibleLong = (((longDistance .>= 0) .&& (places .>= 0)) .&& longIsReal)

        let longKeys = concatenate([state.longKeys, newKeys], dim: 2)
        let contentQueries = distances.map { q + $0.contentBias.value.unsqueezed(1) } ?? q
        let scores = [
            matmul(contentQueries, near.keys.transposed())
                + distanceScores(
                    q, distance.masked(where: .!visible, with: 0), state.distances?.window, distances?.distanceBias),
            matmul(q, longKeys.transposed())
                + distanceScores(q, longDistance.masked(where: .!visibleLong, with: 0), state.distances?.long, nil),
        ]
        let values = [near.values, state.longValues, newValues]
        return visibleAttention(
            concatenate(scores, dim: 3), concatenate([visible, visibleLong], dim: 2).unsqueezed(1),
            concatenate(values, dim: 2))
    }

    /// Which of its sequence's mixtures stands in each place, the held ones and then those of the segment that was open; -1
    /// where a shorter sequence has none: int64 `[batch, places]`.
    private func placesOfMixtures(_ starts: [Int], held: Int, device: Device) -> Tensor {
        let rank = projections.rank
        let places = starts.flatMap { start -> [Int] in
            let own = start / chunk * rank
            return (0..<held).map { $0 < own ? $0 : -1 } + (0..<rank).map { own + $0 }
        }
        return Tensor(places, shape: [starts.count, held + rank], device: device)
    }

    /// Puts the mixtures of segments that were closed after those of their sequences.
    private func append(_ closing: Mixtures, _ starts: [Int], _ lengths: [Int], _ state: inout LongShortState) {
        let (rank, held) = (projections.rank, state.longKeys.size(2))
        let counts = zip(starts, lengths).map { ($0 + $1) / chunk * rank }
        guard zip(starts, counts).contains(where: { $0 / chunk * rank < $1 }) else { return }
        let total = max(held, counts.max() ?? 0)
        let sources = zip(starts, counts).flatMap { start, count -> [Int] in
            let own = start / chunk * rank
            return (0..<total).map { $0 < own || $0 >= count ? min($0, held + rank - 1) : held + $0 - own }
        }
        let source = Tensor(sources, shape: [starts.count, total], device: state.longKeys.device)
        let (newKeys, newValues) = closing.byHeads(projections.heads)
        func taken(_ old: Tensor, _ new: Tensor) -> Tensor {
            let wide = source.unsqueezed(1).unsqueezed(3).expanded(to: [-1, old.size(1), -1, old.size(3)])
            return concatenate([old, new], dim: 2).gathered(2, wide).detached()
        }
        (state.longKeys, state.longValues) = (taken(state.longKeys, newKeys), taken(state.longValues, newValues))
        let newIsReal = closing.isReal ?? Tensor.ones([starts.count, rank], dtype: .bool, device: source.device)
        state.longIsReal = concatenate([state.longIsReal, newIsReal], dim: 1).gathered(1, source)
        lengthenDistances(&state)
    }
}
