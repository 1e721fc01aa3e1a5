import SequenceMixers
import Testing
import Torch
import TorchNN

/// One way to build a mechanism of the catalogue, and what may be asked of it.
struct MixerCase: Sendable, CustomTestStringConvertible {
    let mixer: String
    let note: String
    let isCausal: Bool
    let options: @Sendable () -> any MixerOptions
    var usesRotary = false
    /// Weights that count from the end of the sequence cannot.
    var streams: Bool
    /// Whether padding between real tokens is as if it were not there. Heavy-ball momentum decays meanwhile.
    var ignoresHoles = true
    /// Random Fourier features of far points may give any denominator; of near ones a positive one.
    var inputScale = 1.0
    /// exp(x) itself leaves the range of float32 above 88.
    var isBounded = true

    var testDescription: String { "\(mixer)\(note.isEmpty ? "" : " \(note)") \(isCausal ? "causal" : "bidirectional")" }

    func layer(heads: Int, headDim: Int, seed: UInt64, dtype: DType = .float64) throws -> any SequenceMixer {
        let context = try MixerContext(
            modelDim: heads * headDim, heads: heads, isCausal: isCausal, usesRotary: usesRotary,
            generator: RandomGenerator(seed: seed))
        let layer = try MixerConfiguration(mixer, options()).build(context)
        layer.to(dtype)
        return layer
    }

    func core(heads: Int, headDim: Int, seed: UInt64, dtype: DType = .float64) throws -> any AttentionCore {
        try #require(layer(heads: heads, headDim: headDim, seed: seed, dtype: dtype) as? any CoreHolding).anyCore
    }

    static let all: [MixerCase] = [true, false].flatMap { causal in
        softmax(causal) + linear(causal) + momentum(causal)
    }
    static let streaming = all.filter(\.streams)

    private static func softmax(_ causal: Bool) -> [MixerCase] {
        [
            MixerCase(mixer: "softmax", note: "", isCausal: causal, options: { SoftmaxOptions() }, streams: causal),
            MixerCase(
                mixer: "softmax", note: "scale 0.3", isCausal: causal, options: { SoftmaxOptions(scale: 0.3) },
                streams: causal),
        ]
    }

    private static func linear(_ causal: Bool) -> [MixerCase] {
        var cases = FeatureMapKind.allCases.map { kind in
            MixerCase(
                mixer: "linear", note: kind.rawValue, isCausal: causal,
                options: {
                    var options = LinearOptions()
                    options.featureMap = kind
                    return options
                }, streams: causal, inputScale: [.rff, .smoothedRff].contains(kind) ? 0.2 : 1,
                isBounded: kind != .exponential)
        }
        if !causal {
            cases.append(
                MixerCase(
                    mixer: "linear", note: "favor stabilized", isCausal: false,
                    options: {
                        var options = LinearOptions()
                        options.featureMap = .favor
                        options.stabilize = true
                        return options
                    }, streams: false))
        }
        return cases
    }

    private static func momentum(_ causal: Bool) -> [MixerCase] {
        func make(_ note: String, streams: Bool, ignoresHoles: Bool = true, _ options: MomentumOptions) -> MixerCase {
            MixerCase(
                mixer: "momentum", note: note, isCausal: causal, options: { options }, streams: streams,
                ignoresHoles: ignoresHoles)
        }
        let final = make("final", streams: false, MomentumOptions(momentum: 0.8, stepSize: 0.7, weights: .final))
        if !causal {
            var unnormalized = MomentumOptions(momentum: 0.9, stepSize: 0.4, weights: .final)
            unnormalized.normalized = false
            return [final, make("final unnormalized", streams: false, unnormalized)]
        }
        return [
            final,
            make(
                "heavy-ball", streams: true, ignoresHoles: false, MomentumOptions(momentum: 0.9, stepSize: 0.5)),
            make(
                "heavy-ball of momentum 0", streams: true, MomentumOptions(momentum: 0, stepSize: 1)),
            make(
                "heavy-ball of momentum 0.999", streams: true, ignoresHoles: false,
                MomentumOptions(momentum: 0.999, stepSize: 0.01)),
            make("adaptive", streams: true, MomentumOptions(momentum: nil, stepSize: 0.6, weights: .adaptive)),
        ]
    }
}

/// Random sizes and numbers from a seed, which a failure prints.
struct Trial: CustomStringConvertible {
    let seed: UInt64
    let batch: Int
    let heads: Int
    let length: Int
    let headDim: Int
    let valueDim: Int
    let generator: RandomGenerator

    init(_ seed: Int, lengths: ClosedRange<Int> = 1...70) {
        self.seed = UInt64(seed)
        let generator = RandomGenerator(seed: UInt64(seed) &* 7919)
        func draw(_ range: ClosedRange<Int>) -> Int {
            Tensor.random(in: range.lowerBound..<range.upperBound + 1, [1], using: generator).integerItem()
        }
        batch = draw(1...3)
        heads = draw(1...4)
        length = draw(lengths)
        headDim = draw(1...9)
        valueDim = draw(1...9)
        self.generator = generator
    }

    var modelDim: Int { heads * headDim }

    var description: String {
        "seed \(seed): batch \(batch), heads \(heads), length \(length), headDim \(headDim), valueDim \(valueDim)"
    }

    func normal(_ shape: [Int], _ dtype: DType = .float64) -> Tensor {
        .randomNormal(shape, using: generator, dtype: .float64).to(dtype)
    }

    func x(_ dtype: DType = .float64) -> Tensor { normal([batch, length, modelDim], dtype) }

    func qkv(_ scale: Double = 1, keys: Int? = nil, _ dtype: DType = .float64) -> [Tensor] {
        [
            normal([batch, heads, length, headDim], dtype) * scale,
            normal([batch, heads, keys ?? length, headDim], dtype) * scale,
            normal([batch, heads, keys ?? length, valueDim], dtype),
        ]
    }

    /// How many tokens of each sequence are real: at least one, and all in the first sequence.
    func realLengths() -> [Int] {
        (0..<batch).map { row in
            row == 0 ? length : Tensor.random(in: 1..<length + 1, [1], using: generator).integerItem()
        }
    }
}

/// True for the first tokens of each sequence.
func rightPadding(_ lengths: [Int], of length: Int) -> Tensor {
    Tensor.arange(0..<length).unsqueezed(0) .< Tensor(lengths).unsqueezed(1)
}

extension Tensor {
    /// The largest deviation relative to the largest magnitude; NaN counts as infinite, and 0 from 0 deviates by nothing.
    func deviation(from other: Tensor) -> Double {
        guard shape == other.shape else { return .infinity }
        guard count > 0 else { return 0 }
        let (a, b) = (detached().to(.float64), other.detached().to(.float64))
        let scale = b.abs().maximum().item()
        let difference = (a - b).abs().maximum().item()
        if difference == 0 { return 0 }
        return difference.isFinite && scale > 0 ? difference / scale : .infinity
    }

    var isAllFinite: Bool { detached().isFinite().all().integerItem() != 0 }
}
