import Testing
import Torch

/// Every kernel where sequences, batches, heads or channels are none: the right empty result, with gradients that are zeros
/// where nothing was read; or a refusal, where the size makes no sense.
@Suite struct EmptyTensorTests {
    enum Size: CaseIterable { case batch, heads, length, keys, features, values, taps }

    /// Sizes that tell each other apart, but for those that a case sets to 0.
    struct Sizes {
        var empty: Set<Size> = []

        subscript(_ size: Size) -> Int {
            if empty.contains(size) { return 0 }
            return switch size {
            case .batch: 2
            case .heads: 4
            case .length: 5
            case .keys: 7
            case .features: 6
            case .values: 8
            case .taps: 3
            }
        }

        func random(_ shape: [Size]) -> Tensor { normal(shape.map { self[$0] }, seed: shape.count) }
        func random(_ shape: Int...) -> Tensor { normal(shape, seed: shape.count) }
        func mask(_ length: Size = .length) -> Tensor { .ones([self[.batch], self[length]], dtype: .bool) }
    }

    struct Kernel: Sendable, CustomTestStringConvertible {
        var testDescription: String
        /// What may be 0, and what of it is refused.
        var sizes: Set<Size>
        var refused: Set<Size> = []
        var inputs: @Sendable (Sizes) -> [Tensor]
        var run: @Sendable (Sizes, [Tensor]) -> [Tensor]
        /// Of the results.
        var shapes: @Sendable (Sizes) -> [[Int]]
    }

    static let rows: [Size] = [.batch, .heads, .length]

    static let sums = [
        Kernel(
            testDescription: "causal linear", sizes: [.batch, .heads, .length, .features, .values],
            refused: [.features, .values],
            inputs: { s in [s.random(rows + [.features]), s.random(rows + [.features]), s.random(rows + [.values])] },
            run: { s, t in
                let options = CausalLinearOptions(
                    featureMap: .eluPlusOne, normalization: .sum(epsilon: 1e-6), momentum: 0.5)
                let (out, final) = causalLinearAttention(t[0], t[1], t[2], paddingMask: s.mask(), options)
                return [out, final.s, final.z]
            },
            shapes: { s in
                let heads = [s[.batch], s[.heads]]
                return [
                    heads + [s[.length], s[.values]], heads + [s[.features], s[.values]], heads + [s[.features]],
                ]
            }),
        Kernel(
            testDescription: "adaptive momentum", sizes: [.batch, .heads, .length, .features, .values],
            refused: [.heads, .features, .values],
            inputs: { s in
                [
                    s.random(rows + [.features]).square(), s.random(rows + [.features]).square(),
                    s.random(rows + [.values]),
                ]
            },
            run: { s, t in
                let (out, final) = adaptiveMomentumAttention(
                    t[0], t[1], t[2], paddingMask: s.mask(), stepSize: 0.9, maximumMomentum: 0.99, epsilon: 1e-6)
                return [out, final.s, final.z, final.begun]
            },
            shapes: { s in
                let heads = [s[.batch], s[.heads]]
                return [
                    heads + [s[.length], s[.values]], heads + [s[.features], s[.values]], heads + [s[.features]],
                    [s[.batch]],
                ]
            }),
        Kernel(
            testDescription: "moving average", sizes: [.batch, .length, .features, .values],
            refused: [.features, .values],
            inputs: { s in
                [s.random([.batch, .length, .features])] + (0..<4).map { _ in s.random([.features, .values]) }
                    + [s.random([.features])]
            },
            run: { s, t in
                let parameters = MovingAverageParameters(
                    alphaLogit: t[1], deltaLogit: t[2], beta: t[3], eta: t[4], omega: t[5])
                let (out, final) = movingAverage(t[0], paddingMask: s.mask(), parameters)
                return [out] + (final.map { [$0] } ?? [])
            },
            shapes: { s in
                [[s[.batch], s[.length], s[.features]], [s[.batch], s[.features], s[.values]]]
            }),
        Kernel(
            testDescription: "attention free", sizes: [.batch, .heads, .length, .values],
            inputs: { s in (0..<3).map { _ in s.random(rows + [.values]) } },
            run: { s, t in [attentionFree(t[0], t[1], t[2], paddingMask: s.mask(), isCausal: false)] },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "attention free, biases of heads", sizes: [.batch, .heads, .length, .values, .taps],
            refused: [.taps],
            inputs: { s in (0..<3).map { _ in s.random(rows + [.values]) } + [s.random([.heads, .taps])] },
            run: { s, t in
                [attentionFree(t[0], t[1], t[2], paddingMask: s.mask(), bias: .heads(t[3]), isCausal: true)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "attention free, biases of positions", sizes: [.batch, .heads, .length, .values, .taps],
            refused: [.taps],
            inputs: { s in (0..<3).map { _ in s.random(rows + [.values]) } + [s.random([.length, .taps])] },
            run: { s, t in
                [attentionFree(t[0], t[1], t[2], paddingMask: s.mask(), bias: .positions(t[3]), isCausal: false)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "local recurrence", sizes: [.batch, .length, .features],
            inputs: { s in
                let dim = s[.features]
                return [
                    s.random([.batch, .length, .features]), s.random(3 * dim, dim), s.random(3 * dim, dim),
                    s.random(3 * dim), s.random(3 * dim),
                ]
            },
            run: { _, t in
                [
                    localRecurrence(
                        t[0], .gru, inputWeight: t[1], hiddenWeight: t[2], inputBias: t[3], hiddenBias: t[4], window: 3)
                ]
            },
            shapes: { s in [[s[.batch], s[.length], s[.features]]] }),
    ]

    private static func intervals(_ s: Sizes) -> Tensor {
        Tensor((0..<s[.length]).flatMap { _ in [0, s[.keys]] }, shape: [1, s[.length], 2]).to(.int32)
    }
    private static func queriesKeysValues(_ s: Sizes) -> [Tensor] {
        [
            s.random(rows + [.features]), s.random([.batch, .heads, .keys, .features]),
            s.random([.batch, .heads, .keys, .values]),
        ]
    }

    static let attention = [
        Kernel(
            testDescription: "intervals", sizes: [.batch, .heads, .length, .keys, .features, .values],
            refused: [.features, .values],
            inputs: queriesKeysValues,
            run: { s, t in
                [intervalAttention(t[0], t[1], t[2], intervals: intervals(s), keyMask: s.mask(.keys), scale: 0.5)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "no intervals", sizes: [.batch, .heads, .length, .keys, .features, .values],
            refused: [.features, .values],
            inputs: queriesKeysValues,
            run: { s, t in
                let none = Tensor.zeros([0, s[.length], 2], dtype: .int32)
                return [intervalAttention(t[0], t[1], t[2], intervals: none, scale: 0.5)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "intervals with distances",
            sizes: [.batch, .heads, .length, .keys, .features, .values], refused: [.features, .values],
            inputs: { s in
                queriesKeysValues(s) + [
                    s.random([.heads, .keys, .features]), s.random([.heads, .keys]), s.random([.batch, .heads, .keys]),
                ]
            },
            run: { s, t in
                let distances = IntervalDistances(table: t[3], bias: t[4], keyBias: t[5], counts: [s[.keys]])
                return [
                    intervalAttention(
                        t[0], t[1], t[2], intervals: intervals(s), keyMask: s.mask(.keys), scale: 0.5,
                        distances: distances)
                ]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "LSH", sizes: [.batch, .heads, .length, .features, .values], refused: [.features],
            inputs: { s in [s.random(rows + [.features]), s.random(rows + [.values])] },
            run: { s, t in
                let buckets = Tensor.zeros([s[.batch], s[.heads], 2, s[.length]], dtype: .int32)
                let options = LSHAttentionOptions(isCausal: true, chunk: 2, bucketCount: 4)
                return [lshAttention(t[0], t[1], buckets: buckets, paddingMask: s.mask(), options)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "LSH buckets", sizes: [.batch, .heads, .length, .features], refused: [.features],
            inputs: { s in [s.random(rows + [.features])] },
            run: { s, t in
                [lshBuckets(t[0], rotations: s.random(s[.heads], s[.features], 2, 2), rounds: 2, factors: [4])]
            },
            shapes: { s in [[s[.batch], s[.heads], 2, s[.length]]] }),
        Kernel(
            testDescription: "segment mixtures", sizes: [.batch, .heads, .length, .features],
            refused: [.heads, .features],
            inputs: { s in
                let width = s[.heads] * s[.features]
                let token = (0..<2).map { _ in s.random(s[.batch], s[.length], width) }
                return token + [s.random([.batch, .length, .heads])] + (0..<4).map { _ in s.random(width) }
            },
            run: { s, t in
                let norms = SegmentNorms(
                    tokenGain: t[3], tokenBias: t[4], mixtureGain: t[5], mixtureBias: t[6], epsilon: 1e-5)
                let (keys, values) = segmentMixtures(
                    t[0], t[1], logits: t[2], paddingMask: s.mask(), norms: norms, segment: 2, rank: 1, heads: s[.heads]
                )
                return [keys, values]
            },
            shapes: { s in
                let mixed = [s[.batch], s[.length] + max(0, s[.length] - 1) / 2, s[.heads] * s[.features]]
                return [mixed, mixed]
            }),
        Kernel(
            testDescription: "span summaries", sizes: [.batch, .heads, .length, .features, .values],
            refused: [.features, .values],
            inputs: { s in (0..<3).map { _ in s.random(rows + [.features]) } + [s.random(rows + [.values])] },
            run: { s, t in
                let (keys, values) = spanSummaries(
                    queries: t[0], pooledKeys: t[1], t[2], t[3], paddingMask: s.mask(), span: 2, pooling: .max, scale: 1
                )
                return [keys, values]
            },
            shapes: { s in
                let total = s[.length] + (s[.length] + 1) / 2
                return [[s[.batch], s[.heads], total, s[.features]], [s[.batch], s[.heads], total, s[.values]]]
            }),
        Kernel(
            testDescription: "spatial gate", sizes: [.batch, .heads, .length, .values], refused: [.heads, .values],
            inputs: { s in
                [
                    s.random(s[.batch], s[.length], 2 * s[.values]), s.random([.values]), s.random([.values]),
                    s.random([.heads, .length, .length]), s.random([.heads, .length]),
                ]
            },
            run: { s, t in
                [
                    spatialGate(
                        t[0], normScale: t[1], normShift: t[2], w: t[3], bias: t[4], paddingMask: s.mask(),
                        epsilon: 1e-5, isCausal: true)
                ]
            },
            shapes: { s in [[s[.batch], s[.length], s[.values]]] }),
    ]

    static let layers = [
        Kernel(
            testDescription: "random features", sizes: [.batch, .heads, .length, .features, .values],
            refused: [.features],
            inputs: { s in [s.random(rows + [.features])] },
            run: { s, t in
                [positiveFeatures(t[0], directions: s.random([.features, .values]), temperature: 0.5, offset: 0)]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], 2 * s[.values]]] }),
        Kernel(
            testDescription: "rotation", sizes: [.batch, .heads, .length, .values],
            inputs: { s in
                let angles = s.random(1, s[.length], s[.values] / 2)
                return [s.random(rows + [.values]), angles.cos(), angles.sin()]
            },
            run: { s, t in
                [
                    turned(
                        t[0], cosines: t[1], sines: t[2], pairing: .interleaved, map: .eluPlusOne,
                        mirror: s.random([.values]))
                ]
            },
            shapes: { s in [[s[.batch], s[.heads], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "projections", sizes: [.batch, .length, .features, .values],
            inputs: { s in
                [s.random([.batch, .length, .features]), s.random([.values, .features]), s.random([.values])]
            },
            run: { _, t in projections(t[0], [(t[1], t[2]), (t[1], nil)]) },
            shapes: { s in Array(repeating: [s[.batch], s[.length], s[.values]], count: 2) }),
        Kernel(
            testDescription: "feed-forward", sizes: [.batch, .length, .features, .keys, .values],
            inputs: { s in
                [
                    s.random([.batch, .length, .features]), s.random([.keys, .features]), s.random([.keys]),
                    s.random([.values, .keys]), s.random([.values]),
                ]
            },
            run: { _, t in [feedForward(t[0], up: (t[1], t[2]), .gelu, down: (t[3], t[4]))] },
            shapes: { s in [[s[.batch], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "gated feed-forward", sizes: [.batch, .length, .features, .keys, .values],
            inputs: { s in
                [
                    s.random([.batch, .length, .features]), s.random([.keys, .features]), s.random([.keys]),
                    s.random([.keys, .features]), s.random([.keys]), s.random([.values, .keys]), s.random([.values]),
                    s.random([.batch, .length, .values]),
                ]
            },
            run: { _, t in
                [
                    gatedFeedForward(
                        t[0], gate: (t[1], t[2]), .silu, up: (t[3], t[4]), down: (t[5], t[6]), residual: t[7])
                ]
            },
            shapes: { s in [[s[.batch], s[.length], s[.values]]] }),
        Kernel(
            testDescription: "gates", sizes: [.batch, .length, .features],
            inputs: { s in (0..<4).map { _ in s.random([.batch, .length, .features]) } },
            run: { _, t in [gatedResidual(t[0], gate: t[1], t[2], t[3]), gatedProduct(t[0], .silu, t[1])] },
            shapes: { s in Array(repeating: [s[.batch], s[.length], s[.features]], count: 2) }),
        Kernel(
            testDescription: "norm", sizes: [.batch, .length, .features], refused: [],
            inputs: { s in
                [
                    s.random([.batch, .length, .features]), s.random([.batch, .length, .features]),
                    s.random([.features]), s.random([.features]),
                ]
            },
            run: { _, t in
                let (sum, normalized) = addedNorm(t[0], t[1], .layer, weight: t[2], bias: t[3], epsilon: 1e-5)
                return [sum, normalized, addedNorm(t[0], nil, .rootMeanSquare, weight: t[2], epsilon: 1e-5).normalized]
            },
            shapes: { s in Array(repeating: [s[.batch], s[.length], s[.features]], count: 3) }),
        Kernel(
            testDescription: "cross entropy", sizes: [.length],
            inputs: { s in [s.random([.length, .values])] },
            run: { s, t in
                let targets = Tensor.zeros([s[.length]], dtype: .int64)
                return [crossEntropy(t[0], targets, reduction: .none), crossEntropy(t[0], targets, reduction: .sum)]
            },
            shapes: { s in [[s[.length]], []] }),
    ]

    /// None, one or two of the kernel's sizes.
    private static func emptied(_ kernel: Kernel) -> Set<Set<Size>> {
        Set([[]] + kernel.sizes.flatMap { first in kernel.sizes.map { [first, $0] } })
    }

    @Test(arguments: sums + attention + layers) func emptySizes(_ kernel: Kernel) throws {
        for isa in KernelInstructions.available {
            for empty in Self.emptied(kernel) {
                let (sizes, note) = (Sizes(empty: empty), "\(empty) on \(isa)")
                let leaves = kernel.inputs(sizes).map { $0.requiringGrad() }
                func results() throws -> [Tensor] {
                    try KernelInstructions.with(isa) { try withTorchErrors { kernel.run(sizes, leaves) } }
                }
                if !kernel.refused.isDisjoint(with: empty) {
                    #expect(throws: TorchError.self, "\(note)") { try results() }
                    continue
                }
                let found = try results()
                #expect(found.map(\.shape) == kernel.shapes(sizes), "\(note)")
                for result in found { #expect(result.isFinite().all().integerItem() == 1, "\(note)") }
                guard found[0].requiresGrad else { continue }
                let sums = found.filter(\.requiresGrad).map { $0.sum() }
                let slopes = try KernelInstructions.with(isa) { gradients(of: sums, withRespectTo: leaves) }
                for (slope, leaf) in zip(slopes, leaves) {
                    let slope = try #require(slope, "\(note)")
                    #expect(slope.shape == leaf.shape && slope.isFinite().all().integerItem() == 1, "\(note)")
                }
            }
        }
    }
}
