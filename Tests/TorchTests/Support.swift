import Foundation
import Testing
import Torch

/// A small generator for shapes and mutations, the same in every run of a seed.
struct SeededNumbers: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: Int) { state = UInt64(truncatingIfNeeded: seed) &* 0x9E37_79B9_7F4A_7C15 }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

func normal(_ shape: [Int], seed: Int = 0, dtype: DType = .float64) -> Tensor {
    Tensor.randomNormal(shape, using: RandomGenerator(seed: UInt64(seed)), dtype: dtype)
}

func expectClose(
    _ found: Tensor, _ expected: Tensor, _ tolerance: Double = 1e-12,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    #expect(found.shape == expected.shape, sourceLocation: sourceLocation)
    guard found.shape == expected.shape else { return }
    let error = found.relativeError(to: expected)
    #expect(error <= tolerance, sourceLocation: sourceLocation)
}

/// The error that `body` reports; an issue when it reports none.
func torchError(
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () -> Void
) -> TorchError {
    do {
        try withTorchErrors(body)
    } catch let error as TorchError {
        return error
    } catch {}
    Issue.record("no TorchError was thrown", sourceLocation: sourceLocation)
    return TorchError(.internal, in: "", "")
}

/// A folder that is gone after `body`.
func withTemporaryFolder<Result>(_ body: (URL) throws -> Result) throws -> Result {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("torch-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    return try body(folder)
}
