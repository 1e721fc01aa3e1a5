import CTorch

// What mixers need that look at the tokens before: sums of products, and keys and values in caches.
extension StepProgram {
    // MARK: Sums

    /// A token of causal linear attention, as ``causalLinearAttention(_:_:_:paddingMask:_:initial:)`` with `heads`, divided by
    /// the sum of the weights where there is z. s `[heads, features, values]`, p and z `[heads, features]` are the state,
    /// which it changes.
    public func appendCausalLinear(
        _ q: Vector, _ k: Vector, _ v: Vector, heads: Int, map: ElementwiseMap, momentum: Double = 0,
        stepSize: Double = 1, epsilon: Double, state: (s: Vector, p: Vector?, z: Vector?), to y: Vector
    ) {
        checkCounts([q, k] + (state.z.map { [$0] } ?? []), in: "StepProgram.appendCausalLinear")
        checkCounts([v, y], in: "StepProgram.appendCausalLinear")
        let (features, values) = (q.count / max(heads, 1), v.count / max(heads, 1))
        torchPrecondition(
            features * heads == q.count && values * heads == v.count && values <= Self.largestHead
                && state.s.count == q.count * values && (state.p?.count ?? state.s.count) == state.s.count,
            in: "StepProgram.appendCausalLinear",
            "expected heads of at most \(Self.largestHead) channels and states to match")
        ctorch_step_causal_linear(
            program, Int64(heads), Int64(features), Int64(values), map.rawValue, momentum, stepSize, epsilon, q.place,
            k.place, v.place, state.s.place, state.p?.place ?? -1, state.z?.place ?? -1, y.place)
    }

    /// The widest head that ``appendCausalLinear(_:_:_:heads:map:momentum:stepSize:epsilon:state:to:)`` takes.
    public static let largestHead = 1024

    /// A token of ``adaptiveMomentumAttention(_:_:_:paddingMask:stepSize:maximumMomentum:epsilon:initial:)`` with the feature
    /// map elu + 1. The state is changed; it is of one sequence, with `begun` for each head.
    public func appendAdaptiveMomentum(
        _ q: Vector, _ k: Vector, _ v: Vector, heads: Int, stepSize: Double, maximumMomentum: Double, epsilon: Double,
        state: (s: Vector, p: Vector, u: Vector, z: Vector, begun: Vector), to y: Vector
    ) {
        checkCounts([q, k, v, y, state.z], in: "StepProgram.appendAdaptiveMomentum")
        checkCounts([state.s, state.p, state.u], in: "StepProgram.appendAdaptiveMomentum")
        let headDim = q.count / max(heads, 1)
        torchPrecondition(
            headDim * heads == q.count && headDim <= Self.largestHead && state.s.count == q.count * headDim
                && state.begun.count == heads, in: "StepProgram.appendAdaptiveMomentum",
            "expected heads of at most \(Self.largestHead) channels and states to match")
        ctorch_step_adaptive_momentum(
            program, Int64(heads), Int64(headDim), stepSize, maximumMomentum, epsilon, q.place, k.place, v.place,
            state.s.place, state.p.place, state.u.place, state.z.place, state.begun.place, y.place)
    }

    /// A token of features that weigh means of values, head by head: y = Σ_f softmax(q)_f s_f with
    /// s_f = Σ exp(k_f) v / Σ exp(k_f) over all tokens.
    ///
    /// - Parameters:
    ///   - means: s of the tokens before `[heads, features, values]`, which it takes over.
    ///   - logSums: log Σ exp(k) of these `[heads, features]`.
    public func appendWeightedMeans(
        _ q: Vector, _ k: Vector, _ v: Vector, heads: Int, means: Tensor, logSums: Tensor, to y: Vector
    ) {
        let (s, largest, total) = (vector(means), vector(logSums), vector(.ones([logSums.count])))
        checkCounts([q, k, largest], in: "StepProgram.appendWeightedMeans")
        checkCounts([v, y], in: "StepProgram.appendWeightedMeans")
        let (features, values) = (q.count / max(heads, 1), v.count / max(heads, 1))
        torchPrecondition(
            (1...Self.largestHead).contains(features) && values <= Self.largestHead && features * heads == q.count
                && values * heads == v.count && s.count == q.count * values, in: "StepProgram.appendWeightedMeans",
            "expected heads of at most \(Self.largestHead) channels and means to match")
        ctorch_step_weighted_means(
            program, Int64(heads), Int64(features), Int64(values), q.place, k.place, v.place, s.place, largest.place,
            total.place, y.place)
    }

    /// Features of each head, from x and its projection u (of a head, too).
    public enum Features: Sendable, Equatable {
        /// [exp(u - o), exp(-u - o)] with o = `temperature` |x|² / 2 + `offset`.
        case positive(temperature: Double, offset: Double)
        /// [cos u, sin u] · `scale`
        case fourier(scale: Double)
        /// The same and one more, a constant.
        case smoothedFourier(scale: Double, constant: Double)
        /// [u cos a, u sin a] with the angle a = position · `angle`, at positions below `limit`; x is u.
        case turned(angle: Double, limit: Int)

        fileprivate var parts: (kind: Int, a: Double, b: Double, limit: Int) {
            switch self {
            case .positive(let temperature, let offset): (CTORCH_STEP_POSITIVE, offset, temperature, 0)
            case .fourier(let scale): (CTORCH_STEP_FOURIER, scale, 0, 0)
            case .smoothedFourier(let scale, let constant): (CTORCH_STEP_SMOOTHED_FOURIER, scale, constant, 0)
            case .turned(let angle, let limit): (CTORCH_STEP_TURNED, angle, 0, limit)
            }
        }

        /// How many there are for so many numbers u.
        public func count(of columns: Int) -> Int {
            if case .smoothedFourier = self { 2 * columns + 1 } else { 2 * columns }
        }
    }

    /// y = `features` of every head's x and u.
    public func appendFeatures(_ features: Features, _ x: Vector, projected u: Vector, heads: Int, to y: Vector) {
        let columns = u.count / max(heads, 1)
        torchPrecondition(
            columns * heads == u.count && x.count.isMultiple(of: max(heads, 1))
                && y.count == heads * features.count(of: columns), in: "StepProgram.appendFeatures",
            "expected \(heads) heads, got vectors of \(x.count), \(u.count) and \(y.count) numbers")
        let parts = features.parts
        ctorch_step_expand(
            program, Int32(parts.kind), Int64(heads), Int64(x.count / max(heads, 1)), Int64(columns), parts.a, parts.b,
            Int64(parts.limit), x.place, u.place, y.place)
    }

    // MARK: Caches

    /// Keys and values of the program, a row each.
    public struct Cache: Sendable {
        fileprivate let index: ctorch_step_cache
        public let width: Int
        fileprivate let hasValues: Bool
        fileprivate let takesTokens: Bool
    }

    /// A cache with a row for every token, of which attention appends the present one's: all of them, or the `first` ones and
    /// `room` of the last, in a ring where position p has row `first` + (p - `first`) mod `room`.
    ///
    /// - Parameters:
    ///   - keys: of the tokens that there were, with the values `[rows, width]`, as far as they are still there; without
    ///     values, it has keys only.
    ///   - count: how many tokens there were.
    public func cache(keys: Tensor, values: Tensor?, count: Int, first: Int = 0, room: Int? = nil) -> Cache {
        newCache(keys, values, count: count, first: first, room: room, takesTokens: true)
    }

    /// A cache for what ``appendMemory(of:_:to:)`` adds to its first rows; for keys only, without values.
    public func cache(rows keys: Tensor, values: Tensor?) -> Cache {
        newCache(keys, values, count: keys.size(0), first: 0, room: nil, takesTokens: false)
    }

    private func newCache(
        _ keys: Tensor, _ values: Tensor?, count: Int, first: Int, room: Int?, takesTokens: Bool
    ) -> Cache {
        torchPrecondition(
            keys.rank == 2 && first >= 0 && (room ?? 1) > 0, in: "StepProgram.cache",
            "expected rows of keys and a room above 0, got \(keys.shape), \(first) and \(room ?? 0)")
        var error = ctorch_error()
        let index = withExtendedLifetime((keys, values)) {
            ctorch_step_new_cache(
                program, Int64(keys.size(1)), Int64(first), Int64(room ?? 0), takesTokens, Int64(count),
                keys.handle.pointer, values?.handle.pointer, &error)
        }
        if error.message != nil { fail(error.taken(in: "step cache", [keys] + (values.map { [$0] } ?? []))) }
        return Cache(index: index, width: keys.size(1), hasValues: values != nil, takesTokens: takesTokens)
    }

    /// Earlier positions j that a query at i sees.
    public enum Sight: Sendable, Equatable {
        /// i - j is a multiple of `step`, fewer than `count` of them; nil is any number.
        case band(count: Int?, step: Int = 1)
        /// j is in the block of i, or in one of those `before` it.
        case block(Int, before: Int = 0)
        /// j is among the last `count` of a block of `size`.
        case columns(size: Int, count: Int)
        /// i or j is the token.
        case token(Int)
        /// j is the last of a block; the blocks before i are as long as the binary digits of i.
        case digits
        /// j is in the block that ends with i, as long as the lowest binary digit of i + 1.
        case lowestDigit
        /// With positions in rows of so many columns: j is in the row above i's, in one of the columns.
        case rowAbove(columns: Int, RowPart = .all)
        /// j is in i's column, but not in the first row; nothing where i is in one of the last columns `except`.
        case columnBelowFirst(columns: Int, exceptLast: Int = 0)
        /// j is in an earlier row, in the column left of i's.
        case columnLeft(columns: Int)

        /// Columns of another row.
        public enum RowPart: Sendable {
            /// All of them; i's; those left and right of it; those right of it.
            case all, own, others, right
        }

        fileprivate var parts: (kind: Int, size: Int, count: Int) {
            switch self {
            case .band(let count, let step): (CTORCH_STEP_BAND, step, count ?? .max)
            case .block(let size, let before): (CTORCH_STEP_BLOCK, size, before)
            case .columns(let size, let count): (CTORCH_STEP_COLUMNS, size, count)
            case .token(let position): (CTORCH_STEP_TOKEN, position, 0)
            case .digits: (CTORCH_STEP_DIGITS, 0, 0)
            case .lowestDigit: (CTORCH_STEP_LOWEST_DIGIT, 0, 0)
            case .rowAbove(let columns, .all): (CTORCH_STEP_ROW_ABOVE, columns, 0)
            case .rowAbove(let columns, .own): (CTORCH_STEP_OWN_ABOVE, columns, 0)
            case .rowAbove(let columns, .others): (CTORCH_STEP_OTHERS_ABOVE, columns, 0)
            case .rowAbove(let columns, .right): (CTORCH_STEP_RIGHT_ABOVE, columns, 0)
            case .columnBelowFirst(let columns, let count): (CTORCH_STEP_COLUMN_BELOW_FIRST, columns, count)
            case .columnLeft(let columns): (CTORCH_STEP_COLUMN_LEFT, columns, 0)
            }
        }
    }

    /// A cache, and which rows of it a query sees.
    public struct Look: Sendable {
        public let cache: Cache
        fileprivate let index: ctorch_step_look

        /// At all rows.
        public init(_ cache: Cache) {
            self.cache = cache
            index = -1
        }

        fileprivate init(_ cache: Cache, _ index: ctorch_step_look) {
            self.cache = cache
            self.index = index
        }
    }

    /// The look at the union of some positions, for head h that of choice h mod their number. All of them must still be in
    /// the cache, which takes tokens.
    public func look(at choices: [Sight]..., in cache: Cache) -> Look { look(at: choices, in: cache) }

    /// The same, with a list of choices.
    public func look(at choices: [[Sight]], in cache: Cache) -> Look {
        torchPrecondition(
            cache.takesTokens && !choices.isEmpty && choices.allSatisfy { !$0.isEmpty }, in: "StepProgram.look",
            "expected positions to look at, in a cache that takes tokens, got \(choices)")
        let look = ctorch_step_new_look(program, cache.index)
        for (choice, sights) in choices.enumerated() {
            for sight in sights {
                let parts = sight.parts
                ctorch_step_see(
                    program, cache.index, look, Int64(choice), Int32(parts.kind), Int64(parts.size), Int64(parts.count))
            }
        }
        return Look(cache, look)
    }

    // MARK: Attention

    /// Keys that a query weighs, each by its product with `q`; and with distances also by the product of their queries with
    /// row n of a table, for the key that has n younger ones.
    public struct View: Sendable {
        public var q: Vector
        public var look: Look
        public var distances: (q: Vector, table: Cache)?

        public init(_ q: Vector, _ look: Look, distances: (q: Vector, table: Cache)? = nil) {
            self.q = q
            self.look = look
            self.distances = distances
        }

        /// Of all rows of a cache.
        public init(_ q: Vector, _ cache: Cache, distances: (q: Vector, table: Cache)? = nil) {
            self.init(q, Look(cache), distances: distances)
        }

        fileprivate var parts: ctorch_step_view {
            ctorch_step_view(
                cache: look.cache.index, look: look.index, distances: distances?.table.index ?? -1, q: q.place,
                distance_q: distances?.q.place ?? -1)
        }
    }

    /// What attention makes of scores: softmax, or relu without a denominator.
    public enum Weights: Int32, Sendable {
        case softmax, relu
    }

    /// A token of attention, Σ weight · value over the keys of all views, up to four; 0 where they see nothing. k and v, the
    /// token's own, are put into the cache of the first view before; without them it has what it has.
    public func appendAttention(
        _ views: View..., adding own: (k: Vector, v: Vector)?, heads: Int, scale: Double, weights: Weights = .softmax,
        to y: Vector
    ) {
        appendAttention(views, adding: own, heads: heads, scale: scale, weights: weights, to: y)
    }

    /// The same, with a list of views.
    public func appendAttention(
        _ views: [View], adding own: (k: Vector, v: Vector)?, heads: Int, scale: Double, weights: Weights = .softmax,
        to y: Vector
    ) {
        checkCounts(views.map(\.q) + [y], in: "StepProgram.appendAttention")
        if let own { checkCounts([own.k, own.v, y], in: "StepProgram.appendAttention") }
        torchPrecondition(
            heads > 0 && y.count.isMultiple(of: heads) && (1...Int(CTORCH_STEP_MOST_VIEWS)).contains(views.count)
                && views.allSatisfy { $0.look.cache.width == y.count && $0.look.cache.hasValues },
            in: "StepProgram.appendAttention",
            "expected heads that divide \(y.count) channels, and up to \(CTORCH_STEP_MOST_VIEWS) caches of that width with "
                + "values, got \(heads) heads and \(views.count) caches")
        ctorch_step_attend(
            program, Int64(heads), Int64(y.count / heads), scale, weights.rawValue, views.map(\.parts),
            Int64(views.count), own?.k.place ?? -1, own?.v.place ?? -1, y.place)
    }

    /// A token of softmax attention, Σ_j softmax(scale · q · k_j) v_j over itself and the tokens before, whose keys and values
    /// `[tokens, q.count]`, the oldest first, it takes over.
    public func appendAttention(
        _ q: Vector, _ k: Vector, _ v: Vector, heads: Int, scale: Double, keys: Tensor, values: Tensor, to y: Vector
    ) {
        let past = cache(keys: keys, values: values, count: keys.size(0))
        appendAttention(View(q, past), adding: (k, v), heads: heads, scale: scale, to: y)
    }

    /// Puts k and v, or k alone, into the present token's row of a cache.
    public func appendReplacement(of k: Vector, _ v: Vector?, in cache: Cache) {
        checkRow(k, v, of: cache, in: "StepProgram.appendReplacement")
        torchPrecondition(
            cache.takesTokens, in: "StepProgram.appendReplacement", "expected a cache that takes tokens")
        ctorch_step_replace(program, cache.index, k.place, v?.place ?? -1)
    }

    private func checkRow(_ k: Vector, _ v: Vector?, of cache: Cache, in operation: String) {
        torchPrecondition(
            k.count == cache.width && (v?.count ?? k.count) == k.count && (v != nil) == cache.hasValues, in: operation,
            "expected rows of \(cache.width) numbers with\(cache.hasValues ? "" : "out") values, got \(k.count)")
    }

    /// How vectors of several tokens become one.
    public enum Pool: Int32, Sendable {
        case sum, largest, mean
    }

    /// The pools of the keys and of the values in the rows that a look sees, by its first choice for all channels; 0 where it
    /// sees nothing.
    public func appendPool(_ pool: Pool, of look: Look, to pooled: (keys: Vector, values: Vector?)) {
        torchPrecondition(
            pooled.keys.count == look.cache.width
                && pooled.values.map { $0.count == look.cache.width && look.cache.hasValues } ?? true,
            in: "StepProgram.appendPool", "expected \(look.cache.width) numbers, of keys or of what the cache has")
        ctorch_step_pool(
            program, pool.rawValue, look.cache.index, look.index, pooled.keys.place, pooled.values?.place ?? -1)
    }

    // MARK: Every so many tokens

    /// What `body` appends is done only after every `period`-th token of a cache.
    public func appendPeriodically(_ period: Int, of cache: Cache, _ body: () -> Void) {
        torchPrecondition(period > 0, in: "StepProgram.appendPeriodically", "expected a period above 0, got \(period)")
        ctorch_step_set_period(program, cache.index, Int64(period))
        body()
        ctorch_step_set_period(program, -1, 0)
    }

    /// Adds a row to a cache: k with v, or k alone.
    public func appendMemory(of k: Vector, _ v: Vector?, to cache: Cache) {
        checkRow(k, v, of: cache, in: "StepProgram.appendMemory")
        ctorch_step_remember(program, cache.index, k.place, v?.place ?? -1)
    }

    /// Σ_t softmax_t(logit) k_t and v_t over the tokens since the last `period`-th of a cache, when the next is there: until
    /// then the sums lack their division.
    ///
    /// - Parameters:
    ///   - logits: head h's is number h · (logits.count / heads) + `choice`.
    ///   - sums: of keys and values, and z the largest logit and the sum of the weights `[heads, 2]`.
    public func appendMixture(
        _ logits: Vector, choice: Int, _ k: Vector, _ v: Vector, heads: Int, period: Int, of cache: Cache,
        sums: (k: Vector, v: Vector, z: Vector)
    ) {
        checkCounts([k, v, sums.k, sums.v], in: "StepProgram.appendMixture")
        torchPrecondition(
            heads > 0 && period > 0 && k.count.isMultiple(of: heads) && logits.count.isMultiple(of: heads)
                && (0..<logits.count / heads).contains(choice) && sums.z.count == 2 * heads,
            in: "StepProgram.appendMixture",
            "expected logits for \(heads) heads, of which \(choice) is one, got \(logits.count) of them")
        ctorch_step_mix(
            program, cache.index, Int64(period), Int64(heads), Int64(k.count / heads), Int64(logits.count / heads),
            Int64(choice), logits.place, k.place, v.place, sums.k.place, sums.v.place, sums.z.place)
    }

    /// y = sin, cos, sin, cos, … of n times each of the frequencies, float64 `[⌈y.count / 2⌉]`, where n = (number of whole periods
    /// of a cache - 1) · `stride` + `offset`.
    public func appendDistanceWaves(
        _ frequencies: Tensor, period: Int, of cache: Cache, stride: Int, offset: Int, to y: Vector
    ) {
        torchPrecondition(
            frequencies.shape == [(y.count + 1) / 2] && frequencies.dtype == .float64 && period > 0,
            in: "StepProgram.appendDistanceWaves",
            "expected float64 frequencies [\((y.count + 1) / 2)], got \(frequencies.dtype) \(frequencies.shape)")
        var error = ctorch_error()
        withExtendedLifetime(frequencies) {
            ctorch_step_distance_waves(
                program, frequencies.handle.pointer, cache.index, Int64(period), Int64(stride), Int64(offset),
                Int64(y.count), y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step waves", [frequencies])) }
    }
}
