import Foundation
import Testing
import Torch

/// Each in a process of its own: the allocator cannot be taken out again, and its counts are the whole process's.
@Suite struct CachingAllocatorTests {
    @Test func layersDoNotKeepWhatANormMade() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            try KernelInstructions.with("baseline") {
                let x = normal([4096, 64], seed: 1, dtype: .float32).requiringGrad()
                let weight = normal([64, 64], seed: 2, dtype: .float32)
                func normalized() -> Tensor { addedNorm(x, nil, .layer, weight: nil, epsilon: 1e-5).normalized }
                let (size, before) = (4096 * 64 * 4, TorchRuntime.cachedMemory.inUse)
                let y = projections(normalized() * 1, [(weight, nil)])[0]
                let kept = TorchRuntime.cachedMemory.inUse - before
                let z = projections(normalized(), [(weight, nil)])[0]
                let more = TorchRuntime.cachedMemory.inUse - before - kept
                #expect(kept >= 2 * size && more >= size && more < size + size / 4)
                #expect((y - z).abs().maximum().item() == 0)
            }
        }
    }

    @Test func reusedMemoryGivesTheSameResults() async {
        await #expect(processExitsWith: .success) {
            func results(_ seed: Int) -> [Tensor] {
                let x = normal([130, 257], seed: seed).requiringGrad()
                let y = matmul(x, normal([257, 190], seed: seed + 1)).softmax()
                let z = layerNorm(y.gelu(), shape: [190]).cumulativeSum(0)
                z.square().mean().backward()
                // oneDNN's float32 kernels take memory from the allocator without a tensor around it, large and small.
                let gelu = normal([400, 300], seed: seed, dtype: .float32).gelu()
                let small = normal([16, 16], seed: seed, dtype: .float32).gelu()
                return [
                    gelu, small, y, z, x.grad ?? x, x.rfft().irfft(count: 257), x.sorted().values,
                    x.transposed().contiguous(),
                ]
                .map { $0.detached() }
            }
            func poison() {
                let sizes = [20_000, 65_536, 130 * 257, 130 * 190, 190 * 257, 300_000]
                _ = (0..<3).flatMap { _ in sizes.map { Tensor.full([$0], Double.nan, dtype: .float64) } }
            }
            let expected = (0..<3).map(results)
            TorchRuntime.useCachingAllocator()
            TorchRuntime.useCachingAllocator()
            #expect(TorchRuntime.usesCachingAllocator)
            for round in 0..<5 {
                poison()
                for (found, reference) in zip(results(round % 3), expected[round % 3]) {
                    #expect(found.isIdentical(to: reference))
                }
            }
            #expect(TorchRuntime.cachedMemory.kept > 0)
        }
    }

    @Test func usageReturnsToZero() async {
        await #expect(processExitsWith: .success) {
            let before = Tensor.ones([1 << 20])  // made by the usual allocator, freed under the new one
            TorchRuntime.useCachingAllocator()
            #expect(TorchRuntime.cachedMemory == (0, 0))
            do {
                let x = before + 1
                #expect(TorchRuntime.cachedMemory.inUse == 4 << 20)
                let small = Tensor.ones([100])
                #expect(TorchRuntime.cachedMemory.inUse == 4 << 20)
                #expect(x[0].item() == 2 && small.sum().item() == 100)
            }
            #expect(TorchRuntime.cachedMemory == (0, 4 << 20))
            do {
                // The kept block serves again, also for a slightly smaller tensor.
                let again = Tensor.zeros([(1 << 20) - 5000])
                #expect(TorchRuntime.cachedMemory.kept == 0)
                _ = again
            }
            TorchRuntime.releaseCachedMemory()
            #expect(TorchRuntime.cachedMemory == (0, 0))
        }
    }

    /// What is kept stays within a quarter of what was ever in use at once, whatever sizes come.
    @Test func keptMemoryIsBounded() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            var largest = 0
            for step in 0..<400 {
                let tensor = Tensor.uninitialized([20_000 + step * 3_001])
                largest = max(largest, TorchRuntime.cachedMemory.inUse)
                _ = tensor
                let (inUse, kept) = TorchRuntime.cachedMemory
                #expect(inUse + kept <= largest + largest / 4)
            }
        }
    }

    @Test func manyThreadsAtOnce() async {
        await #expect(processExitsWith: .success) {
            TorchRuntime.useCachingAllocator()
            DispatchQueue.concurrentPerform(iterations: 8) { thread in
                var numbers = SeededNumbers(thread)
                var held: [(Tensor, Double)] = []
                for step in 0..<300 {
                    let size = Int.random(in: 10_000...200_000, using: &numbers)
                    let value = Double(thread * 1000 + step)
                    held.append((Tensor.full([size], value), value))
                    if held.count > 6 {
                        let (tensor, value) = held.remove(at: Int.random(in: 0..<6, using: &numbers))
                        // Would differ if a block had been handed out twice.
                        #expect(tensor.minimum().item() == value && tensor.maximum().item() == value)
                    }
                }
            }
            #expect(TorchRuntime.cachedMemory.inUse == 0)
            TorchRuntime.releaseCachedMemory()
            #expect(TorchRuntime.cachedMemory == (0, 0))
        }
    }
}
