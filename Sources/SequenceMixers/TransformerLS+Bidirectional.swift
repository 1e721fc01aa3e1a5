import Torch
import TorchNN

/// Bidirectional long-short attention of a sequence, or of a grid.
///
/// Groups of w neighbors share the keys of their group and e = max(1, ⌊w/2⌋) positions on either side; on a grid, groups are
/// tiles of w × w. Every token also sees r mixtures of all of them, and the global tokens. These in turn see themselves and,
/// as keys and as values, what the other tokens' attention gave. Time and memory O(N (w + r) D) for windows of w keys.
public final class LongShortAttention: Module, ReferenceEvaluating {
    public enum Shape: Equatable, Sendable {
        /// With `cls`, the first token is global.
        case sequence(cls: Bool)
        /// `globalTokens`, and then side × side others row by row.
        case grid(side: Int, globalTokens: Int)

        var globals: Int {
            switch self {
            case .sequence(let cls): cls ? 1 : 0
            case .grid(_, let globalTokens): globalTokens
            }
        }
    }

    public let projections: LongShortProjections
    public let shape: Shape
    /// w
    public let window: Int
    public var usesReference = false
    let ranges = KeyRanges()
    /// Keeps to LibTorch's operations where the fused form would serve.
    var isComposed = false

    public init(
        modelDim: Int, heads: Int, window: Int, rank: Int, shape: Shape, epsilon: Double = 1e-5,
        using generator: RandomGenerator
    ) {
        torchPrecondition(
            window > 0 && rank > 0, in: "LongShortAttention",
            "expected a window and a rank above 0, got \(window) and \(rank)")
        projections = LongShortProjections(
            modelDim: modelDim, heads: heads, rank: rank, bias: true, epsilon: epsilon, using: generator)
        self.shape = shape
        self.window = max(window, 1)
        super.init()
    }

    public var isCausal: Bool { false }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        checkInput(x, paddingMask, modelDim: projections.modelDim)
        guard isInput(x, paddingMask, modelDim: projections.modelDim), isSound(x) else { return x }
        let found = attended(projections.queries(x), x, projections.key(x), projections.value(x), paddingMask)
        return output(found, paddingMask)
    }

    /// - Parameters:
    ///   - q: scaled `[batch, heads, n, headDim]`.
    ///   - x: what chooses the mixtures `[batch, n, modelDim]`.
    ///   - rawKeys, rawValues: before the norms `[batch, n, modelDim]`.
    func attended(_ q: Tensor, _ x: Tensor, _ rawKeys: Tensor, _ rawValues: Tensor, _ mask: Tensor?) -> Tensor {
        let (length, globals) = (x.size(1), shape.globals)
        let real = mask ?? Tensor.ones([1, length], dtype: .bool, device: x.device)
        let split = { (y: Tensor, dim: Int) in (y.sliced(dim, 0..<globals), y.sliced(dim, globals..<length)) }
        let (globalQueries, queries) = split(q, 2)
        let (realGlobals, realTokens) = split(real, 1)
        let (globalKeys, keys) = normalized(rawKeys, split)
        let (globalValues, values) = normalized(rawValues, split)
        let front = Keys(keys: globalKeys, values: globalValues, isReal: realGlobals)
        // A lone global token has only itself.
        guard length > globals else { return attended(globalQueries, front) }

        let tokens = Keys(keys: keys, values: values, isReal: realTokens)
        let seenByAll = common(x.sliced(1, globals..<length), tokens, front, isMasked: mask != nil)
        let found: Tensor
        if usesReference {
            found = dense(queries, tokens, seenByAll)
        } else if isRanged(q) {
            found = ranged(queries, tokens, seenByAll, isMasked: mask != nil)
        } else {
            found = windowed(queries, tokens, seenByAll)
        }
        if globals == 0 { return found }
        // Cleared like all padded queries before they become keys; their mask hides them in any case.
        let outs = Keys(keys: found, values: found, isReal: realTokens)
        return concatenate([attended(globalQueries, front.joined(outs)), found], dim: 2)
    }

    private func isSound(_ x: Tensor) -> Bool {
        guard case .grid(let side, let globalTokens) = shape else { return true }
        let length = side * side + globalTokens
        torchPrecondition(
            x.size(1) == length, in: "LongShortAttention",
            "expected x [batch, \(length), \(projections.modelDim)], \(globalTokens) global tokens and a grid of \(side) × "
                + "\(side); got \(x.shape)")
        return x.size(1) == length
    }

    /// Keys or values by heads. Those of a sequence's CLS token get the long-range norm later, those of a grid's global tokens
    /// the windows' norm.
    private func normalized(_ y: Tensor, _ split: (Tensor, Int) -> (Tensor, Tensor)) -> (Tensor, Tensor) {
        let (ofGlobals, ofTokens) = split(y, 1)
        let tokens = projections.windowNorm(ofTokens)
        let globals = if case .grid = shape { projections.windowNorm(ofGlobals) } else { ofGlobals }
        return (globals.splitHeads(projections.heads), tokens.splitHeads(projections.heads))
    }

    /// What every token sees besides its window.
    private func common(_ x: Tensor, _ tokens: Keys, _ front: Keys, isMasked: Bool) -> Keys {
        let seen = isMasked ? tokens.isReal.unsqueezed(1).unsqueezed(1) : nil
        let weights = mixtureWeights(projections.mixtureLogits(x), seen)  // P [batch, heads, rank, n]
        let mixtures = Keys(
            keys: matmul(weights, tokens.keys), values: matmul(weights, tokens.values),
            isReal: tokens.isReal.any(1, keepDim: true).expanded(to: [-1, projections.rank]))
        switch shape {
        case .sequence: return front.joined(mixtures).mapped(projections.long)
        case .grid: return mixtures.mapped(projections.long).joined(front)
        }
    }

    /// Attention of every query to all the keys.
    private func attended(_ q: Tensor, _ seen: Keys) -> Tensor {
        visibleAttention(
            matmul(q, seen.keys.transposed()), seen.isReal.unsqueezed(1).unsqueezed(1), seen.values)
    }

    /// Padded queries keep the output's bias alone.
    private func output(_ found: Tensor, _ real: Tensor?) -> Tensor {
        let kept = real.map { found.masked(where: (.!$0).unsqueezed(1).unsqueezed(3), with: 0) } ?? found
        return projections.output(kept.mergedHeads())
    }

    // MARK: Windows

    /// The ranges of ``ranged(_:_:_:keyMask:)``, of the tokens and of what is common.
    private func ranged(_ q: Tensor, _ tokens: Keys, _ common: Keys, isMasked: Bool) -> Tensor {
        // Side by side as the projections left them, which is one piece of memory after the other.
        func joined(_ near: Tensor, _ far: Tensor) -> Tensor {
            concatenate([near.mergedHeads(), far.mergedHeads()], dim: 1).splitHeads(projections.heads)
        }
        let mask = isMasked ? concatenate([tokens.isReal, common.isReal], dim: 1) : nil
        return ranged(
            q, joined(tokens.keys, common.keys), joined(tokens.values, common.values), keyMask: mask)
    }

    /// One softmax over each group's window and what is common to all.
    private func windowed(_ q: Tensor, _ tokens: Keys, _ common: Keys) -> Tensor {
        let windows = WindowTiles(shape: shape, window: window, length: q.size(2))
        let queries = windows.tiles(q)  // [batch, heads, groups, members, headDim]
        let shared = queries.flattened(2, 3)
        let ofWindow = matmul(queries, windows.neighborhoods(tokens.keys))
        let ofCommon = matmul(shared, common.keys.transposed())
            .reshaped(to: Array(queries.shape.dropLast()) + [-1])
        let local = windows.neighborhoods(tokens.isReal.unsqueezed(1).unsqueezed(3))  // [batch, 1, groups, 1, keys]
        let long = common.isReal.unsqueezed(1).unsqueezed(1).unsqueezed(1)
            .expanded(to: [-1, -1, local.size(2), -1, -1])
        let weights = visibleSoftmax(
            concatenate([ofWindow, ofCommon], dim: -1), concatenate([local, long], dim: -1)
        ).to(q.dtype)
        let keys = ofWindow.size(-1)
        let fromWindow = matmul(
            weights.sliced(4, 0..<keys), windows.neighborhoods(tokens.values).transposed())
        let fromCommon = matmul(weights.sliced(4, keys..<weights.size(4)).flattened(2, 3), common.values)
        return windows.restored(fromWindow + fromCommon.reshaped(to: fromWindow.shape))
    }

    /// The same with a mask of all pairs.
    private func dense(_ q: Tensor, _ tokens: Keys, _ common: Keys) -> Tensor {
        let windows = WindowTiles(shape: shape, window: window, length: q.size(2))
        let inWindow = windows.mask(device: q.device).unsqueezed(0).unsqueezed(0)
        let local = (inWindow .&& tokens.isReal.unsqueezed(1).unsqueezed(1))
        let long = common.isReal.unsqueezed(1).unsqueezed(1)
            .expanded(to: [local.size(0), -1, q.size(2), -1])
        let all = common.joined(tokens)
        return visibleAttention(
            matmul(q, all.keys.transposed()), concatenate([long, local], dim: -1), all.values)
    }
}

/// Keys and values `[batch, heads, m, headDim]`, and which of them are real `[batch or 1, m]`.
private struct Keys {
    let keys: Tensor
    let values: Tensor
    let isReal: Tensor

    func joined(_ other: Keys) -> Keys {
        let batch = max(isReal.size(0), other.isReal.size(0))
        return Keys(
            keys: concatenate([keys, other.keys], dim: 2), values: concatenate([values, other.values], dim: 2),
            isReal: concatenate(
                [isReal.expanded(to: [batch, -1]), other.isReal.expanded(to: [batch, -1])], dim: 1))
    }

    func mapped(_ body: (Tensor) -> Tensor) -> Keys {
        Keys(keys: body(keys), values: body(values), isReal: isReal)
    }
}

/// Groups of neighbors that share their keys: w positions in a row, or w × w of a grid.
private struct WindowTiles {
    /// nil for a sequence.
    private let side: Int?
    private let length: Int
    private let window: Int
    /// How far the keys reach beyond the group.
    private let margin: Int

    init(shape: LongShortAttention.Shape, window: Int, length: Int) {
        if case .grid(let side, _) = shape { self.side = side } else { side = nil }
        self.length = length
        let extent = side ?? length
        // A window wider than everything is everything.
        margin = min(max(1, window / 2), extent)
        self.window = min(window, extent)
    }

    private var extent: Int { side ?? length }
    private var groups: Int { (extent + window - 1) / window }

    /// x `[batch, heads, n, d]` → `[batch, heads, groups, members, d]`, filled up with zeros.
    func tiles(_ x: Tensor) -> Tensor {
        let (batch, heads, width, missing) = (x.size(0), x.size(1), x.size(3), groups * window - extent)
        guard let side else { return x.padded(2, after: missing).reshaped(batch, heads, groups, window, width) }
        return x.reshaped(batch, heads, side, side, width).padded(2, after: missing).padded(3, after: missing)
            .reshaped(batch, heads, groups, window, groups, window, width).permuted(0, 1, 2, 4, 3, 5, 6)
            .reshaped(batch, heads, groups * groups, window * window, width)
    }

    /// The inverse.
    func restored(_ y: Tensor) -> Tensor {
        let (batch, heads, width) = (y.size(0), y.size(1), y.size(4))
        guard let side else { return y.reshaped(batch, heads, groups * window, width).sliced(2, 0..<length) }
        return y.reshaped(batch, heads, groups, groups, window, window, width).permuted(0, 1, 2, 4, 3, 5, 6)
            .reshaped(batch, heads, groups * window, groups * window, width)
            .sliced(2, 0..<side).sliced(3, 0..<side).reshaped(batch, heads, side * side, width)
    }

    /// What each group sees, zeros (false) beyond the borders: `[batch, heads, groups, d, keys]`.
    func neighborhoods(_ x: Tensor) -> Tensor {
        let after = groups * window - extent + margin
        let size = window + 2 * margin
        guard let side else {
            return x.padded(2, before: margin, after: after).unfolded(2, size: size, step: window)
        }
        return x.reshaped(x.size(0), x.size(1), side, side, x.size(3))
            .padded(2, before: margin, after: after).padded(3, before: margin, after: after)
            .unfolded(2, size: size, step: window).unfolded(3, size: size, step: window)
            .flattened(5, 6).flattened(2, 3)
    }

    /// Bool `[n, n]`: whether a token's group sees another token.
    func mask(device: Device) -> Tensor {
        let places = Tensor.arange(0..<length, device: device)
        guard let side else { return along(places) }
        return along(places.floorDivided(by: side)) .&& along(places.remainder(dividingBy: side))
    }

    private func along(_ places: Tensor) -> Tensor {
        let start = (places.floorDivided(by: window) * window).unsqueezed(1)
        let other = places.unsqueezed(0)
        return (other .>= start - margin) .&& (other .< start + window + margin)
    }
}
