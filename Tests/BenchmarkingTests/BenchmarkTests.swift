import Benchmarking
import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

@Suite struct BenchmarkTests {
    static let shape = BenchmarkShape(batch: 2, heads: 2, length: 16, headDim: 4, layers: 1)

    @Test(arguments: [0.5, 1, 1.1, 2, 3]) func exponentsAreRecovered(_ exponent: Double) {
        let points = [1024.0, 2048, 4096, 65536].map { (x: $0, y: 0.37 * pow($0, exponent)) }
        #expect((fittedExponent(points) - exponent).magnitude < 1e-12)
    }

    @Test func exponentsAreTheBestFit() {
        // A line through (0, 0), (1, 1), (2, 0), in logarithms to the base 2, has slope 0.
        let points = [(x: 1.0, y: 1.0), (x: 2.0, y: 2.0), (x: 4.0, y: 1.0)]
        #expect(fittedExponent(points).magnitude < 1e-12)
    }

    /// As it is built when no options are given.
    private static func layer(_ name: String, causal: Bool) throws -> any SequenceMixer {
        try MixerConfiguration(name).build(
            MixerContext(
                modelDim: shape.heads * shape.headDim, heads: shape.heads, isCausal: causal,
                maximumLength: shape.length,
                generator: RandomGenerator(seed: 1)))
    }

    @Test(arguments: MixerCatalogue.entries.map(\.name), [true, false])
    func tinyRuns(_ name: String, _ causal: Bool) throws {
        let mixer = try MixerConfiguration(name)
        let entry = try MixerCatalogue.entry(named: name)
        guard causal ? entry.causal : entry.bidirectional else {
            #expect(throws: ConfigurationError.self) {
                try BenchmarkTask(.layer, mixer, causal: causal, Self.shape, repeats: 1).result()
            }
            return
        }
        let isBareable = !["r-transformer", "gmlp", "sparse-mlp", "mega", "fourier-transformer", "samformer"].contains(
            name)
        for pass in BenchmarkPass.allCases {
            for reference in [false, true] {
                func result(_ work: BenchmarkTask.Work, repeats: Int) throws -> BenchmarkResult {
                    try BenchmarkTask(
                        work, mixer, causal: causal, Self.shape, pass: pass, repeats: repeats, reference: reference
                    ).result()
                }
                var results = [try result(.layer, repeats: 2), try result(.block, repeats: 1)]
                if isBareable {
                    results.append(try result(.attention, repeats: 3))
                } else {
                    #expect(throws: ConfigurationError.self) { try result(.attention, repeats: 3) }
                }
                for result in results {
                    #expect(result.mechanism == name && result.causal == causal && result.pass == pass.rawValue)
                    #expect((result.batch, result.heads, result.length, result.headDim) == (2, 2, 16, 4))
                    #expect(result.minimumMilliseconds > 0)
                    #expect(result.medianMilliseconds >= result.minimumMilliseconds)
                    #expect(result.peakResidentMegabytes > 0 && result.tokensPerSecond == nil)
                }
            }
        }
    }

    @Test(arguments: MixerCatalogue.entries.filter(\.causal).map(\.name)) func tinyModels(_ name: String) throws {
        let mixer = try MixerConfiguration(name)
        let training = try BenchmarkTask(.languageModel, mixer, Self.shape, repeats: 2).result()
        #expect(training.pass == "train-step")
        let rate = try #require(training.tokensPerSecond)
        #expect((rate * training.medianMilliseconds / (2 * 16 * 1e3) - 1).magnitude < 1e-9)
        let generating = BenchmarkTask(.generation, mixer, Self.shape, repeats: 3)
        guard (try Self.layer(name, causal: true) as? any StreamingMixer)?.canStream == true else {
            #expect(throws: (any Error).self) { try generating.result() }
            return
        }
        let generation = try generating.result()
        #expect(generation.pass == "generate")
        #expect(try #require(generation.tokensPerSecond) > 0)
    }

    /// A measurement crosses to another process as JSON.
    @Test(arguments: MixerCatalogue.entries.map(\.name)) func tasksAreWrittenAndRead(_ name: String) throws {
        let task = BenchmarkTask(
            .attention, try MixerConfiguration(name), causal: true, Self.shape, repeats: 3, reference: true, threads: 2)
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        let json = try encoder.encode(task)
        #expect(try encoder.encode(JSONDecoder().decode(BenchmarkTask.self, from: json)) == json)
    }

    @Test func tasksKnowWhatTheProcessTakes() throws {
        let result = try BenchmarkTask(.layer, try MixerConfiguration("linear"), Self.shape, repeats: 2).measure()
        #expect(try #require(result.baseResidentMegabytes) > 0 && result.mechanism == "linear")
        #expect(
            try #require(result.extraMegabytes) == result.peakResidentMegabytes - (result.baseResidentMegabytes ?? 0))
        let product = try BenchmarkTask(.product, nil, BenchmarkShape(length: 32), repeats: 2).measure()
        #expect(product.mechanism == "sgemm" && product.minimumMilliseconds > 0)
    }

    @Test func resultsHaveTheirKeys() throws {
        let task = BenchmarkTask(.attention, try MixerConfiguration("linear"), causal: true, Self.shape, repeats: 1)
        let result = try task.result()
        let object = try JSONSerialization.jsonObject(with: JSONEncoder().encode(result)) as? [String: Any]
        let keys: Set = [
            "mechanism", "causal", "batch", "heads", "length", "head_dim", "pass", "threads", "median_ms", "min_ms",
            "peak_rss_mb",
        ]
        #expect(Set(try #require(object).keys) == keys)
    }
}

/// No mechanism keeps a number for each pair of tokens. In a process of their own, where nothing else takes memory.
@Suite(.serialized) struct MemoryTests {
    @Test func peakGrowsWithTheLengthOnly() async {
        await #expect(processExitsWith: .success) {
            for (name, options) in try MemoryCase.all() {
                for causal in [true, false] where causal || name == "linear" {
                    // Exact attention takes its time, so it gets a quarter of the length.
                    let length = name == "softmax" ? 4096 : 16384
                    let peaks = try [length / 4, length].map {
                        try MemoryCase.peakMegabytes(MixerConfiguration(name, options), causal: causal, length: $0)
                    }
                    // N² numbers of four bytes are 67 or 1074 MB; q, k, v, out and their gradients are 2 or 8 MB.
                    #expect(peaks[1] < (name == "softmax" ? 40 : 120), "\(name), causal \(causal): \(peaks) MB")
                    #expect(peaks[1] < 6 * max(peaks[0], 10), "\(name), causal \(causal): \(peaks) MB")
                }
            }
        }
    }
}

enum MemoryCase {
    static func all() throws -> [(String, (any MixerOptions)?)] {
        var favor = LinearOptions()
        favor.featureMap = .favor
        return [
            ("softmax", nil), ("linear", nil), ("linear", favor), ("momentum", nil),
            ("momentum", MomentumOptions(momentum: 0.9, stepSize: 0.5, weights: .final)),
        ]
    }

    /// What a forward and backward pass over one head of 16 channels takes at most, padding included.
    static func peakMegabytes(_ mixer: MixerConfiguration, causal: Bool, length: Int) throws -> Double {
        let context = try MixerContext(
            modelDim: 16, heads: 1, isCausal: causal, generator: RandomGenerator(seed: 1))
        let layer = try mixer.build(context)
        let mask = Tensor.arange(0..<length).unsqueezed(0) .< length - 3
        func pass(_ length: Int) {
            let x = Tensor.randomNormal([1, length, 16], using: RandomGenerator(seed: 2)).requiringGrad()
            let y = layer(x, paddingMask: mask.sliced(1, mask.size(1) - length..<mask.size(1)))
            y.sum().backward()
        }
        pass(8)  // what LibTorch takes once
        ProcessMemory.resetPeak()
        let before = ProcessMemory.residentMegabytes
        pass(length)
        return ProcessMemory.peakMegabytes - before
    }
}
