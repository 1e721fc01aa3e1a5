import Testing
import Torch
import TorchNN
import TorchOptimizers

@Suite struct SAMTests {
    /// f = Σ a w² / 2 + b w, whose gradient is a w + b: everything can be counted by hand.
    private func loss(_ w: Parameter) -> Tensor {
        let a = Tensor([3.0, 1, 0.5])
        let b = Tensor([0.1, -2, 1])
        return (w.value.square() * a * 0.5 + w.value * b).sum()
    }

    private func gradient(_ w: [Double]) -> [Double] { [3 * w[0] + 0.1, w[1] - 2, 0.5 * w[2] + 1] }

    @Test(arguments: [false, true]) func aStepIsTheOneOfTheHighestPoint(_ isAdaptive: Bool) {
        let start = [0.7, -1.5, 2.0]
        let w = Parameter(Tensor(start))
        let sam = SAM(SGD([("w", w)], learningRate: 0.1), [w], rho: 0.5, isAdaptive: isAdaptive)
        var passes: [Double] = []
        let returned = sam.step {
            sam.zeroGradients()
            let value = loss(w)
            value.backward()
            passes.append(value.item())
            return value.item()
        }
        let g = gradient(start)
        let scales = start.map { isAdaptive ? $0.magnitude : 1 }
        let length = zip(g, scales).map { $0 * $0 * $1 * $1 }.reduce(0, +).squareRoot()
        let top = zip(zip(start, g), scales).map { $0.0 + 0.5 * $0.1 * $1 * $1 / length }
        let expected = zip(start, gradient(top)).map { $0 - 0.1 * $1 }
        #expect(w.value.relativeError(to: Tensor(expected)) < 1e-12)
        #expect(passes.count == 2 && passes[1] > passes[0] && returned == passes[0])
    }

    @Test func bothPassesDrawTheSameNumbers() {
        let generator = RandomGenerator(seed: 4)
        let w = Parameter(.ones([50]))
        let dropout = Dropout(0.5, using: generator)
        let sam = SAM(Adam([("w", w)]), [w], rho: 0.1)
        var kept: [Tensor] = []
        for _ in 0..<3 {
            sam.step(replaying: [generator]) {
                sam.zeroGradients()
                let y = dropout(w.value)
                y.sum().backward()
                kept.append(y.detached() .!= 0)
            }
        }
        for step in 0..<3 { #expect(kept[2 * step].isIdentical(to: kept[2 * step + 1])) }
        #expect(!kept[0].isIdentical(to: kept[2]))
    }

    @Test func theWeightsComeBackExactly() {
        let values = Tensor.randomNormal([40], using: RandomGenerator(seed: 1))
        let (w, frozen, idle) = (Parameter(values), Parameter(values), Parameter(values))
        frozen.isTrainable = false
        let sam = SAM(SGD([("w", w)], learningRate: 0), [w, frozen, idle], rho: 3)
        (w.value * w.value).sum().backward()
        let norm = sam.climb()
        #expect(abs(norm - 2 * values.norm().item()) < 1e-4 * norm)
        #expect(abs((w.value - values).norm().item() - 3) < 1e-4)
        #expect(w.grad == nil)
        #expect(frozen.value.isIdentical(to: values) && idle.value.isIdentical(to: values))
        sam.retreat()
        #expect(w.value.isIdentical(to: values))
        sam.retreat()
        #expect(w.value.isIdentical(to: values))
    }

    @Test func withoutASlopeOrARadiusItIsTheOptimizer() {
        let w = Parameter(.ones([3]))
        let sam = SAM(SGD([("w", w)], learningRate: 0.5), [w], rho: 1)
        #expect(sam.climb() == 0)  // no gradient
        w.grad = .zeros([3])
        #expect(sam.climb() == 0 && w.value.isIdentical(to: .ones([3])))
        w.grad = .ones([3])
        sam.step()
        #expect(w.value.isIdentical(to: .full([3], 0.5)))
    }

    @Test(arguments: [Double.nan, .infinity]) func aGradientThatIsNoNumberMovesNothing(_ value: Double) {
        let w = Parameter(.ones([3]))
        let sam = SAM(SGD([("w", w)], learningRate: 0.5), [w], rho: 1)
        w.grad = Tensor([1, Float(value), 1])
        #expect(!sam.climb().isFinite)
        #expect(w.value.isIdentical(to: .ones([3])) && w.grad != nil)
    }

    @Test func aThrownErrorLeavesTheWeights() {
        struct Failure: Error {}
        let w = Parameter(.ones([3]))
        let sam = SAM(SGD([("w", w)], learningRate: 0.5), [w], rho: 1)
        var passes = 0
        #expect(throws: Failure.self) {
            try sam.step {
                passes += 1
                if passes == 2 { throw Failure() }
                w.value.square().sum().backward()
            }
        }
        #expect(passes == 2 && w.value.isIdentical(to: .ones([3])))
    }

    @Test func itsStateIsTheOptimizers() throws {
        let w = Parameter(.ones([3]))
        let sam = SAM(Adam([("w", w)]), [w], rho: 1)
        sam.learningRate = 0.25
        #expect(sam.optimizer.learningRate == 0.25)
        sam.step {
            sam.zeroGradients()
            w.value.square().sum().backward()
        }
        #expect(Set(sam.state.keys) == ["w.step", "w.mean", "w.square"])
        let other = SAM(Adam([("w", w)]), [w], rho: 1)
        try other.load(state: sam.state)
        #expect(other.state["w.step"]?.integerItem() == 1)
        #expect(throws: OptimizerStateError.self) { try other.load(state: [:]) }
    }

    @Test func impossibleUsesAreRefused() {
        let w = Parameter(.ones([3]))
        #expect(
            misuse { _ = SAM(Adam([("w", w)]), [w], rho: -1) } == "SAM: expected a rho of at least 0, got -1.0")
        let sam = SAM(Adam([("w", w)]), [w], rho: 1)
        w.grad = .ones([3])
        sam.climb()
        w.grad = .ones([3])
        let text = "SAM.climb: the weights are away from their place: call step first"
        #expect(misuse { sam.climb() } == text)
    }
}
