import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

/// Where a mask may put padded tokens.
enum Padding: CaseIterable { case right, left, scattered }

/// One way to build a mechanism of the catalogue, and what may be asked of it.
struct MixerCase: Sendable, CustomTestStringConvertible {
    let mixer: String
    let note: String
    let isCausal: Bool
    let options: @Sendable () -> any MixerOptions
    var usesRotary = false
    /// Weights that count from the end of the sequence cannot.
    var streams: Bool
    /// Where padding is as if it were not there. Momentum, for one, decays over padding between real tokens, and what has
    /// weights for absolute positions sees that padding on the left moves the rest.
    var paddings = Set(Padding.allCases)
    /// Random Fourier features of far points may give any denominator; of near ones a positive one.
    var inputScale = 1.0
    /// exp(x) itself leaves the range of float32 above 88.
    var isBounded = true
    /// What may be the longest sequence, for mechanisms with weights for positions.
    var maximumLength: Int?
    /// The only length it takes.
    var fixedLength: Int?
    /// A hash sorts the whole sequence: which keys a token meets then depends on later ones too.
    var seesOnlyThePast = true
    /// Where experts have a capacity, the sequences of a batch compete for it.
    var isBatchIndependent = true
    /// A choice between alternatives, as of an expert or a bucket, is no smooth function.
    var isSmooth = true
    /// The smallest number of channels a head, or of the model for mechanisms without heads, and what it must be a
    /// multiple of.
    var headDimMultiple = 1
    /// Whether the state keeps its size, where that is not what the catalogue says of the mechanism with its defaults.
    var hasConstantState: Bool?

    var testDescription: String { "\(mixer)\(note.isEmpty ? "" : " \(note)") \(isCausal ? "causal" : "bidirectional")" }

    /// `range`, or the only length there is.
    func lengths(_ range: ClosedRange<Int>) -> ClosedRange<Int> { fixedLength.map { $0...$0 } ?? range }

    func layer(heads: Int, headDim: Int, seed: UInt64, dtype: DType = .float64) throws -> any SequenceMixer {
        let context = try MixerContext(
            modelDim: heads * headDim, heads: heads, isCausal: isCausal, maximumLength: fixedLength ?? maximumLength,
            usesRotary: usesRotary, generator: RandomGenerator(seed: seed))
        let layer = try MixerConfiguration(mixer, options()).build(context)
        layer.to(dtype)
        layer.evaluate()
        return layer
    }

    func layer(for trial: Trial, dtype: DType = .float64) throws -> any SequenceMixer {
        try layer(heads: trial.heads, headDim: trial.headDim, seed: trial.seed, dtype: dtype)
    }

    func trial(_ seed: Int, lengths range: ClosedRange<Int> = 1...70) -> Trial {
        Trial(seed, lengths: lengths(range), headDimMultiple: headDimMultiple)
    }

    /// Of every mechanism, or of the one that the environment's `MIXER_CASES` names.
    static let all: [MixerCase] = [true, false].flatMap { causal in every(causal) }.filter { mixer in
        ProcessInfo.processInfo.environment["MIXER_CASES"].map { $0 == mixer.mixer } ?? true
    }

    private static func every(_ causal: Bool) -> [MixerCase] {
        var cases = softmax(causal)
        cases += linear(causal)
        cases += momentum(causal)
        cases += transNormer(causal)
        cases += linformer(causal)
        cases += revisitingLinformer(causal)
        cases += combiner(causal)
        cases += transformerLS(causal)
        cases += reformer(causal)
        cases += sparse(causal)
        cases += ngram(causal)
        cases += rTransformer(causal)
        cases += aft(causal)
        cases += gmlp(causal)
        cases += sparseMLP(causal)
        cases += mega(causal)
        cases += fourierTransformer(causal)
        cases += samformer(causal)
        return cases + standard(causal, without: Set(cases.map(\.mixer)))
    }

    /// Mechanisms that have no cases of their own, with their default options: everything is asked of them.
    private static func standard(_ causal: Bool, without covered: Set<String>) -> [MixerCase] {
        MixerCatalogue.entries.filter { !covered.contains($0.name) && (causal ? $0.causal : $0.bidirectional) }.map {
            entry in
            MixerCase(
                mixer: entry.name, note: "", isCausal: causal, options: { entry.options.init() },
                streams: causal && entry.streaming != .none, maximumLength: 320)
        }
    }

    static let streaming = all.filter(\.streams)
}

/// What a case computes: a core on q, k, v where it has one, else a layer on x.
struct MixerFunction {
    /// Named `q`, `k`, `v`, or `x`.
    let inputs: [(name: String, value: Tensor)]
    let efficient: ([Tensor], Tensor?) -> Tensor
    /// The paper's equations; nil where there is one form only.
    let reference: (([Tensor], Tensor?) -> Tensor)?
    /// `[batch, length]` to the shape of the output, to clear what stands at padded positions.
    let spread: (Tensor) -> Tensor

    init(_ mixer: MixerCase, _ trial: Trial, _ dtype: DType = .float64) throws {
        let layer = try mixer.layer(for: trial, dtype: dtype)
        if let core = (layer as? any CoreHolding)?.anyCore {
            let tensors = trial.qkv(mixer.inputScale, dtype)
            inputs = zip(["q", "k", "v"], tensors).map { ($0, $1) }
            efficient = { core($0[0], $0[1], $0[2], paddingMask: $1) }
            reference = { core.reference($0[0], $0[1], $0[2], paddingMask: $1) }
            spread = { $0.unsqueezed(1).unsqueezed(3) }
        } else {
            inputs = [("x", trial.x(dtype) * mixer.inputScale)]
            efficient = {
                (layer as? any ReferenceEvaluating)?.usesReference = false
                return layer($0[0], paddingMask: $1)
            }
            reference = (layer as? any ReferenceEvaluating).map { layer in
                {
                    layer.usesReference = true
                    return layer($0[0], paddingMask: $1)
                }
            }
            spread = { $0.unsqueezed(2) }
        }
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

    init(_ seed: Int, lengths: ClosedRange<Int> = 1...70, headDimMultiple: Int = 1) {
        self.seed = UInt64(seed)
        let generator = RandomGenerator(seed: UInt64(seed) &* 7919)
        func draw(_ range: ClosedRange<Int>) -> Int {
            Tensor.random(in: range.lowerBound..<range.upperBound + 1, [1], using: generator).integerItem()
        }
        batch = draw(1...3)
        heads = draw(1...4)
        length = draw(lengths)
        headDim = headDimMultiple * draw(1...(headDimMultiple == 1 ? 9 : 4))
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

    func qkv(_ scale: Double = 1, _ dtype: DType) -> [Tensor] { qkv(scale, keys: nil, dtype) }

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
