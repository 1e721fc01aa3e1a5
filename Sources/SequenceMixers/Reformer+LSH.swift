// LSH attention. Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451, section 2.
//
// Queries and keys are one projection x, the keys brought to length 1: k̂_j = x_j / (√D √(mean x_j² + ε)). In round r
// token i gets the bucket
//   h_r(i) = argmax [x_i R_r, -x_i R_r]                    (with several factors, one digit for each piece of R_r)
// The tokens are sorted by (bucket, position), and the sorted lists of all rounds, one after the other, are cut into
// chunks of m slots. In round r token i sees P_ri, the tokens of its chunk and of those around it; the first chunk of
// all follows on the last. With n_ij the number of times that i sees j in all rounds,
//   s_ij = τ x_i·k̂_j [- ln n_ij],   -10⁹ where j is hidden,   -10⁵ where j = i: a token sees itself only in need
//   z_ri = ln Σ_{j∈P_ri} exp s_ij,   o_ri = Σ_{j∈P_ri} exp(s_ij - z_ri) v_j,   out_i = Σ_r softmax_r(z_ri) o_ri
// A sequence of at most m tokens is one chunk, seen once, without hashing.
import Torch
import TorchNN

/// How long a round of LSH attention is for a sequence that is padded, and how far chunks of local attention wrap.
public enum ReformerLength: String, NamedChoice {
    /// As long as the sequence's own tokens need, so that padding changes nothing.
    case real
    /// As long as the padded sequence, as in the authors' code: the output then shows how much padding there is.
    case padded
}

/// What LSH attention sees and how it weighs it, whatever the hashes.
public struct LSHSettings: Sendable, Equatable {
    /// τ
    public enum LogitScale: String, NamedChoice {
        /// 1: the authors' code.
        case unit
        /// 1/√D: the letter of the paper's first equation.
        case sqrt
    }

    public var isCausal: Bool
    /// m
    public var chunk: Int
    /// How many chunks before its own a token sees, and how many after.
    public var chunksBefore = 1
    public var chunksAfter = 0
    public var logitScale = LogitScale.unit
    /// Whether tokens of other buckets are hidden.
    public var withinBucket = false
    /// Whether a key counts once however often it is seen, by the term - ln n_ij.
    public var uniquePairs = false
    public var roundLength = ReformerLength.real
    /// ε
    public var keyNormEpsilon = 1e-6
    /// The logit of a token for itself.
    public var selfLogit = -1e5

    public init(isCausal: Bool, chunk: Int) {
        self.isCausal = isCausal
        self.chunk = chunk
    }

    /// The logit of what is hidden.
    static let hiddenLogit = -1e9

    func scale(headDim: Int) -> Double { logitScale == .unit ? 1 : 1 / Double(headDim).squareRoot() }

    func forKernel(bucketCount: Int, headDim: Int) -> LSHAttentionOptions {
        var options = LSHAttentionOptions(isCausal: isCausal, chunk: chunk, bucketCount: bucketCount)
        (options.chunksBefore, options.chunksAfter) = (chunksBefore, chunksAfter)
        (options.withinBucket, options.uniquePairs) = (withinBucket, uniquePairs)
        options.usesRealLength = roundLength == .real
        options.scale = scale(headDim: headDim)
        (options.keyNormEpsilon, options.selfLogit) = (keyNormEpsilon, selfLogit)
        return options
    }

    /// ln n, for counts n of at least 1. Always in float32, as the numbers that golden files hold were computed: nothing
    /// else here is rounded so, and it is seen in the ninth digit.
    func discount(_ counts: Tensor) -> Tensor { counts.to(.float32).log() }

    /// k̂
    func keys(_ x: Tensor) -> Tensor {
        let size = (x.square().mean(-1, keepDim: true) + keyNormEpsilon).sqrt()
        return x / (size * Double(x.size(-1)).squareRoot())
    }
}

/// LSH attention on shared queries and keys.
///
/// For R rounds, chunks of m, and b the sum of the buckets' factors: time O(R N m D), to hash O(R N D b); memory
/// O(N (R + D)), gradients included, since scores are computed block by block and never kept.
/// ``LSHSettings/uniquePairs`` multiplies the work on scores by up to R². Fused on the CPU; elsewhere composed of LibTorch's
/// operations, with a sort in time O(R N log N) and memory O(R N (D + b)).
public final class LSHCore: Module {
    public let settings: LSHSettings
    /// Of the number of buckets; each even.
    public let factors: [Int]
    /// How many rounds there are in training.
    public let rounds: Int
    /// And in evaluation.
    public let evaluationRounds: Int
    /// `[heads, headDim, rounds, Σ factors / 2]`: those drawn last, which evaluation goes on with.
    public let rotations: Buffer
    /// Whether to compose LibTorch's operations on the CPU too.
    public var isComposed = false
    /// How many logits are held at once where it is composed.
    public var logitsAtOnce = 1 << 22
    private let generator: RandomGenerator?

    /// - Parameter redraws: whether each training step draws new rotations.
    public init(
        _ settings: LSHSettings, factors: [Int], rounds: Int, evaluationRounds: Int? = nil, heads: Int, headDim: Int,
        redraws: Bool = true, using generator: RandomGenerator
    ) {
        Self.check(factors, rounds: min(rounds, evaluationRounds ?? rounds))
        self.settings = settings
        self.factors = factors
        self.rounds = rounds
        self.evaluationRounds = evaluationRounds ?? rounds
        let shape = [heads, headDim, max(rounds, evaluationRounds ?? rounds), factors.reduce(0, +) / 2]
        rotations = Buffer(.randomNormal(shape, using: generator))
        self.generator = redraws ? generator : nil
        super.init()
    }

    /// With given rotations `[heads, headDim, rounds, Σ factors / 2]`, which stay, and are not saved.
    public init(_ settings: LSHSettings, factors: [Int], rotations: Tensor) {
        Self.check(factors, rounds: rotations.size(2))
        torchPrecondition(
            rotations.rank == 4 && rotations.size(3) == factors.reduce(0, +) / 2, in: "LSHCore",
            "expected rotations [heads, headDim, rounds, \(factors.reduce(0, +) / 2)]; got \(rotations.shape)")
        self.settings = settings
        self.factors = factors
        rounds = rotations.size(2)
        evaluationRounds = rounds
        self.rotations = Buffer(rotations, isPersistent: false)
        generator = nil
        super.init()
    }

    private static func check(_ factors: [Int], rounds: Int) {
        torchPrecondition(
            rounds > 0 && !factors.isEmpty && factors.allSatisfy { $0 > 0 && $0.isMultiple(of: 2) }, in: "LSHCore",
            "expected at least one round and even numbers of buckets; got \(rounds) rounds, \(factors) buckets")
    }

    /// How many buckets a round has.
    public var bucketCount: Int { factors.reduce(1, *) }

    /// qk `[batch, heads, n, headDim]`, v `[batch, heads, n, valueDim]` → `[batch, heads, n, valueDim]`.
    ///
    /// - Parameter buckets: what ``buckets(_:)`` gave, to keep to it; nil to hash.
    public func callAsFunction(_ qk: Tensor, _ v: Tensor, paddingMask: Tensor?, buckets: Tensor? = nil) -> Tensor {
        guard fits(qk, v, paddingMask) else { return v }
        // The kernel leaves out what is hidden: with such a logit for itself a token would have to see it.
        if isFused(qk), settings.selfLogit > LSHSettings.hiddenLogit / 2 {
            return lshAttention(
                qk, v, buckets: buckets ?? choice(qk), paddingMask: paddingMask,
                settings.forKernel(bucketCount: bucketCount, headDim: qk.size(3)))
        }
        return composed(qk, v, paddingMask: paddingMask, buckets: buckets ?? self.buckets(qk))
    }

    private func isFused(_ x: Tensor) -> Bool { x.device == .cpu && !isComposed }

    private func composed(_ qk: Tensor, _ v: Tensor, paddingMask: Tensor?, buckets: Tensor) -> Tensor {
        let wide = v.dtype.accumulator
        let layout = SortedRounds(buckets, paddingMask: paddingMask, bucketCount: bucketCount, settings)
        let extra = layout.length - qk.size(2)
        let q = qk.to(wide).padded(2, after: extra)
        let attention = SortedAttention(settings: settings, layout: layout, logitsAtOnce: logitsAtOnce)
        let out = attention(q, settings.keys(q), v.to(wide).padded(2, after: extra))
        return out.sliced(2, 0..<qk.size(2)).to(v.dtype)
    }

    // MARK: Hashing

    /// The bucket of each token in each round, for qk `[batch, heads, n, headDim]`: int64 `[batch, heads, rounds, n]`.
    ///
    /// In training this draws new rotations first. A computation that a `Replay` repeats gets the buckets it had.
    public func buckets(_ qk: Tensor) -> Tensor { choice(qk).to(.int64) }

    /// In int32.
    private func choice(_ qk: Tensor) -> Tensor {
        // Nothing is hashed that fits into one chunk.
        if qk.size(2) <= settings.chunk {
            return .zeros([qk.size(0), qk.size(1), 1, qk.size(2)], dtype: .int32, device: qk.device)
        }
        return Replay.choice { withNoGrad { hashed(qk).to(.int32) } }
    }

    private func hashed(_ qk: Tensor) -> Tensor {
        if isTraining, let generator {
            let old = rotations.value
            rotations.value = .randomNormal(old.shape, using: generator, dtype: old.dtype, device: old.device)
        }
        let x = qk.to(qk.dtype.accumulator)
        let drawn = rotations.value.to(x.dtype)
        let count = isTraining ? rounds : evaluationRounds
        if isFused(x) { return lshBuckets(x, rotations: drawn, rounds: count, factors: factors) }
        return stack((0..<count).map { bucket(matmul(x, drawn.selected(2, $0))) }, dim: 2)
    }

    /// h_r, from x R_r `[batch, heads, n, Σ factors / 2]`.
    private func bucket(_ y: Tensor) -> Tensor {
        var (first, unit) = (0, 1)
        var digits: [Tensor] = []
        for factor in factors {
            let part = y.sliced(3, first..<first + factor / 2)
            digits.append(concatenate([part, -part], dim: 3).argmax(3) * unit)
            first += factor / 2
            unit *= factor
        }
        return digits.dropFirst().reduce(digits[0]) { $0 + $1 }
    }

    /// Whether the shapes fit; where they do not, that is reported.
    private func fits(_ qk: Tensor, _ v: Tensor, _ paddingMask: Tensor?) -> Bool {
        let (sq, sv, sr) = (qk.shape, v.shape, rotations.value.shape)
        let areTensors = sq.count == 4 && sv.count == 4 && sq.dropLast() == sv.dropLast() && !(sq + sv).contains(0)
        torchPrecondition(
            areTensors, in: "LSHCore",
            "expected qk [batch, heads, n, d], v [batch, heads, n, e] and at least one of everything; got \(sq), \(sv)")
        guard areTensors else { return false }
        torchPrecondition(
            sr.starts(with: [sq[1], sq[3]]), in: "LSHCore",
            "expected qk of \(sr[0]) heads of \(sr[1]) channels, as the rotations are; got \(sq)")
        let isMask = paddingMask.map { $0.shape == [sq[0], sq[2]] && $0.dtype == .bool } ?? true
        torchPrecondition(
            isMask, in: "LSHCore",
            "expected a bool paddingMask [batch, n] for qk \(sq); got \(paddingMask?.shape ?? [])")
        return sr.starts(with: [sq[1], sq[3]]) && isMask
    }
}

// MARK: - The equations

extension LSHCore {
    /// The equations, literally: for each round a table of who sees whom how often. Time and memory O(R N²).
    public func reference(_ qk: Tensor, _ v: Tensor, paddingMask: Tensor?, buckets: Tensor? = nil) -> Tensor {
        guard fits(qk, v, paddingMask) else { return v }
        let ids = buckets ?? self.buckets(qk)
        guard settings.roundLength == .real, let paddingMask else { return equations(qk, v, paddingMask, ids) }
        // Each sequence by itself, its padding taken out.
        let rows = (0..<qk.size(0)).map { row in
            let places = paddingMask.selected(0, row).nonzero().flattened()
            let zeros = Tensor.zeros(like: v.detached().sliced(0, row..<row + 1))
            if places.count == 0 { return zeros }
            func own(_ x: Tensor, _ dim: Int) -> Tensor { x.sliced(0, row..<row + 1).indexed(dim, places) }
            return zeros.indexAdded(2, places, equations(own(qk, 2), own(v, 2), nil, own(ids, 3)))
        }
        return concatenate(rows)
    }

    private func equations(_ qk: Tensor, _ v: Tensor, _ paddingMask: Tensor?, _ ids: Tensor) -> Tensor {
        let (batch, length) = (qk.size(0), qk.size(2))
        let chunk = min(settings.chunk, length)
        let total = (length + chunk - 1) / chunk * chunk
        let (q, values) = (qk.padded(2, after: total - length), v.padded(2, after: total - length))
        let given = paddingMask ?? Tensor.ones([batch, length], dtype: .bool, device: qk.device)
        let isReal = concatenate(
            [given, Tensor.zeros([batch, total - length], dtype: .bool, device: qk.device)], dim: 1)

        let position = Tensor.arange(0..<total, device: qk.device)
        let seen = visibilities(ids, isReal, chunk: chunk, position)  // for each round [batch, heads, total, total]
        var logits = matmul(q, settings.keys(q).transposed()) * settings.scale(headDim: q.size(3))
        if settings.uniquePairs {
            logits -= settings.discount(seen[1...].reduce(seen[0]) { $0 + $1 }.clamped(min: 1)).to(logits.dtype)
        }
        var hidden = (.!isReal).unsqueezed(1).unsqueezed(1)
        if settings.isCausal { hidden = (hidden .|| (position .> position.unsqueezed(1))) }
        logits = logits.masked(where: hidden, with: LSHSettings.hiddenLogit)
            .masked(where: position .== position.unsqueezed(1), with: settings.selfLogit)

        let scores = seen.map { logits + $0.to(logits.dtype).log() }
        let z = stack(scores.map { $0.logSumExp(-1, keepDim: true) })  // [rounds, batch, heads, total, 1]
        let o = stack(scores.map { matmul($0.softmax(), values) })
        return (z.softmax(0) * o).sum(0).sliced(2, 0..<length)
    }

    /// For each round, how often the token of a row sees that of a column: float64 `[batch, heads, total, total]`.
    private func visibilities(_ ids: Tensor, _ isReal: Tensor, chunk: Int, _ position: Tensor) -> [Tensor] {
        let total = position.count
        if total == chunk { return [Tensor.ones([ids.size(0), ids.size(1), total, total], dtype: .float64)] }
        let chunks = total / chunk
        let rounds = ids.size(2)
        let buckets = (0..<rounds).map { round in
            ids.selected(2, round).padded(2, after: total - ids.size(3))
                .masked(where: (.!isReal).unsqueezed(1), with: bucketCount)
        }
        let places = buckets.enumerated().map { round, bucket in
            let key = bucket * total + position
            let rank = (key.unsqueezed(2) .< key.unsqueezed(3)).sum(3)  // how many tokens come before it
            return rank.floorDivided(by: chunk) + round * chunks
        }
        return (0..<rounds).map { round in
            var seen = Tensor.zeros([ids.size(0), ids.size(1), total, total], dtype: .float64)
            for offset in -settings.chunksBefore...settings.chunksAfter {
                let target = (places[round] + offset).remainder(dividingBy: rounds * chunks).unsqueezed(3)
                // Buckets of two rounds are never the same.
                for other in 0..<rounds where !settings.withinBucket || other == round {
                    var meets = target .== places[other].unsqueezed(2)
                    if settings.withinBucket {
                        meets = (meets .&& (buckets[round].unsqueezed(3) .== buckets[round].unsqueezed(2)))
                    }
                    seen += meets.to(.float64)
                }
            }
            return seen
        }
    }
}
