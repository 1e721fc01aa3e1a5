import Foundation
import Inference
import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// Whether gradients are computed too.
public enum BenchmarkPass: String, Sendable, CaseIterable {
    case forward
    case forwardBackward = "forward-backward"
}

/// The sizes of the work that is measured.
public struct BenchmarkShape: Sendable {
    public var batch = 1
    public var heads = 8
    public var length = 1024
    public var headDim = 64
    public var layers = 4

    public init(batch: Int = 1, heads: Int = 8, length: Int = 1024, headDim: Int = 64, layers: Int = 4) {
        self.batch = batch
        self.heads = heads
        self.length = length
        self.headDim = headDim
        self.layers = layers
    }

    var modelDim: Int { heads * headDim }
}

/// Measures mechanisms, layers and language models on random inputs, float32.
public enum Benchmark {
    /// One mixer layer with its projections, on x `[batch, length, heads · headDim]`.
    public static func layer(
        _ mixer: MixerConfiguration, causal: Bool, _ shape: BenchmarkShape, pass: BenchmarkPass, repeats: Int,
        reference: Bool = false
    ) throws -> BenchmarkResult {
        let layer = try build(mixer, causal, shape)
        if reference { try useReference(layer) }
        let x = Tensor.randomNormal([shape.batch, shape.length, shape.modelDim], using: RandomGenerator(seed: 2))
        return measured(mixer.name, causal, shape, pass, repeats, inputs: [x], parameters: layer.parameters()) {
            layer($0[0])
        }
    }

    /// The mechanism alone, on q, k, v `[batch, heads, length, headDim]`.
    public static func attention(
        _ mixer: MixerConfiguration, causal: Bool, _ shape: BenchmarkShape, pass: BenchmarkPass, repeats: Int,
        reference: Bool = false
    ) throws -> BenchmarkResult {
        guard let core = (try build(mixer, causal, shape) as? any CoreHolding)?.anyCore else {
            throw ConfigurationError("mixer '\(mixer.name)' is a whole layer; measure it with 'bench layer'")
        }
        let generator = RandomGenerator(seed: 2)
        let inputs = (0..<3).map { _ in
            Tensor.randomNormal([shape.batch, shape.heads, shape.length, shape.headDim], using: generator)
        }
        return measured(mixer.name, causal, shape, pass, repeats, inputs: inputs, parameters: []) {
            reference
                ? core.reference($0[0], $0[1], $0[2], paddingMask: nil) : core($0[0], $0[1], $0[2], paddingMask: nil)
        }
    }

    /// A training step of a byte language model: forward, backward, AdamW.
    public static func languageModel(_ mixer: MixerConfiguration, _ shape: BenchmarkShape, repeats: Int) throws
        -> BenchmarkResult
    {
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, shape, maximumLength: shape.length, generator)
        let optimizer = AdamW(model.namedParameters(), learningRate: 3e-4)
        let ids = Tensor.random(in: 0..<256, [shape.batch, shape.length + 1], using: generator)
        let (inputs, targets) = (ids[.all, 0..<shape.length].contiguous(), ids[.all, 1...].flattened())
        let watch = Stopwatch(repeats: repeats) {
            optimizer.zeroGradients()
            crossEntropy(model(inputs).flattened(0, 1), targets).backward()
            optimizer.step()
        }
        return report(
            mixer.name, true, shape, "train-step", watch,
            tokensPerSecond: Double(shape.batch * shape.length) / watch.median * 1e3)
    }

    /// Tokens a second of one sequence, after a context of `shape.length` random tokens.
    public static func generation(_ mixer: MixerConfiguration, _ shape: BenchmarkShape, tokens: Int) throws
        -> BenchmarkResult
    {
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, shape, maximumLength: shape.length + tokens + 8, generator)
        model.evaluate()
        let prompt: [Int64] = Tensor.random(in: 0..<256, [shape.length], using: generator).scalars()
        let sampler = try TokenSampler(SamplingOptions(temperature: 0), using: generator)
        var stream = try TokenGenerator(model, prompt: prompt.map(Int.init), sampler: sampler)
        let watch = Stopwatch(repeats: tokens) { _ = stream.next() }
        return report(mixer.name, true, shape, "generate", watch, tokensPerSecond: 1e3 / watch.median)
    }

    /// The sum of two float32 tensors of `megabytes` · 10⁶ bytes each, into new memory.
    public static func addition(megabytes: Int, repeats: Int) -> BenchmarkResult {
        let shape = BenchmarkShape(batch: 1, heads: 1, length: megabytes * 250_000, headDim: 1)
        let x = Tensor.ones([shape.length])
        return report("addition", false, shape, "forward", Stopwatch(repeats: repeats) { _ = x + x })
    }

    private static func measured(
        _ name: String, _ causal: Bool, _ shape: BenchmarkShape, _ pass: BenchmarkPass, _ repeats: Int,
        inputs: [Tensor],
        parameters: [Parameter], _ body: ([Tensor]) -> Tensor
    ) -> BenchmarkResult {
        let watch: Stopwatch
        switch pass {
        case .forward:
            watch = Stopwatch(repeats: repeats) { withNoGrad { _ = body(inputs) } }
        case .forwardBackward:
            let leaves = inputs.map { $0.requiringGrad() }
            let cotangent = withNoGrad { Tensor.randomNormal(body(inputs).shape, using: RandomGenerator(seed: 4)) }
            let wanted = leaves + parameters.map(\.value)
            watch = Stopwatch(repeats: repeats) {
                _ = gradients(of: [body(leaves)], weightedBy: [cotangent], withRespectTo: wanted)
            }
        }
        return report(name, causal, shape, pass.rawValue, watch)
    }

    private static func build(_ mixer: MixerConfiguration, _ causal: Bool, _ shape: BenchmarkShape) throws
        -> any SequenceMixer
    {
        try mixer.build(
            MixerContext(
                modelDim: shape.modelDim, heads: shape.heads, isCausal: causal, maximumLength: shape.length,
                generator: RandomGenerator(seed: 1)))
    }

    private static func languageModel(
        _ mixer: MixerConfiguration, _ shape: BenchmarkShape, maximumLength: Int, _ generator: RandomGenerator
    ) throws -> LanguageModel {
        var configuration = ModelConfiguration(mixer: mixer)
        configuration.layers = shape.layers
        configuration.modelDim = shape.modelDim
        configuration.heads = shape.heads
        return try LanguageModel(configuration, vocabulary: 256, maximumLength: maximumLength, using: generator)
    }

    private static func report(
        _ name: String, _ causal: Bool, _ shape: BenchmarkShape, _ pass: String, _ watch: Stopwatch,
        tokensPerSecond: Double? = nil
    ) -> BenchmarkResult {
        BenchmarkResult(
            mechanism: name, causal: causal, batch: shape.batch, heads: shape.heads, length: shape.length,
            headDim: shape.headDim,
            pass: pass, threads: TorchRuntime.threadCount, medianMilliseconds: watch.median,
            minimumMilliseconds: watch.minimum,
            peakResidentMegabytes: watch.peakMegabytes, tokensPerSecond: tokensPerSecond)
    }

    private static func useReference(_ layer: any SequenceMixer) throws {
        guard let layer = layer as? any ReferenceEvaluating else {
            throw ConfigurationError("\(type(of: layer)) has no reference form to measure")
        }
        layer.usesReference = true
    }
}
