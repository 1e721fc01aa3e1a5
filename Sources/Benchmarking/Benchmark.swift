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

/// Makes the measurements that tasks describe: mechanisms, layers and language models on random inputs, float32.
enum Benchmark {
    /// One mixer layer with its projections, on x `[batch, length, heads · headDim]`.
    static func layer(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> BenchmarkResult {
        let layer = try build(mixer, task)
        if task.reference {
            guard let layer = layer as? any ReferenceEvaluating else {
                throw ConfigurationError("\(type(of: layer)) has no reference form to measure")
            }
            layer.usesReference = true
        }
        return measured(mixer.name, task, inputs: [tokens(task.shape)], parameters: layer.parameters()) { layer($0[0]) }
    }

    /// The layer in a block of a model: norms, sums and a feed-forward layer of four times the width around it. The Fourier
    /// Transformer's block is as short as its filter makes the sequence.
    static func block(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> BenchmarkResult {
        var configuration = ModelConfiguration(mixer: mixer)
        configuration.layers = 1
        configuration.modelDim = task.shape.modelDim
        configuration.heads = task.shape.heads
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
                configuration, isCausal: task.causal, maximumLength: task.shape.length, using: generator)
            (stack, body) = (encoder, { encoder($0) })
        }
        if task.reference { try useReference(in: stack) }
        return measured(mixer.name, task, inputs: [tokens(task.shape)], parameters: stack.parameters()) { body($0[0]) }
    }

    /// The mechanism alone, between its projections, on q, k, v `[batch, heads, length, headDim]`.
    ///
    /// - Throws: `ConfigurationError` when it cannot be built so, or is nothing without the rest of its layer.
    static func attention(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> BenchmarkResult {
        let bare = try BareMechanism(build(mixer, task), named: mixer.name, task.shape, reference: task.reference)
        return measured(
            mixer.name, task, inputs: bare.inputs(using: RandomGenerator(seed: 2)), parameters: bare.parameters
        ) { bare($0) }
    }

    /// A training step of a byte language model: forward, backward, AdamW.
    static func languageModel(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> BenchmarkResult {
        let shape = task.shape
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, shape, maximumLength: shape.length, generator)
        if task.reference { try useReference(in: model) }
        let optimizer = AdamW(model.namedParameters(), learningRate: 3e-4)
        let ids = Tensor.random(in: 0..<256, [shape.batch, shape.length + 1], using: generator)
        let (inputs, targets) = (ids[.all, 0..<shape.length].contiguous(), ids[.all, 1...].flattened())
        let watch = Stopwatch(repeats: task.repeats) {
            optimizer.zeroGradients()
            crossEntropy(model(inputs).flattened(0, 1), targets).backward()
            optimizer.step()
        }
        var result = BenchmarkResult(of: task, mixer.name, pass: "train-step", watch)
        result.causal = true
        result.tokensPerSecond = Double(shape.batch * shape.length) / watch.median * 1e3
        return result
    }

    /// `task.repeats` tokens of one sequence, made one by one after a context of `shape.length` random tokens.
    static func generation(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> BenchmarkResult {
        let (context, tokens) = (task.shape.length, task.repeats)
        let generator = RandomGenerator(seed: 1)
        let model = try languageModel(mixer, task.shape, maximumLength: context + tokens + 8, generator)
        model.evaluate()
        let prompt: [Int64] = Tensor.random(in: 0..<256, [context], using: generator).scalars()
        let sampler = try TokenSampler(SamplingOptions(temperature: 0), using: generator)
        func start() throws -> TokenGenerator {
            try TokenGenerator(model, prompt: prompt.map(Int.init), sampler: sampler)
        }
        var stream: TokenGenerator? = try start()
        for _ in 0..<2 { _ = stream?.next() }
        stream = nil  // only one is held at a time
        let prefill = try Stopwatch.milliseconds { stream = try start() }
        let watch = Stopwatch(repeats: tokens, warmUp: 1) { _ = stream?.next() }  // the first token costs no step
        var result = BenchmarkResult(of: task, mixer.name, pass: "generate", watch)
        result.causal = true
        result.tokensPerSecond = 1e3 / watch.mean
        result.prefillMilliseconds = prefill
        return result
    }

    /// The product of two square float32 matrices of `shape.length` rows: what the machine can do at best.
    static func product(_ task: BenchmarkTask) -> BenchmarkResult {
        let generator = RandomGenerator(seed: 1)
        let size = [task.shape.length, task.shape.length]
        let (a, b) = (Tensor.randomNormal(size, using: generator), Tensor.randomNormal(size, using: generator))
        return BenchmarkResult(
            of: task, "sgemm", pass: "forward", Stopwatch(repeats: task.repeats) { _ = matmul(a, b) })
    }

    /// The sum of two float32 tensors of `shape.length` numbers each, into new memory.
    static func addition(_ task: BenchmarkTask) -> BenchmarkResult {
        let x = Tensor.ones([task.shape.length])
        return BenchmarkResult(of: task, "addition", pass: "forward", Stopwatch(repeats: task.repeats) { _ = x + x })
    }

    private static func measured(
        _ name: String, _ task: BenchmarkTask, inputs: [Tensor], parameters: [Parameter], _ body: ([Tensor]) -> Tensor
    ) -> BenchmarkResult {
        let watch: Stopwatch
        switch task.pass {
        case .forward:
            watch = Stopwatch(repeats: task.repeats) { withNoGrad { _ = body(inputs) } }
        case .forwardBackward:
            let leaves = inputs.map { $0.requiringGrad() }
            let cotangent = withNoGrad { Tensor.randomNormal(body(inputs).shape, using: RandomGenerator(seed: 4)) }
            let wanted = leaves + parameters.map(\.value)
            watch = Stopwatch(repeats: task.repeats) {
                _ = gradients(of: [body(leaves)], weightedBy: [cotangent], withRespectTo: wanted)
            }
        }
        return BenchmarkResult(of: task, name, pass: task.pass.rawValue, watch)
    }

    /// What a layer is given, `[batch, length, modelDim]`.
    private static func tokens(_ shape: BenchmarkShape) -> Tensor {
        .randomNormal([shape.batch, shape.length, shape.modelDim], using: RandomGenerator(seed: 2))
    }

    private static func build(_ mixer: MixerConfiguration, _ task: BenchmarkTask) throws -> any SequenceMixer {
        try mixer.build(
            MixerContext(
                modelDim: task.shape.modelDim, heads: task.shape.heads, isCausal: task.causal,
                maximumLength: task.shape.length, generator: RandomGenerator(seed: 1)))
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

    private static func useReference(in model: Module) throws {
        let layers = model.namedModules().compactMap { $0.module as? any ReferenceEvaluating }
        guard !layers.isEmpty else { throw ConfigurationError("it has no reference form to measure") }
        for layer in layers { layer.usesReference = true }
    }
}

extension BenchmarkResult {
    /// What the watch says of the task's work.
    fileprivate init(of task: BenchmarkTask, _ mechanism: String, pass: String, _ watch: Stopwatch) {
        self.init(
            mechanism: mechanism, causal: task.causal, batch: task.shape.batch, heads: task.shape.heads,
            length: task.shape.length, headDim: task.shape.headDim, pass: pass, threads: TorchRuntime.threadCount,
            medianMilliseconds: watch.median, minimumMilliseconds: watch.minimum,
            peakResidentMegabytes: watch.peakMegabytes)
    }
}
