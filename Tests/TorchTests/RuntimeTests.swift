import Foundation
import Testing
import Torch

@Suite struct RandomGeneratorTests {
    private func draw(_ generator: RandomGenerator) -> [Tensor] {
        let target = Tensor.zeros([5])
        target.fillNormalInPlace(mean: 1, deviation: 2, using: generator)
        let uniform = Tensor.zeros([5])
        uniform.fillUniformInPlace(-1..<1, using: generator)
        return [
            .random([7], using: generator), .randomNormal([3], using: generator),
            .random(in: 0..<100, [9], using: generator),
            .randomPermutation(11, using: generator),
            .bernoulli(like: Tensor.zeros([20]), probability: 0.3, using: generator),
            .multinomial(Tensor([0.2, 0.8]), count: 6, using: generator), target, uniform,
        ]
    }

    @Test func statesContinueBitForBit() {
        let generator = RandomGenerator(seed: 5)
        // An odd number of normal values leaves one of a pair waiting inside the generator.
        _ = Tensor.randomNormal([1], using: generator, dtype: .float64)
        _ = draw(generator)
        let state = generator.state
        let first = draw(generator)
        let other = RandomGenerator(seed: 99)
        other.state = state
        for (a, b) in zip(first, draw(other)) { #expect(a.isIdentical(to: b)) }
        generator.state = state
        for (a, b) in zip(first, draw(generator)) { #expect(a.isIdentical(to: b)) }
        #expect(state.dtype == .uint8)
    }

    @Test func seedsDecide() {
        let a = RandomGenerator(seed: 1)
        let first = draw(a)
        for (x, y) in zip(first, draw(RandomGenerator(seed: 1))) { #expect(x.isIdentical(to: y)) }
        #expect(!first[0].isIdentical(to: draw(RandomGenerator(seed: 2))[0]))
        a.reseed(1)
        #expect(first[0].isIdentical(to: draw(a)[0]))
        let damaged = torchError { a.state = Tensor.zeros([3], dtype: .uint8) }
        #expect(damaged.operation == "set_state")
    }

    @Test func drawsKeepTheirRanges() {
        let generator = RandomGenerator(seed: 0)
        let whole = Tensor.random(in: -3..<4, [2000], using: generator)
        #expect(whole.minimum().integerItem() == -3)
        #expect(whole.maximum().integerItem() == 3)
        #expect(Tensor.randomPermutation(50, using: generator).sorted().values.scalars() == Array(0..<50))
        let share = Tensor.bernoulli(like: Tensor.zeros([20000]), probability: 0.25, using: generator).mean().item()
        #expect((share - 0.25).magnitude < 0.02)
        let sample = Tensor.randomNormal([20000], using: generator, dtype: .float64)
        #expect(sample.mean().item().magnitude < 0.03)
        #expect((sample.variance().item() - 1).magnitude < 0.05)
    }
}

@Suite struct TorchErrorTests {
    @Test func messageNamesOperationAndShapes() {
        let error = torchError { _ = matmul(Tensor.zeros([2, 3]), Tensor.zeros([4, 5])) }
        #expect(error.operation == "matmul")
        #expect(error.description.contains("[2, 3], [4, 5]"))
        #expect(!error.description.contains("\n"))
        #expect(!error.description.contains("Exception raised"))
    }

    @Test func firstErrorWins() {
        let error = torchError {
            let bad = matmul(Tensor.zeros([2, 3]), Tensor.zeros([4, 5]))
            _ = bad.reshaped(9, 9)
            torchPrecondition(false, in: "later", "never seen")
        }
        #expect(error.operation == "matmul")
    }

    @Test func standInsDoNoHarm() {
        let error = torchError {
            let bad = Tensor.zeros([2]).reshaped(3)
            _ = (bad + 1).exp().sum().item()
            _ = bad[0, 1..<9, .ellipsis]
            _ = bad.topK(4)
            _ = bad.split(into: 3, dim: 2)
            _ = bad.qr()
            _ = "\(bad)"
            _ = bad.scalars(as: Double.self)
            bad.fillInPlace(3)
            bad.backward()
            _ = withCustomGradient([bad.requiringGrad()]) { ([$0[0].selected(4, 4)], { $0 }) }
            _ = gradients(of: [bad], withRespectTo: [bad])
        }
        #expect(error.operation == "reshape")
    }

    @Test func scopesNest() throws {
        let outer = torchError {
            #expect(torchError { _ = Tensor.zeros([2]).reshaped(3) }.operation == "reshape")
            _ = matmul(Tensor.zeros([2]), Tensor.zeros([3]))
        }
        #expect(outer.operation == "matmul")
        #expect(try withTorchErrors { Tensor.zeros([2]).sum().item() } == 0)
    }

    private struct Refusal: Error {}

    @Test func ownErrorsPassThrough() {
        #expect(throws: Refusal.self) { try withTorchErrors { throw Refusal() } }
        // What went wrong first is the cause of what is thrown after it.
        #expect(throws: TorchError.self) {
            try withTorchErrors {
                _ = Tensor.zeros([2]).reshaped(3)
                throw Refusal()
            }
        }
    }

    @Test func scopesReachChildTasks() async {
        let error = torchError { _ = Tensor.zeros([3]).selected(0, 7) }
        #expect(error.kind == .indexOutOfRange)
        // Scopes of concurrent tasks are their own.
        await withTaskGroup { group in
            for size in 2..<30 {
                group.addTask {
                    torchError { _ = Tensor.zeros([size]).reshaped(size + 1) }.description.contains("[\(size)]")
                }
            }
            for await isRight in group { #expect(isRight) }
        }
    }

    @Test func hugeRequestsSaySo() {
        #expect(torchError { _ = Tensor.zeros([1 << 50]) }.kind == .outOfMemory)
    }

    @Test func misuseOutsideAScopeTraps() async {
        await #expect(processExitsWith: .failure) { _ = matmul(Tensor.zeros([2, 3]), Tensor.zeros([4, 5])) }
        await #expect(processExitsWith: .failure) { torchPrecondition(false, in: "layer", "wrong") }
    }

    @Test func devicesAreReadByName() throws {
        #expect(try Device(named: "cpu") == .cpu)
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99999999999999999999", "cpu:0", "mps:1"] {
            #expect(throws: TorchError.self) { try Device(named: name) }
        }
        #expect(Device.cuda(3).description == "cuda:3")
        #expect(Tensor.zeros([1]).device == .cpu)
    }
}

@Suite struct TorchRuntimeTests {
    @Test func versionsAreVersions() {
        #expect(TorchRuntime.headerVersion.split(separator: ".").count >= 3)
        #expect(TorchRuntime.libraryVersion.first?.isNumber == true)
        #expect(TorchRuntime.headerVersion.hasPrefix(TorchRuntime.libraryVersion.prefix(4)))
        #expect(!TorchRuntime.instructionSet.isEmpty)
    }

    @Test func threadCountIsKept() async {
        await #expect(processExitsWith: .success) {
            let expected = normal([300, 300]).sum(0)
            for count in [1, 2, 3] {
                TorchRuntime.threadCount = count
                #expect(TorchRuntime.threadCount == count)
                expectClose(normal([300, 300]).sum(0), expected)
            }
            TorchRuntime.threadCount = 0
            #expect(TorchRuntime.threadCount == 1)
        }
    }
}

@Suite struct TensorInPlaceTests {
    @Test func changesAreSeenByEveryCopy() {
        let x = Tensor([1.0, 2.0])
        let same = x
        x.addInPlace(Tensor([1.0, 1.0]), scale: 2)
        #expect(same.scalars() == [3.0, 4.0])
        x.multiplyInPlace(by: 2)
        x.interpolateInPlace(towards: Tensor([0.0, 0.0]), weight: 0.5)
        x.addProductInPlace(Tensor([1.0, 2.0]), Tensor([3.0, 4.0]), scale: 10)
        #expect(same.scalars() == [33.0, 84.0])
        x.addQuotientInPlace(Tensor([1.0, 2.0]), Tensor([2.0, 4.0]), scale: -2)
        #expect(same.scalars() == [32.0, 83.0])
        x.copyInPlace(0, 1..<2, from: Tensor([7.0]))
        x.copyInPlace(from: x * 2)
        #expect(same.scalars() == [64.0, 14.0])
        #expect(torchError { x.copyInPlace(0, 1..<3, from: x) }.operation == "copy_")
        #expect(torchError { x.copyInPlace(from: Tensor([1.0, 2.0, 3.0])) }.operation == "copy_")
    }

    @Test func leavesMayBeChanged() {
        let leaf = Tensor([1.0]).requiringGrad()
        leaf.addInPlace(Tensor([1.0]))
        #expect(leaf.item() == 2)
        #expect(leaf.requiresGrad)
    }

    @Test(arguments: [DType.float32, .float64]) func fusedAdamWFollowsTheFormula(_ dtype: DType) {
        let shapes = [[3, 4], [5], []]
        let parameters = shapes.enumerated().map { normal($1, seed: $0, dtype: dtype).requiringGrad() }
        let means = shapes.map { Tensor.zeros($0, dtype: dtype) }
        let squares = shapes.map { Tensor.zeros($0, dtype: dtype) }
        let steps = shapes.map { _ in Tensor(Float(0)) }
        var expected = parameters.map { $0.detached().to(.float64).cloned() }
        var mean = shapes.map { Tensor.zeros($0, dtype: .float64) }
        var square = mean
        for step in 1...3 {
            let grads = shapes.enumerated().map { normal($1, seed: 10 * step + $0, dtype: dtype) }
            fusedAdamW(
                parameters, gradients: grads, means: means, squares: squares, steps: steps, learningRate: 0.01,
                beta1: 0.9, beta2: 0.95, weightDecay: 0.1, epsilon: 1e-8)
            for index in shapes.indices {
                let gradient = grads[index].to(.float64)
                mean[index] = mean[index] * 0.9 + gradient * 0.1
                square[index] = square[index] * 0.95 + gradient.square() * 0.05
                let first = mean[index] / (1 - Foundation.pow(0.9, Double(step)))
                let second = square[index] / (1 - Foundation.pow(0.95, Double(step)))
                expected[index] = expected[index] * (1 - 0.01 * 0.1) - first / (second.sqrt() + 1e-8) * 0.01
                expectClose(parameters[index].to(.float64), expected[index], dtype == .float32 ? 1e-6 : 1e-12)
                #expect(steps[index].item() == Double(step))
            }
        }
        let short = torchError {
            fusedAdamW(
                parameters, gradients: [], means: means, squares: squares, steps: steps, learningRate: 0.01, beta1: 0.9,
                beta2: 0.95, weightDecay: 0, epsilon: 1e-8)
        }
        #expect(short.message.contains("different lengths"))
    }

    @Test func globalNormIsOneVectors() {
        #expect(globalNorm([Tensor([3.0, 0.0]), Tensor([[4.0]].flatMap { $0 }, shape: [1, 1])]).item() == 5)
        #expect(globalNorm([]).item() == 0)
    }
}
