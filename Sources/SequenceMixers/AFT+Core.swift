// From queries, keys and values to the outputs of the Attention Free Transformer; the equations are in AFT.swift.
import Torch
import TorchNN

/// The position bias w that tells the forms apart.
public enum AFTBias {
    /// 0 everywhere: AFT-simple.
    case zero
    /// For each pair of positions: AFT-full, or AFT-local with a window.
    case pairs(AFTPairBias)
    /// For each head and distance: AFT-conv.
    case taps(AFTTapBias)
}

/// Values averaged with the weights e^(key + position bias), feature by feature, and gated by the query.
///
/// q, v `[batch, heads, length, headDim]`, and k as v; with AFT-conv k may have one channel a head. On the CPU all but
/// AFT-full and grids is a fused kernel. Time O(N D) with no bias,
/// O(N s D) with a window or kernel of s, O(N² D) with a bias for all pairs; memory O(N D) besides the bias itself,
/// backward pass included.
public final class AFTCore: Module {
    public let bias: AFTBias
    public let isCausal: Bool
    /// Of the queries.
    public let activation: Activation

    public init(_ bias: AFTBias, isCausal: Bool, activation: Activation = .sigmoid) {
        if case .taps(let taps) = bias {
            torchPrecondition(
                taps.gridWidth == nil || !isCausal, in: "AFTCore", "a kernel on a grid has no causal form")
            torchPrecondition(
                isCausal || !taps.kernel.isMultiple(of: 2), in: "AFTCore",
                "a bidirectional kernel must be odd, not \(taps.kernel)")
        }
        self.bias = bias
        self.isCausal = isCausal
        self.activation = activation
        super.init()
    }

    /// The longest sequence it has biases for; nil for any.
    public var maximumLength: Int? {
        if case .pairs(let pairs) = bias { pairs.maximumLength } else { nil }
    }

    public func callAsFunction(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isFit(q, k, v, paddingMask) else { return v }
        if let found = fused(q, k, v, paddingMask) { return found }
        let (keys, values) = real(k, v, paddingMask)
        return gated(q, mean(keys, values))
    }

    /// The kernel's result, where there is one.
    private func fused(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Tensor? {
        guard v.device == .cpu else { return nil }
        let weights: AttentionFreeBias
        switch bias {
        case .zero: weights = .zero
        case .pairs(let pairs):
            guard pairs.window != nil, let offsets else { return nil }
            let farthest = q.size(2) - 1
            let reached = max(offsets.lowerBound, -farthest)...min(offsets.upperBound, farthest)
            weights = .positions(pairs.band(from: 0, count: q.size(2), offsets: reached))
        case .taps(let taps):
            guard taps.gridWidth == nil else { return nil }
            weights = .heads(taps.values)
        }
        func mean(_ q: Tensor?) -> Tensor {
            attentionFree(q, k, v, paddingMask: paddingMask, bias: weights, isCausal: isCausal)
        }
        return activation == .sigmoid ? mean(q).to(q.dtype) : (activation(q) * mean(nil)).to(q.dtype)
    }

    /// Equation 2 word for word.
    public func reference(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isFit(q, k, v, paddingMask) else { return v }
        let n = q.size(2)
        var visible = Tensor.ones([n, n], dtype: .bool, device: q.device)
        if isCausal { visible = visible.lowerTriangle() }
        if let mask = paddingMask { visible = (visible .&& mask.unsqueezed(1).unsqueezed(1)) }
        visible = visible.unsqueezed(-1)  // [n, n, 1], or [batch, 1, n, n, 1]
        var exponents = k.unsqueezed(2).expanded(to: [-1, -1, n, -1, -1])  // [batch, heads, n, n, headDim or 1]
        if let w = biasMatrix(n) { exponents += w.unsqueezed(3) }
        exponents = exponents.masked(where: .!visible, with: -Double.infinity)
        let blind = .!visible.any(-2, keepDim: true)
        let weights = exponents.masked(where: blind, with: 0).softmax(3).masked(where: blind, with: 0)
        return gated(q, (weights * v.unsqueezed(2)).sum(3))
    }

    /// `[heads or 1, n, n]`; nil for zeros.
    private func biasMatrix(_ n: Int) -> Tensor? {
        switch bias {
        case .zero: nil
        case .pairs(let pairs): pairs.matrix(n)
        case .taps(let taps): taps.matrix(n, isCausal: isCausal)
        }
    }

    private func gated(_ q: Tensor, _ mean: Tensor) -> Tensor { (activation(q) * mean).to(q.dtype) }

    /// Keys and values in the type that sums are taken in, those of padded tokens without weight.
    private func real(_ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> (k: Tensor, v: Tensor) {
        let sums = v.dtype.accumulator
        guard let mask = paddingMask else { return (k.to(sums), v.to(sums)) }
        let padded = (.!mask).unsqueezed(1).unsqueezed(3)
        return (
            k.to(sums).masked(where: padded, with: ExponentialSums.nothing), v.to(sums).masked(where: padded, with: 0)
        )
    }

    // MARK: The means

    /// What each position's value of the gate multiplies: Σ e^(k + w) v / Σ e^(k + w).
    private func mean(_ k: Tensor, _ v: Tensor) -> Tensor {
        switch bias {
        case .pairs(let pairs) where pairs.window == nil: return pairwiseMean(k, v, pairs)
        case .taps(let taps) where taps.gridWidth != nil: return gridMean(k, v, taps)
        case .zero where !isCausal: return (k.softmax(2) * v).sum(2, keepDim: true).expanded(to: v.shape)
        default:
            if isCausal { return causalMean(k, v, after: initialState(k, v)).mean }
            return twoSidedMean(k, v)
        }
    }

    /// The places of a window relative to the query, where the form has one.
    private var offsets: ClosedRange<Int>? {
        switch bias {
        case .zero: nil
        case .pairs(let pairs):
            pairs.window.map { isCausal ? 1 - $0...0 : 1 - $0...$0 - 1 }
        case .taps(let taps):
            isCausal ? 1 - taps.kernel...0 : -((taps.kernel - 1) / 2)...(taps.kernel - 1) / 2
        }
    }

    /// Before the window, in it, and after it.
    private func twoSidedMean(_ k: Tensor, _ v: Tensor) -> Tensor {
        let reach = offsets?.upperBound ?? 0
        let tokens = ExponentialSums.ofKeys(k.unsqueezed(2), v.unsqueezed(2))  // a grid of one row
        let before = tokens.prefixes().shifted(3, by: reach + 1)
        let after = tokens.mapped { $0.flipped(3) }.prefixes().shifted(3, by: reach + 1).mapped { $0.flipped(3) }
        let around = tokens.padded(3, before: reach, after: reach)
        let window = ExponentialWindow(
            exponent: around.exponent, numerator: around.numerator, denominator: nil,
            bias: windowBias([0], count: k.size(2)), rows: 1, columns: 2 * reach + 1)
        return ExponentialSums.mean([before, after], [window]).squeezed(2)
    }

    /// As an ``ExponentialWindow`` takes it, for `count` tokens from each sequence's position on.
    private func windowBias(_ positions: [Int], count: Int) -> Tensor? {
        guard let offsets else { return nil }
        switch bias {
        case .zero: return nil
        case .taps(let taps): return taps.values.reshaped(1, taps.heads, 1, 1, -1)
        case .pairs(let pairs):
            let first = positions.first ?? 0
            let starts = positions.allSatisfy { $0 == first } ? [first] : positions
            return stack(starts.map { pairs.band(from: $0, count: count, offsets: offsets) })
                .unsqueezed(1).unsqueezed(1)
        }
    }

    // MARK: Streaming

    /// Whether a state of constant size is enough: a bias for all pairs must see every key again.
    public var canStream: Bool {
        if case .pairs(let pairs) = bias, pairs.window == nil { return false }
        return isCausal
    }

    /// - Parameter shape: `headDim` is the keys' width.
    public func initialState(_ shape: CoreShape) -> AFTState {
        let past = -(offsets?.lowerBound ?? 0)
        let dtype = shape.dtype.accumulator
        func filled(_ count: Int, _ channels: Int, _ value: Double) -> Tensor {
            .full([shape.batch, shape.heads, count, channels], value, dtype: dtype, device: shape.device)
        }
        return AFTState(
            older: ExponentialSums(
                exponent: filled(1, shape.headDim, ExponentialSums.nothing), numerator: filled(1, shape.valueDim, 0),
                denominator: filled(1, shape.headDim, 0)),
            keys: filled(past, shape.headDim, ExponentialSums.nothing), values: filled(past, shape.valueDim, 0),
            positions: Array(repeating: 0, count: shape.batch))
    }

    private func initialState(_ k: Tensor, _ v: Tensor) -> AFTState {
        initialState(
            CoreShape(
                batch: k.size(0), heads: k.size(1), headDim: k.size(3), valueDim: v.size(3), dtype: v.dtype,
                device: v.device))
    }

    /// The next tokens after those that made `state`.
    func prefill(_ q: Tensor, _ k: Tensor, _ v: Tensor, paddingMask: Tensor?, state: inout AFTState) -> Tensor {
        let n = q.size(2)
        let lengths = paddingMask.map(realLengths) ?? state.positions.map { _ in n }
        let ends = zip(state.positions, lengths).map { $0 + $1 }
        checkLength(ends.max() ?? 0)
        let (keys, values) = real(k, v, paddingMask)
        let found = causalMean(keys, values, after: state)
        state = AFTState(
            older: found.older.mapped { Self.rows(of: $0, from: lengths, count: 1) },
            keys: Self.rows(of: found.keys, from: lengths, count: state.keys.size(2)),
            values: Self.rows(of: found.values, from: lengths, count: state.values.size(2)), positions: ends)
        return gated(q, found.mean)
    }

    /// The means at the next positions. Also, for the state after any of them, the sums over what has left the window
    /// before each and after the last of them, `[batch, heads, n + 1, …]`, and the keys and values from the first
    /// window on.
    private func causalMean(_ k: Tensor, _ v: Tensor, after state: AFTState) -> (
        mean: Tensor, older: ExponentialSums, keys: Tensor, values: Tensor
    ) {
        let n = k.size(2)
        let keys = concatenate([state.keys, k], dim: 2)
        let values = concatenate([state.values, v], dim: 2)
        // With each token the oldest one leaves the window; without a window, each enters the sums at once.
        let leaving = ExponentialSums.ofKeys(keys.sliced(2, 0..<n), values.sliced(2, 0..<n))
        let older = state.older.followed(by: leaving).prefixes()
        guard let offsets else {
            let own = older.mapped { $0.sliced(2, 1..<n + 1) }
            return (own.numerator / own.denominator, older, keys, values)
        }
        let before = older.mapped { $0.sliced(2, 0..<n).unsqueezed(2) }
        let window = ExponentialWindow(
            exponent: keys.unsqueezed(2), numerator: values.unsqueezed(2), denominator: nil,
            bias: windowBias(state.positions, count: n), rows: 1, columns: offsets.count)
        return (ExponentialSums.mean([before], [window]).squeezed(2), older, keys, values)
    }

    /// Of each sequence `count` rows from its own start on, in memory of their own.
    private static func rows(of x: Tensor, from starts: [Int], count: Int) -> Tensor {
        let source = x.detached()
        let first = starts.first ?? 0
        if starts.allSatisfy({ $0 == first }) { return source.sliced(2, first..<first + count).cloned() }
        return concatenate(
            starts.enumerated().map { source.sliced(0, $0..<$0 + 1).sliced(2, $1..<$1 + count) })
    }

    /// One token, q, k, v `[batch, heads, channels]`.
    func step(_ q: Tensor, _ k: Tensor, _ v: Tensor, state: inout AFTState) -> Tensor {
        checkLength((state.positions.max() ?? 0) + 1)
        let keys = concatenate([state.keys, k.to(state.keys.dtype).unsqueezed(2)], dim: 2)
        let values = concatenate([state.values, v.to(state.values.dtype).unsqueezed(2)], dim: 2)
        // [batch or 1, heads or 1, window, 1]
        let bias = windowBias(state.positions, count: 1)?.squeezed(2).transposed()
        let exponents = bias.map { keys + $0 } ?? keys
        let largest = maximum(exponents.maximum(2, keepDim: true), state.older.exponent)
        let distances = keys - largest  // the large numbers first
        let weights = (bias.map { distances + $0 } ?? distances).exp()
        let scale = (state.older.exponent - largest).exp()
        let numerator = (weights * values).sum(2, keepDim: true) + state.older.numerator * scale
        let denominator = weights.sum(2, keepDim: true) + state.older.denominator * scale

        let leaving = ExponentialSums.ofKeys(keys.sliced(2, 0..<1), values.sliced(2, 0..<1))
        state = AFTState(
            older: state.older.merged(with: leaving), keys: keys.sliced(2, 1..<keys.size(2)),
            values: values.sliced(2, 1..<values.size(2)), positions: state.positions.map { $0 + 1 })
        return gated(q, (numerator / denominator).squeezed(2))
    }

    // MARK: Misuse

    private func checkLength(_ length: Int) {
        guard let maximumLength else { return }
        torchPrecondition(
            length <= maximumLength, in: "AFTCore",
            "a sequence of \(length) tokens is longer than the maximum length \(maximumLength) of its position biases")
    }

    /// Traps unless q, k, v and the mask fit together.
    private func isFit(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Bool {
        let (sq, sk, sv) = (q.shape, k.shape, v.shape)
        var (heads, keyDim) = ("heads", "d")
        var isFit = sq.count == 4 && sq == sv && !sq.contains(0)
        if case .taps(let taps) = bias, isFit {
            (heads, keyDim) = ("\(taps.heads)", "1 or d")
            isFit = sv[1] == taps.heads && (sk == sv || sk == [sv[0], sv[1], sv[2], 1])
        } else {
            isFit = isFit && sk == sv
        }
        if isFit, let mask = paddingMask { isFit = mask.shape == [sv[0], sv[2]] && mask.dtype == .bool }
        torchPrecondition(
            isFit, in: "AFTCore",
            "expected q and v [batch, \(heads), n, d], k [batch, \(heads), n, \(keyDim)] and a bool mask [batch, n]; "
                + "got \(sq), \(sv), \(sk), \(paddingMask.map { "\($0.dtype) \($0.shape)" } ?? "no mask")")
        guard isFit else { return false }
        checkLength(sq[2])
        return sq[2] <= maximumLength ?? .max
    }
}

/// What AFT remembers: its size does not depend on the length.
public struct AFTState: StreamingState {
    /// Over the tokens that the window has left behind: `[batch, heads, 1, …]`.
    var older: ExponentialSums
    /// Of the tokens that the next one's window begins with: `[batch, heads, window - 1, channels or 1]`.
    var keys: Tensor
    /// `[batch, heads, window - 1, channels]`
    var values: Tensor
    /// Where each sequence's next token stands.
    public var positions: [Int]

    public var tensors: [String: Tensor] {
        [
            "exponent": older.exponent, "numerator": older.numerator, "denominator": older.denominator, "keys": keys,
            "values": values, "positions": Tensor(positions),
        ]
    }
}
