import Foundation
import Inference
import SequenceMixers
import SequenceModels
import Torch
import TorchNN
import TorchOptimizers

/// Whether gradients are computed too.
public enum BenchmarkPass: String, Codable, Sendable, CaseIterable {
    case forward
    case forwardBackward = "forward-backward"
}

/// The sizes of the work that is measured.
public struct BenchmarkShape: Codable, Sendable {
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

    /// The layer in a block of a model: norms, sums and a feed-forward layer of four times the width around it. The Fourier
    /// Transformer's block is as short as its filter makes the sequence.
    public static func block(
        _ mixer: MixerConfiguration, causal: Bool, _ shape: BenchmarkShape, pass: BenchmarkPass, repeats: Int,
        reference: Bool = false
    ) throws -> BenchmarkResult {
        var configuration = ModelConfiguration(mixer: mixer)
        configuration.layers = 1
        configuration.modelDim = shape.modelDim
        configuration.heads = shape.heads
        configuration.position = .none
        configuration.finalNorm = false
        let generator = RandomGenerator(seed: 1)
        let (stack, body): (Module, (Tensor) -> Tensor)
        if let options = mixer.options as? FourierTransformerOptions {
            configuration.mixer = try MixerConfiguration("softmax")
            let shortening = FourierShortening(layers: [0], filter: try options.makeFilter(), hasGlobalResidual: false)
            let encoder = try FourierEncoder(configuration, shortening, using: generator)
            (stack, body) = (encoder, { encoder($0).output })
        } else {
            let encoder = try SequenceEncoder(
                configuration, isCausal: causal, maximumLength: shape.length, using: generator)
            (stack, body) = (encoder, { encoder($0) })
        }
        if reference { try useReference(in: stack) }
        let x = Tensor.randomNormal([shape.batch, shape.length, shape.modelDim], using: RandomGenerator(seed: 2))
        return measured(mixer.name, causal, shape, pass, repeats, inputs: [x], parameters: stack.parameters()) {
            body($0[0])
        }
    }

    /// The mechanism alone, between its projections, on q, k, v `[batch, heads, length, headDim]`.
    ///
    /// - Throws: `ConfigurationError` when it cannot be built so, or is nothing without the rest of its layer.
    public static func attention(
        _ mixer: MixerConfiguration, causal: Bool, _ shape: BenchmarkShape, pass: BenchmarkPass, repeats: Int,
        reference: Bool = false
    ) throws -> BenchmarkResult {
        let bare = try BareMechanism(build(mixer, causal, shape), named: mixer.name, shape, reference: reference)
        return measured(
            mixer.name, causal, shape, pass, repeats, inputs: bare.inputs(using: RandomGenerator(seed: 2)),
            parameters: bare.parameters
        ) { bare($0) }
    }

    /// A training step of a byte language model: forward, backward, AdamW.
    public static func languageModel(
        _ mixer: MixerConfiguration, _ shape: BenchmarkShape, repeats: Int, reference: Bool = false
    ) throws -> BenchmarkResult {
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, shape, maximumLength: shape.length, generator)
        if reference { try useReference(in: model) }
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

    /// Tokens of one sequence, made one by one after a context of `shape.length` random tokens.
    public static func generation(_ mixer: MixerConfiguration, _ shape: BenchmarkShape, tokens: Int) throws
        -> BenchmarkResult
    {
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, shape, maximumLength: shape.length + tokens + 8, generator)
        model.evaluate()
        let prompt: [Int64] = Tensor.random(in: 0..<256, [shape.length], using: generator).scalars()
        let sampler = try TokenSampler(SamplingOptions(temperature: 0), using: generator)
        func start() throws -> TokenGenerator {
            try TokenGenerator(model, prompt: prompt.map(Int.init), sampler: sampler)
        }
        var stream = try start()
        for _ in 0..<2 { _ = stream.next() }
        let prefill = try Stopwatch.milliseconds { stream = try start() }
        let watch = Stopwatch(repeats: tokens, warmUp: 1) { _ = stream.next() }  // the first token costs no step
        var result = report(mixer.name, true, shape, "generate", watch, tokensPerSecond: 1e3 / watch.mean)
        result.prefillMilliseconds = prefill
        return result
    }

    /// The product of two square float32 matrices: what the machine can do at best.
    public static func product(size: Int, repeats: Int) -> BenchmarkResult {
        let shape = BenchmarkShape(batch: 1, heads: 1, length: size, headDim: size)
        let generator = RandomGenerator(seed: 1)
        let (a, b) = (
            Tensor.randomNormal([size, size], using: generator), Tensor.randomNormal([size, size], using: generator)
        )
        return report("sgemm", false, shape, "forward", Stopwatch(repeats: repeats) { _ = matmul(a, b) })
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

    private static func useReference(in model: Module) throws {
        let layers = model.namedModules().compactMap { $0.module as? any ReferenceEvaluating }
        guard !layers.isEmpty else { throw ConfigurationError("it has no reference form to measure") }
        for layer in layers { layer.usesReference = true }
    }

    private static func useReference(_ layer: any SequenceMixer) throws {
        guard let layer = layer as? any ReferenceEvaluating else {
            throw ConfigurationError("\(type(of: layer)) has no reference form to measure")
        }
        layer.usesReference = true
    }
}
