import Foundation
import SequenceMixers
import SequenceModels
import Torch

/// A small configuration whose weights matter: twelve tokens, three layers.
func smallConfiguration(_ mixer: MixerConfiguration) -> ModelConfiguration {
    var configuration = ModelConfiguration(mixer: mixer)
    configuration.layers = 3
    configuration.modelDim = 8
    configuration.heads = 2
    configuration.feedForwardDim = 12
    return configuration
}

let residualKinds = [
    ResidualConfiguration(), ResidualConfiguration(.constant, momentum: 0.6, stepSize: 0.9),
    ResidualConfiguration(.adaptive, stepSize: 0.7),
]

func randomIds(_ shape: [Int], below vocabulary: Int = 11, seed: UInt64) -> Tensor {
    .random(in: 0..<vocabulary, shape, using: RandomGenerator(seed: seed))
}

extension Tensor {
    /// The largest deviation relative to the largest magnitude; infinite where it is not a number.
    func deviation(from other: Tensor) -> Double {
        guard shape == other.shape else { return .infinity }
        let value =
            (detached() - other.detached()).abs().maximum().item() / other.detached().abs().maximum().item()
        return value.isFinite ? value : .infinity
    }
}

private final class Box<Value>: @unchecked Sendable { var value: Value? }

/// What `body` gives with 1, 2 and 4 threads: their number belongs to the thread that computes.
func resultsOnThreads<Value: Sendable>(_ body: @escaping @Sendable () -> Value) -> [Value] {
    [1, 2, 4].compactMap { count in
        let (box, done) = (Box<Value>(), DispatchSemaphore(value: 0))
        Thread.detachNewThread {
            TorchRuntime.threadCount = count
            box.value = withNoGrad(body)
            done.signal()
        }
        done.wait()
        return box.value
    }
}
