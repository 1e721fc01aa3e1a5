import Foundation
import Testing
import Torch

/// What a kernel made of its inputs: its outputs, and the gradients of a weighted sum of the first of them.
private func results(_ inputs: [Tensor], _ body: ([Tensor]) -> [Tensor]) -> [Tensor] {
    let leaves = inputs.map { $0.dtype.isFloatingPoint ? $0.requiringGrad() : $0 }
    let outputs = body(leaves)
    let wanted = leaves.filter(\.requiresGrad)
    guard outputs[0].requiresGrad else { return outputs }
    let weight = Tensor.randomNormal(outputs[0].shape, using: RandomGenerator(seed: 77)).to(outputs[0].dtype)
    let found = gradients(of: [outputs[0]], weightedBy: [weight], withRespectTo: wanted)
    return outputs.map { $0.detached() } + zip(found, wanted).map { $0 ?? .zeros(like: $1) }
}

/// Compares a kernel on every instruction set of this machine, in float64 and float32, with its plain loops in float64:
/// outputs, and gradients with respect to all inputs. Memory that LibTorch hands out is full of NaN meanwhile.
///
/// `scale`: deviations are relative to the largest magnitude of a tensor, or to this where that is smaller.
func expectKernel(
    _ inputs: [Tensor], double: Double = 1e-11, single: Double = 2e-5, scale: Double = 1e-2, _ note: String = "",
    sourceLocation: SourceLocation = #_sourceLocation, _ body: ([Tensor]) -> [Tensor]
) throws {
    poisonMemory()
    let wide = inputs.map { $0.dtype.isFloatingPoint ? $0.to(.float64) : $0 }
    let expected = try KernelInstructions.with("reference") { results(wide, body) }
    for isa in KernelInstructions.available where isa != "reference" {
        for dtype in [DType.float64, .float32] {
            poisonMemory()
            let cast = inputs.map { $0.dtype.isFloatingPoint ? $0.to(dtype) : $0 }
            let found = try KernelInstructions.with(isa) { results(cast, body) }
            for (index, (a, b)) in zip(found, expected).enumerated() where b.count > 0 {
                let largest = max(b.abs().maximum().item(), scale)
                let deviation = (a.to(.float64) - b.to(.float64)).abs().maximum().item() / largest
                #expect(
                    deviation < (dtype == .float64 ? double : single),
                    "\(note) result \(index) on \(isa) in \(dtype) deviates by \(deviation)",
                    sourceLocation: sourceLocation)
            }
        }
    }
}

/// q, k and v of two sequences, `[2, heads, queries or keys, channels]`.
func attentionInputs(queries: Int, keys: Int, heads: Int, features: Int, valueDim: Int) -> [Tensor] {
    [(queries, features), (keys, features), (keys, valueDim)].enumerated().map { seed, size in
        .randomNormal(
            [2, heads, size.0, size.1], using: RandomGenerator(seed: UInt64(seed + queries)), dtype: .float64)
    }
}

/// Which keys of two sequences count.
func someKeys(_ keys: Int) -> Tensor { Tensor.random(in: 0..<3, [2, keys], using: RandomGenerator(seed: 3)) .> 0 }

/// The same numbers, bit for bit, with 1, 2 and 4 threads.
func expectSameBitsOnAnyThreads(
    _ inputs: [Tensor], sourceLocation: SourceLocation = #_sourceLocation, _ body: @escaping ([Tensor]) -> [Tensor]
) {
    struct Work: @unchecked Sendable {
        let inputs: [Tensor]
        let body: ([Tensor]) -> [Tensor]
    }
    let work = Work(inputs: inputs, body: body)
    final class Box: @unchecked Sendable { var found: [Tensor] = [] }
    let runs = [1, 2, 4].map { count in
        let (box, done) = (Box(), DispatchSemaphore(value: 0))
        // The number of threads belongs to the thread that computes.
        Thread.detachNewThread {
            TorchRuntime.threadCount = count
            box.found = results(work.inputs, work.body)
            done.signal()
        }
        done.wait()
        return box.found
    }
    for run in runs.dropFirst() {
        for (index, (a, b)) in zip(run, runs[0]).enumerated() {
            #expect(
                (a - b).abs().maximum().item() == 0, "result \(index) depends on the number of threads",
                sourceLocation: sourceLocation)
        }
    }
}

/// Leaves NaN in blocks of memory that the next tensors are likely to get.
private func poisonMemory() {
    for count in [1, 7, 60, 500, 4000, 30_000] { _ = (0..<4).map { _ in Tensor.full([count], Double.nan) } }
}
