// What Combiner attention knows of a span as a whole: its pooled key, and its values under its pooled query.
import Torch
import TorchNN

/// φ and pool of q̄ and k̄, in one name `φ-pool`.
public enum CombinerSummary: String, NamedChoice {
    case identityMax = "identity-max"
    case identityMean = "identity-mean"
    case identitySum = "identity-sum"
    case reluMax = "relu-max"
    case reluMean = "relu-mean"
    case reluSum = "relu-sum"
    case deepsetMax = "deepset-max"
    case deepsetMean = "deepset-mean"
    case deepsetSum = "deepset-sum"

    enum Activation { case identity, relu, deepset }
    enum Pool { case max, mean, sum }

    var activation: Activation {
        switch self {
        case .identityMax, .identityMean, .identitySum: .identity
        case .reluMax, .reluMean, .reluSum: .relu
        case .deepsetMax, .deepsetMean, .deepsetSum: .deepset
        }
    }

    var pool: Pool {
        switch self {
        case .identityMax, .reluMax, .deepsetMax: .max
        case .identityMean, .reluMean, .deepsetMean: .mean
        case .identitySum, .reluSum, .deepsetSum: .sum
        }
    }
}

/// The score of what is not looked at: below any other, and finite, so that a row of nothing else stays free of NaN.
let excludedScore = -1e38

/// Pools queries and keys of spans, all heads alike.
public final class CombinerPooling: Module {
    public let summary: CombinerSummary
    /// `[headDim, headDim]` of `deepset`: φ(x) = relu(x Wᵀ).
    public let query: Parameter?
    /// The same of the keys.
    public let key: Parameter?

    public init(_ summary: CombinerSummary, headDim: Int, using generator: RandomGenerator) {
        self.summary = summary
        let isWeighted = summary.activation == .deepset
        query = isWeighted ? Self.weight(headDim, generator) : nil
        key = isWeighted ? Self.weight(headDim, generator) : nil
        super.init()
    }

    private static func weight(_ size: Int, _ generator: RandomGenerator) -> Parameter {
        let weight = Tensor.zeros([size, size])
        Initializer.xavierUniform().apply(to: weight, using: generator)
        return Parameter(weight)
    }

    /// The width that the weights are for; nil without them, when any will do.
    var headDim: Int? { query?.value.size(0) }

    func activated(_ x: Tensor, _ weight: Parameter?) -> Tensor {
        let mixed = weight.map { linear(x, $0.value.to(x.dtype)) } ?? x
        return summary.activation == .identity ? mixed : mixed.relu()
    }

    /// Of spans `[…, span, ·]`, each as a whole: `[…, ·]`.
    func summaries(of tokens: CombinerTokens) -> CombinerSummaries {
        let (q, k) = (pooled(activated(tokens.q, query), tokens.real), pooled(activated(tokens.k, key), tokens.real))
        let logits = matmul(tokens.k, q.unsqueezed(-1)).squeezed(-1) * tokens.scale  // […, span]
        let open = tokens.real.map { logits.masked(where: .!$0, with: excludedScore) } ?? logits
        let values = matmul(open.softmax().unsqueezed(-2), tokens.v).squeezed(-2)
        return CombinerSummaries(keys: k, values: values, present: tokens.real?.any(-1))
    }

    /// Of lines `[batch, heads, lines, length, ·]`, at each place the span of what stands before it: the same shape.
    func summariesBefore(_ lines: CombinerTokens) -> CombinerSummaries {
        let q = running(activated(lines.q, query), lines.real)
        let values = attended(q, lines, lines.v, causal: true)
        let present = lines.real.map { $0.to(.int64).cumulativeSum(3) .> 0 }
        return CombinerSummaries(keys: running(activated(lines.k, key), lines.real), values: values, present: present)
            .delayed()
    }

    /// The same of what stands after each place.
    func summariesAfter(_ lines: CombinerTokens) -> CombinerSummaries {
        summariesBefore(lines.mapped { $0.flipped(3) }).mapped { $0.flipped(3) }
    }

    private func pooled(_ x: Tensor, _ real: Tensor?) -> Tensor {
        guard let real else {
            switch summary.pool {
            case .max: return x.maximum(-2)
            case .mean: return x.mean(-2)
            case .sum: return x.sum(-2)
            }
        }
        let isPadding = (.!real).unsqueezed(-1)
        switch summary.pool {
        case .max:
            let isEmpty = .!real.any(-1, keepDim: true)
            return x.masked(where: isPadding, with: excludedScore).maximum(-2).masked(where: isEmpty, with: 0)
        case .mean:
            return x.masked(where: isPadding, with: 0).sum(-2) / real.to(x.dtype).sum(-1, keepDim: true).clamped(min: 1)
        case .sum: return x.masked(where: isPadding, with: 0).sum(-2)
        }
    }

    /// The pool of everything up to each place of `[batch, heads, lines, length, ·]`.
    private func running(_ x: Tensor, _ real: Tensor?) -> Tensor {
        let weights = (real ?? .ones([1, 1, 1, x.size(3)], dtype: .bool, device: x.device)).unsqueezed(4)
        let isPadding = .!weights
        switch summary.pool {
        case .max:
            guard real != nil else { return x.cumulativeMaximum(3) }
            let isEmpty = weights.to(.int64).cumulativeSum(3) .== 0
            return x.masked(where: isPadding, with: excludedScore).cumulativeMaximum(3).masked(where: isEmpty, with: 0)
        case .mean:
            let count = weights.to(x.dtype).cumulativeSum(3).clamped(min: 1)
            return x.masked(where: isPadding, with: 0).cumulativeSum(3) / count
        case .sum: return x.masked(where: isPadding, with: 0).cumulativeSum(3)
        }
    }
}

/// Softmax attention inside each line of `[batch, heads, lines, length, ·]`, without a matrix of scores in memory.
func attended(_ q: Tensor, _ lines: CombinerTokens, _ values: Tensor, causal: Bool) -> Tensor {
    let separate = { (x: Tensor) in x.flattened(0, 2).unsqueezed(1) }
    let mask = lines.real.map { $0.expanded(to: Array(q.shape.dropLast())).flattened(0, 2) }
    let out = SoftmaxCore(isCausal: causal)(separate(q), separate(lines.k), separate(values), paddingMask: mask)
    return out.reshaped(to: values.shape)
}

/// What far queries weigh and get of spans, one or many.
struct CombinerSummaries {
    /// k̄ `[batch, heads, …, headDim]`
    var keys: Tensor
    /// v̄ `[batch, heads, …, valueDim]`
    var values: Tensor
    /// Which spans have a real token `[batch or 1, 1, …]`, with sizes of 1 where all are alike; nil: all have.
    var present: Tensor?

    var tensors: [String: Tensor] {
        var tensors = ["keys": keys, "values": values]
        tensors["present"] = present
        return tensors
    }

    func mapped(_ body: (Tensor) -> Tensor) -> CombinerSummaries {
        CombinerSummaries(keys: body(keys), values: body(values), present: present.map(body))
    }

    /// Everything one place later along dimension 3: from spans up to a place to those before it, of which the first has
    /// none.
    fileprivate func delayed() -> CombinerSummaries {
        let length = keys.size(3)
        func late(_ x: Tensor) -> Tensor { x.padded(3, before: 1).sliced(3, 0..<length) }
        let known = present ?? .ones([1, 1, 1, length], dtype: .bool, device: keys.device)
        let none = Tensor.zeros([known.size(0), 1, known.size(2), 1], dtype: .bool, device: keys.device)
        return CombinerSummaries(
            keys: late(keys), values: late(values),
            present: concatenate([none, known.sliced(3, 0..<max(length - 1, 0))], dim: 3))
    }
}

/// Tokens as Combiner attention takes them: a sequence `[batch, heads, length, ·]`, or rows `[batch, heads, rows, columns, ·]`.
struct CombinerTokens {
    var q: Tensor
    var k: Tensor
    var v: Tensor
    /// The layer's input, with one head; only where keys of rows are made from it.
    var x: Tensor?
    /// True for a real token `[batch or 1, 1, length]` or `[batch or 1, 1, rows, columns]`; nil: all are.
    var real: Tensor?

    var count: Int { q.size(2) }
    var scale: Double { 1 / Double(q.size(-1)).squareRoot() }

    /// Whether the shapes of a sequence fit together.
    var isSound: Bool {
        let shape = q.shape
        guard shape.count == 4, !shape.contains(0), k.shape == shape, v.rank == 4, v.size(3) > 0 else { return false }
        guard real?.dtype ?? .bool == .bool, x?.rank ?? 4 == 4 else { return false }
        let leading = Array(shape.dropLast())
        let marks = real?.shape ?? [1, 1, count]
        return Array(v.shape.dropLast()) == leading && (marks == [shape[0], 1, count] || marks == [1, 1, count])
    }

    var tensors: [String: Tensor] {
        var tensors = ["query": q, "key": k, "value": v]
        tensors["x"] = x
        tensors["real"] = real
        return tensors
    }

    func mapped(_ body: (Tensor) -> Tensor) -> CombinerTokens {
        CombinerTokens(q: body(q), k: body(k), v: body(v), x: x.map(body), real: real.map(body))
    }

    func sliced(_ range: Range<Int>) -> CombinerTokens {
        range == 0..<count ? self : mapped { $0.sliced(2, range) }
    }

    func sequence(_ index: Int) -> CombinerTokens { mapped { $0.sliced(0, index..<index + 1) } }

    /// `other` after these, along a dimension.
    func appending(_ other: CombinerTokens, _ dim: Int = 2) -> CombinerTokens {
        func joined(_ a: Tensor, _ b: Tensor?) -> Tensor? { b.map { concatenate([a, $0], dim: dim) } }
        return CombinerTokens(
            q: concatenate([q, other.q], dim: dim), k: concatenate([k, other.k], dim: dim),
            v: concatenate([v, other.v], dim: dim), x: x.flatMap { joined($0, other.x) },
            real: real.flatMap { joined($0, other.real) })
    }

    /// In float32 at least: what is summed over a sequence leaves the range of half precision.
    func widened() -> CombinerTokens {
        let dtype = v.dtype.accumulator
        return CombinerTokens(q: q.to(dtype), k: k.to(dtype), v: v.to(dtype), x: x?.to(dtype), real: real)
    }

    /// With a mark of its own for every token.
    func marked() -> CombinerTokens {
        var tokens = self
        tokens.real = real ?? .ones([q.size(0), 1, count], dtype: .bool, device: q.device)
        return tokens
    }

    /// The sequence in rows, the last of which is filled up with padding.
    func rows(of columns: Int) -> CombinerTokens {
        let rows = (count + columns - 1) / columns
        let missing = rows * columns - count
        func shaped(_ x: Tensor) -> Tensor {
            x.padded(2, after: missing).contiguous().reshaped(x.size(0), x.size(1), rows, columns, x.size(3))
        }
        var marks = real
        if missing > 0 {
            let known = real ?? .ones([1, 1, count], dtype: .bool, device: q.device)
            let none = Tensor.zeros([known.size(0), 1, missing], dtype: .bool, device: q.device)
            marks = concatenate([known, none], dim: 2)
        }
        return CombinerTokens(
            q: shaped(q), k: shaped(k), v: shaped(v), x: x.map(shaped),
            real: marks.map { $0.reshaped($0.size(0), 1, rows, columns) })
    }

    /// Rows and columns exchanged.
    var turned: CombinerTokens { mapped { $0.transposed(2, 3).contiguous() } }
}
