// Reversible residual layers. Gomez, Ren, Urtasun, Grosse 2017, "The Reversible Residual Network", arXiv 1707.04585, in
// Transformer blocks: Kitaev, Kaiser, Levskaya 2020, "Reformer", arXiv 2001.04451, section 3.
//
// Two streams, x1 = x2 = x at first. A block with mixer f and feed-forward layer g, both with their norms:
//   y1 = x1 + f(x2),  y2 = x2 + g(y1);   backwards  x2 = y2 - g(y1),  x1 = y1 - f(x2)
// At the end they stand side by side, [y1, y2], under one norm. The backward pass computes what went into a block from what
// came out of it, so that activations of one block are kept, whatever the depth.
import SequenceMixers
import Torch
import TorchNN

/// The blocks of an encoder as reversible layers around any mixers.
///
/// A training step keeps the two streams at the end, O(N modelDim) numbers, and for each block the state of the random
/// generator and what its mixer chose (bucket ids of LSH attention, say). The backward pass computes each block once more.
/// What a block gets back differs from what it had by rounding, in float32 by about 1e-6 for a block; half precision would
/// lose too much, so there activations are kept as in a plain stack.
final class ReversibleStack {
    private let blocks: [TransformerBlock]
    /// Of each block's mixer with its norm, and of its feed-forward layer with its.
    private let parameters: [(mixer: [Parameter], feedForward: [Parameter])]
    /// Each parameter once.
    private let all: [Parameter]
    private let slice: Int?
    private let generator: RandomGenerator

    /// - Parameters:
    ///   - slice: how many tokens a feed-forward layer takes at once; nil for all.
    ///   - generator: what the blocks draw from.
    init(_ blocks: [TransformerBlock], slice: Int?, using generator: RandomGenerator) {
        self.blocks = blocks
        self.slice = slice
        self.generator = generator
        parameters = blocks.map { block in
            let norms = (block.mixerNorm?.parameters() ?? [], block.feedForwardNorm?.parameters() ?? [])
            return (block.mixer.parameters() + norms.0, (block.feedForward?.parameters() ?? []) + norms.1)
        }
        var seen: Set<ObjectIdentifier> = []
        all = parameters.flatMap { $0.mixer + $0.feedForward }.filter { seen.insert(ObjectIdentifier($0)).inserted }
    }

    /// x `[batch, length, modelDim]` → `[batch, length, 2 modelDim]`.
    ///
    /// - Parameter keepsActivations: keeps everything for the backward pass, as a plain stack does.
    func callAsFunction(_ x: Tensor, paddingMask: Tensor?, keepsActivations: Bool) -> Tensor {
        let isHalf = x.dtype.size < DType.float32.size
        if keepsActivations || isHalf || !isGradEnabled {
            return streamed(x) { blocks[$1].mixer($0, paddingMask: paddingMask) }
        }
        let outputs = withCustomGradient([x] + all.map(\.value)) { inputs in
            var replays: [(mixer: Replay, feedForward: Replay)] = []
            var (x1, x2) = (inputs[0], inputs[0])
            for block in blocks {
                let replay = (mixer: Replay(generator), feedForward: Replay(generator))
                x1 = x1 + replay.mixer { block.mixerBranch(x2) { block.mixer($0, paddingMask: paddingMask) } }
                x2 = x2 + replay.feedForward { inSlices(x1, block.feedForwardBranch) }
                replays.append(replay)
            }
            let (end, kept) = ((x1, x2), replays)
            return ([x1, x2], { self.pullback(end, $0, kept, paddingMask) })
        }
        return concatenate(outputs, dim: -1)
    }

    /// The same for any piece `[…, modelDim]` of a sequence; `mix` is there the mixer of the block with that index.
    func streamed(_ x: Tensor, _ mix: (Tensor, Int) -> Tensor) -> Tensor {
        var (x1, x2) = (x, x)
        for (index, block) in blocks.enumerated() {
            x1 = x1 + block.mixerBranch(x2) { mix($0, index) }
            x2 = x2 + inSlices(x1, block.feedForwardBranch)
        }
        return concatenate([x1, x2], dim: -1)
    }

    // MARK: Backwards

    /// From the streams at the end and their gradients, those of x and of the parameters.
    private func pullback(
        _ end: (Tensor, Tensor), _ gradients: [Tensor?], _ replays: [(mixer: Replay, feedForward: Replay)],
        _ paddingMask: Tensor?
    ) -> [Tensor?] {
        var (y1, y2) = end
        var (g1, g2) = (gradients[0] ?? .zeros(like: y1), gradients[1] ?? .zeros(like: y2))
        var sums = GradientSums()
        for index in blocks.indices.reversed() {
            let (block, parameters, replay) = (blocks[index], parameters[index], replays[index])
            let forward = replay.feedForward {
                differentiatedInSlices(y1, g2, parameters.feedForward, &sums, block.feedForwardBranch)
            }
            y2 = y2 - forward.value
            g1 = g1 + forward.gradient
            let mixed = replay.mixer {
                differentiated(y2, g1, parameters.mixer, &sums) { x in
                    block.mixerBranch(x) { block.mixer($0, paddingMask: paddingMask) }
                }
            }
            y1 = y1 - mixed.value
            g2 = g2 + mixed.gradient
        }
        return [g1 + g2] + all.map { sums[$0] }
    }

    /// body(x), and the gradient of its product with `weight` by x; those by the parameters are added to `sums`.
    private func differentiated(
        _ x: Tensor, _ weight: Tensor, _ parameters: [Parameter], _ sums: inout GradientSums, _ body: (Tensor) -> Tensor
    ) -> (value: Tensor, gradient: Tensor) {
        let trained = parameters.filter(\.isTrainable)
        let (value, found) = withGrad { () -> (Tensor, [Tensor?]) in
            let leaf = x.requiringGrad()
            let y = body(leaf)
            guard y.requiresGrad else { return (y, [nil]) }
            let wanted = [leaf] + trained.map(\.value)
            return (y.detached(), gradients(of: [y], weightedBy: [weight], withRespectTo: wanted))
        }
        for (parameter, gradient) in zip(trained, found.dropFirst()) { sums.add(gradient, parameter) }
        return (value, found[0] ?? .zeros(like: x))
    }

    private func differentiatedInSlices(
        _ x: Tensor, _ weight: Tensor, _ parameters: [Parameter], _ sums: inout GradientSums, _ body: (Tensor) -> Tensor
    ) -> (value: Tensor, gradient: Tensor) {
        var parts: [(value: Tensor, gradient: Tensor)] = []
        for range in slices(of: x, slice) {
            parts.append(
                differentiated(x.sliced(1, range), weight.sliced(1, range), parameters, &sums, body))
        }
        if parts.count == 1 { return parts[0] }
        return (concatenate(parts.map { $0.value }, dim: 1), concatenate(parts.map { $0.gradient }, dim: 1))
    }

    private func inSlices(_ x: Tensor, _ body: (Tensor) -> Tensor) -> Tensor {
        let ranges = slices(of: x, slice)
        return ranges.count < 2 ? body(x) : concatenate(ranges.map { body(x.sliced(1, $0)) }, dim: 1)
    }
}

/// Gradients by parameter, added up where one serves several blocks.
private struct GradientSums {
    private var sums: [ObjectIdentifier: Tensor] = [:]

    subscript(_ parameter: Parameter) -> Tensor? { sums[ObjectIdentifier(parameter)] }

    mutating func add(_ gradient: Tensor?, _ parameter: Parameter) {
        guard let gradient else { return }
        let key = ObjectIdentifier(parameter)
        sums[key] = sums[key].map { $0 + gradient } ?? gradient
    }
}

extension TransformerBlock {
    /// What the mixer adds to a stream of which x is the other, of a block that normalizes what goes in.
    func mixerBranch(_ x: Tensor, _ mix: (Tensor) -> Tensor) -> Tensor {
        dropout(mix(mixerNorm.map { $0(x) } ?? x))
    }

    /// What the feed-forward layer adds.
    func feedForwardBranch(_ x: Tensor) -> Tensor {
        guard let feedForward else { return .zeros(like: x) }
        return feedForward(feedForwardNorm.map { $0(x) } ?? x)
    }
}

// MARK: - Slices of the length

/// The ranges of dimension 1 of x `[batch, length, …]`, `size` tokens each; one token of each sequence is one piece.
func slices(of x: Tensor, _ size: Int?) -> [Range<Int>] {
    guard let size, x.rank > 2 else { return [0..<x.size(1)] }
    return stride(from: 0, to: x.size(1), by: size).map { $0..<min($0 + size, x.size(1)) }
}

extension FeedForward {
    /// The same for slices of so many tokens, one after the other, of which the backward pass computes each again: the
    /// hidden values of one slice are kept in place of all.
    func callAsFunction(_ x: Tensor, slice: Int?, using generator: RandomGenerator) -> Tensor {
        let ranges = slices(of: x, slice)
        if ranges.count < 2 { return self(x) }
        let layers = [gate, up, down].compactMap { $0 }
        let weights = layers.flatMap { [$0.weight, $0.bias].compactMap { $0?.value } }
        let parts = ranges.map { range in
            let replay = Replay(generator)
            return checkpointed([x.sliced(1, range)], parameters: weights) { inputs in [replay { self(inputs[0]) }] }[0]
        }
        return concatenate(parts, dim: 1)
    }
}
