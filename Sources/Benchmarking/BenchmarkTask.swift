import Foundation
import SequenceMixers
import Torch

/// One measurement, described so that another process can make it.
///
/// A process that has measured something keeps memory and threads, so the next measurement is better made elsewhere.
public struct BenchmarkTask: Codable, Sendable {
    public enum Work: String, Codable, Sendable {
        /// A mechanism between its projections.
        case attention
        /// A mixer with its projections.
        case layer
        /// A mixer in a block of a model.
        case block
        /// A training step of a language model.
        case languageModel
        /// Tokens one by one.
        case generation
        /// The sum of two tensors.
        case addition
        /// The product of two square matrices.
        case product
    }

    public var work: Work
    /// nil where no mechanism is measured.
    public var mixer: MixerConfiguration?
    public var causal: Bool
    public var shape: BenchmarkShape
    public var pass: BenchmarkPass
    public var repeats: Int
    /// Whether the reference form takes the place of the fast one.
    public var reference: Bool
    /// As many as LibTorch takes where nil.
    public var threads: Int?

    public init(
        _ work: Work, _ mixer: MixerConfiguration? = nil, causal: Bool = false, _ shape: BenchmarkShape,
        pass: BenchmarkPass = .forward, repeats: Int, reference: Bool = false, threads: Int? = nil
    ) {
        self.work = work
        self.mixer = mixer
        self.causal = causal
        self.shape = shape
        self.pass = pass
        self.repeats = repeats
        self.reference = reference
        self.threads = threads
    }

    /// Measures in this process, which ought to be a fresh one, after a run of few tokens that brings in what LibTorch needs
    /// once.
    ///
    /// - Throws: `ConfigurationError` for a mechanism that cannot be built so, `TorchError` when memory does not suffice.
    public func measure() throws -> BenchmarkResult {
        if let threads { TorchRuntime.threadCount = threads }
        var short = self
        short.shape.length = min(shape.length, 64)
        short.repeats = 1
        // Where the mechanism wants a length that this is not, the first run has to do.
        if work != .product && work != .addition { _ = try? withTorchErrors { try short.result() } }
        TorchRuntime.releaseCachedMemory()
        let base = ProcessMemory.residentMegabytes
        var result = try withTorchErrors { try self.result() }
        result.baseResidentMegabytes = base
        return result
    }

    /// Measures in this process as it is.
    ///
    /// - Throws: `ConfigurationError` for a mechanism that cannot be built so, or measured so.
    public func result() throws -> BenchmarkResult {
        guard let mixer else { return work == .product ? Benchmark.product(self) : Benchmark.addition(self) }
        switch work {
        case .attention: return try Benchmark.attention(mixer, self)
        case .block: return try Benchmark.block(mixer, self)
        case .languageModel: return try Benchmark.languageModel(mixer, self)
        case .generation: return try Benchmark.generation(mixer, self)
        default: return try Benchmark.layer(mixer, self)
        }
    }
}
