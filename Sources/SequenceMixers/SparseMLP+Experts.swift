// The mixture of experts of Sparse-MLP; its place in the block is in SparseMLP.swift. For an item t, N experts E_e and
// W_g [D, N]:
//
//   G = softmax(t W_g + ε),  ε ~ N(0, 1/N²) in training, 0 otherwise
//   MoE(t) = Σ_e G_e E_e(t) over the k largest G_e, not normalized again, but for those whose expert is full
//
// Capacity, priority and losses are those of V-MoE (Riquelme et al. 2021, arXiv 2106.05974), which the paper takes
// over:
//
//   L_imp  = Var_e(I) / Mean_e(I)²,  I_e = Σ_t softmax(t W_g)_e
//   L_load = Var_e(P) / Mean_e(P)²,  P_e = Σ_t 1 - Φ((θ_t - (t W_g)_e) N),  θ_t the k-th largest entry of t W_g + ε
import Foundation
import Torch
import TorchNN

/// How many items an expert takes.
public enum ExpertCapacity: Equatable, Sendable {
    /// All that choose it.
    case unlimited
    /// ⌈items · choices · factor / experts⌉: with 1, its share if all were chosen as often.
    case factor(Double)
    case count(Int)

    /// Nil for no limit.
    func limit(items: Int, choices: Int, experts: Int) -> Int? {
        switch self {
        case .unlimited: nil
        case .factor(let factor): Int((Double(items * choices) * factor / Double(experts)).rounded(.up))
        case .count(let count): count
        }
    }
}

/// Who serves whom, in one pass.
public struct ExpertRouting {
    /// The k experts of each item, the likeliest first: int64 `[items, k]`.
    public let experts: Tensor
    /// Their weights G, 0 where the expert was full: `[items, k]`.
    public let gates: Tensor
    /// False where the expert was full, or the item is padding: bool `[items, k]`.
    public let isKept: Tensor
    /// t W_g, without and with the noise: `[items, experts]`.
    let logits: Tensor
    let noisy: Tensor
    /// `[items]`, true for items that count; nil where all do.
    let mask: Tensor?

    /// The weights of all experts, 0 for those not chosen: `[items, experts]`.
    public var combination: Tensor { Tensor.zeros(like: logits).scattered(1, experts, gates, adding: true) }

    /// L_imp: how unevenly the experts are weighted.
    public var importanceLoss: Tensor { squaredVariation(logits.softmax()) }

    /// L_load: how unevenly they would be chosen, over all noise. The choice of θ's place takes no gradient, θ does.
    public var loadLoss: Tensor {
        let count = Double(logits.size(1))
        let threshold = noisy.gathered(1, experts.sliced(1, experts.size(1) - 1..<experts.size(1)))  // [items, 1]
        let distance = (threshold - logits) * (count / 2.0.squareRoot())
        return squaredVariation(distance.erfc() * 0.5)
    }

    private func squaredVariation(_ shares: Tensor) -> Tensor {
        let counted = mask.map { shares.masked(where: (.!$0).unsqueezed(1), with: 0) } ?? shares
        let sums = counted.sum(0)
        return sums.variance(0, correction: 0) / (sums.mean().square() + 1e-30)  // where nothing counts, 0
    }
}

/// Experts of two layers each, of which every item is served by a few: `[items, dim]` to the same shape.
///
/// Time O(items · k · dim · hidden) for k choices, whatever the number of experts, and O(items · dim · experts) for
/// routing; memory O(items · (k (dim + hidden) + experts)).
public final class MixtureOfExperts: Module {
    /// W_g `[dim, experts]`.
    public let gate: Parameter
    /// `[experts, hidden, dim]` and `[experts, hidden]`.
    public let up: Parameter
    public let upBias: Parameter
    /// `[experts, dim, hidden]` and `[experts, dim]`.
    public let down: Parameter
    public let downBias: Parameter
    public let experts: Int
    /// k.
    public let choices: Int
    public let capacity: ExpertCapacity
    /// Whether those items are served first whose largest weight is largest, rather than the first of the batch.
    public let hasPriority: Bool
    /// Whether ε is drawn in training.
    public let isNoisy: Bool
    private let activation: Activation
    private let generator: RandomGenerator

    public init(
        _ dim: Int, hiddenDim: Int, experts: Int, choices: Int, capacity: ExpertCapacity = .unlimited,
        hasPriority: Bool = false, isNoisy: Bool = true, activation: Activation = .gelu,
        using generator: RandomGenerator
    ) {
        torchPrecondition(
            dim > 0 && hiddenDim > 0 && choices > 0 && choices <= experts, in: "MixtureOfExperts",
            "expected positive sizes and at most as many choices as experts; got dim \(dim), hiddenDim \(hiddenDim), "
                + "\(experts) experts, \(choices) choices")
        self.experts = experts
        self.choices = choices
        self.capacity = capacity
        self.hasPriority = hasPriority
        self.isNoisy = isNoisy
        self.activation = activation
        self.generator = generator
        func drawn(_ shape: [Int], fanIn: Int) -> Parameter {
            let parameter = Parameter(.zeros(shape))
            Initializer.uniform(bound: 1 / Double(fanIn).squareRoot()).apply(to: parameter, using: generator)
            return parameter
        }
        gate = Parameter(.zeros([dim, experts]))
        up = drawn([experts, hiddenDim, dim], fanIn: dim)
        upBias = drawn([experts, hiddenDim], fanIn: dim)
        down = drawn([experts, dim, hiddenDim], fanIn: hiddenDim)
        downBias = drawn([experts, dim], fanIn: hiddenDim)
        super.init()
        // Small, so that at first the noise decides, and every expert is tried.
        Initializer.normal(deviation: 0.02).apply(to: gate, using: generator)
    }

    /// Chooses the experts of each item.
    ///
    /// - Parameters:
    ///   - t: `[items, dim]`.
    ///   - mask: `[items]`, true for items that count.
    ///   - noise: ε `[items, experts]`; left out, drawn in training.
    public func route(_ t: Tensor, mask: Tensor? = nil, noise: Tensor? = nil) -> ExpertRouting {
        let logits = matmul(t, gate.value).to(t.dtype.accumulator)
        let noisy = (noise ?? drawnNoise(like: logits)).map { logits + $0 } ?? logits
        let weights = noisy.softmax()
        // Of equal entries the first: the sort is stable.
        let chosen = noisy.detached().argsort(-1, descending: true).sliced(1, 0..<choices)
        let gates = weights.gathered(1, chosen)
        let isKept = served(chosen, gates.detached(), mask)
        return ExpertRouting(
            experts: chosen, gates: gates.masked(where: .!isKept, with: 0), isKept: isKept, logits: logits,
            noisy: noisy, mask: mask)
    }

    private func drawnNoise(like logits: Tensor) -> Tensor? {
        guard isTraining && isNoisy else { return nil }
        let noise = Tensor.randomNormal(logits.shape, using: generator, dtype: logits.dtype, device: logits.device)
        return noise * (1 / Double(experts))
    }

    /// The items in a queue, all first choices before all second ones; an expert serves so many as it has room for.
    private func served(_ chosen: Tensor, _ gates: Tensor, _ mask: Tensor?) -> Tensor {
        let items = chosen.size(0)
        let counts = mask ?? Tensor.ones([items], dtype: .bool, device: chosen.device)
        let everyone = counts.unsqueezed(1).expanded(to: [-1, choices])
        guard let limit = capacity.limit(items: items, choices: choices, experts: experts) else { return everyone }
        let order =
            hasPriority
            ? gates.selected(1, 0).argsort(0, descending: true) : Tensor.arange(0..<items, device: chosen.device)
        let queue = chosen.indexed(0, order).transposed(0, 1).flattened()  // [choices · items]
        let isWaiting = counts.indexed(0, order).unsqueezed(0).expanded(to: [choices, -1]).flattened()
        let wants = queue.oneHot(experts) * isWaiting.to(.int64).unsqueezed(1)
        let place = (wants.cumulativeSum(0) * wants).sum(1)  // from 1; 0 for an item that does not count
        let fits = (place .<= limit).reshaped(choices, items).transposed(0, 1)
        return (fits.indexed(0, order.argsort(0)) .&& everyone)
    }

    /// Σ G_e E_e(t) by the equation: every expert on every item.
    public func reference(_ t: Tensor, _ routing: ExpertRouting) -> Tensor {
        let weights = routing.combination.to(t.dtype)
        return (0..<experts).reduce(Tensor.zeros(like: t)) { sum, expert in
            let hidden = activation(linear(t, up.value.selected(0, expert), upBias.value.selected(0, expert)))
            let out = linear(hidden, down.value.selected(0, expert), downBias.value.selected(0, expert))
            return sum + weights.sliced(1, expert..<expert + 1) * out
        }
    }

    /// The same, each expert on its own items only. An item's experts are added up in the order of its choices.
    public func callAsFunction(_ t: Tensor, _ routing: ExpertRouting) -> Tensor {
        let (items, dim) = (t.size(0), t.size(1))
        // What is dropped goes to a bin behind the last expert.
        let bins = routing.experts.masked(where: .!routing.isKept, with: experts).flattened()
        let order = bins.argsort(0)
        let all = bins.oneHot(experts + 1).sum(0).scalars(as: Int64.self).map(Int.init)
        let counts = Array(all.prefix(experts))
        let total = counts.reduce(0, +)
        guard total > 0 else { return t * 0 }
        let served = order.sliced(0, 0..<total)
        let rows = t.indexed(0, served.floorDivided(by: choices))
        let hidden = activation(groupedLinear(rows, up.value, upBias.value, counts: counts))
        let out = groupedLinear(hidden, down.value, downBias.value, counts: counts)
        let spread = Tensor.zeros([items * choices, dim], dtype: out.dtype, device: t.device)
            .indexAdded(0, served, out).reshaped(items, choices, dim)
        return (spread * routing.gates.to(t.dtype).unsqueezed(2)).sum(1)
    }
}

/// x `[rows, in]`, of which the first `counts[0]` rows go through weight[0] and bias[0], the next through the second
/// pair, and so on: `[rows, out]`, for weight `[groups, out, in]` and bias `[groups, out]`.
///
/// With slices of the parameters, the backward pass would fill a gradient of all groups' size for each group.
func groupedLinear(_ x: Tensor, _ weight: Tensor, _ bias: Tensor, counts: [Int]) -> Tensor {
    let starts = counts.indices.map { counts[..<$0].reduce(0, +) }
    let groups = counts.indices.filter { counts[$0] > 0 }
    func rows(_ tensor: Tensor, _ group: Int) -> Tensor {
        tensor.sliced(0, starts[group]..<starts[group] + counts[group])
    }
    return withCustomGradient([x, weight, bias]) { inputs in
        let (x, weight, bias) = (inputs[0], inputs[1], inputs[2])
        let out = groups.map { linear(rows(x, $0), weight.selected(0, $0), bias.selected(0, $0)) }
        return (
            [concatenate(out)],
            { gradients in
                guard let dy = gradients[0] else { return [nil, nil, nil] }
                let dx = groups.map { matmul(rows(dy, $0), weight.selected(0, $0)) }
                let dWeight = counts.indices.map { group in
                    counts[group] > 0
                        ? matmul(rows(dy, group).transposed(), rows(x, group)) : .zeros(like: weight.selected(0, group))
                }
                let dBias = counts.indices.map { rows(dy, $0).sum(0) }  // no rows: zeros
                return [concatenate(dx), stack(dWeight), stack(dBias)]
            }
        )
    }[0]
}
