import Testing
import Torch

@Suite struct AutogradTests {
    @Test func backwardAddsUp() {
        let x = Tensor([1.0, 2.0]).requiringGrad()
        #expect(x.grad == nil)
        x.square().sum().backward()
        #expect(x.grad?.scalars() == [2.0, 4.0])
        (x * 3).backward(gradient: Tensor([1.0, 10.0]))
        #expect(x.grad?.scalars() == [5.0, 34.0])
        x.grad = nil
        #expect(x.grad == nil)
    }

    @Test func gradientsLeaveGradAlone() {
        let x = Tensor([1.0, 2.0]).requiringGrad()
        let unused = Tensor([0.0]).requiringGrad()
        let found = gradients(
            of: [x.square(), x], weightedBy: [Tensor([1.0, 1.0]), Tensor([5.0, 5.0])], withRespectTo: [x, unused])
        #expect(found[0]?.scalars() == [7.0, 9.0])
        #expect(found[1] == nil)
        #expect(x.grad == nil)
    }

    @Test func secondDerivatives() {
        let x = Tensor(2.0).requiringGrad()
        let first = gradients(of: [x.power(3)], withRespectTo: [x], createGraph: true)[0]
        let second = first.flatMap { gradients(of: [$0], withRespectTo: [x])[0] }
        #expect(second?.item() == 12)
    }

    @Test func graphsAreUsedOnceUnlessKept() {
        let x = Tensor(2.0).requiringGrad()
        let y = x.exp()
        y.backward(keepGraph: true)
        y.backward()
        #expect(torchError { y.backward() }.operation == "backward")
    }

    private struct Interruption: Error {}

    @Test func recordingModesNest() throws {
        let x = Tensor(2.0).requiringGrad()
        #expect(isGradEnabled)
        withNoGrad {
            #expect(!isGradEnabled)
            #expect(!(x * 2).requiresGrad)
            withGrad {
                #expect((x * 2).requiresGrad)
                withNoGrad { #expect(!isGradEnabled) }
                #expect(isGradEnabled)
            }
            #expect(!isGradEnabled)
        }
        #expect(isGradEnabled)
        #expect(throws: Interruption.self) { try withNoGrad { throw Interruption() } }
        #expect(isGradEnabled)
    }

    @Test func leavesAndDetachedTensors() {
        let x = Tensor([1.0]).requiringGrad()
        #expect(!x.detached().requiresGrad)
        #expect(x.detached().sharesStorage(with: x))
        #expect(!x.requiringGrad(false).requiresGrad)
        #expect(torchError { _ = Tensor([1]).requiringGrad() }.operation == "requires_grad")
    }

    @Test func misuseIsReported() {
        let x = Tensor([1.0, 2.0]).requiringGrad()
        #expect(torchError { (x * 2).backward() }.operation == "backward")
        #expect(torchError { x.detached().sum().backward() }.operation == "backward")
        #expect(
            torchError {
                _ = gradients(of: [x * 2], weightedBy: [], withRespectTo: [x])
            }.message.contains("0 weights for 1 outputs"))
        #expect(torchError { x.grad = Tensor([1.0, 2.0, 3.0]) }.operation == "grad")
    }

    /// Releasing node by node, each from inside the other, would overflow the stack.
    @Test func deepGraphsAreReleased() {
        let x = Tensor(1.0).requiringGrad()
        var y = x
        for _ in 0..<100_000 { y = y + 1 }
        #expect(y.item() == 100_001)
        y.backward()
        #expect(x.grad?.item() == 1)
        var unused = x
        for _ in 0..<100_000 { unused = unused + 1 }
    }

    @Test func deepGraphsOfCustomGradientsAreReleased() {
        let x = Tensor(1.0).requiringGrad()
        func chain() -> Tensor {
            var y = x
            for _ in 0..<20_000 { y = withCustomGradient([y]) { inputs in ([inputs[0] + 1], { $0 }) }[0] }
            return y
        }
        chain().backward()
        #expect(x.grad?.item() == 1)
        _ = chain()
    }

    @Test(arguments: 0..<3) func gradientCheckAcceptsRightGradients(_ seed: Int) {
        let x = normal([3, 4], seed: seed)
        let y = normal([4, 2], seed: seed + 1)
        #expect(gradientCheck([x, y]) { matmul($0[0], $0[1]).tanh() } < 1e-7)
        #expect(gradientCheck([x]) { $0[0].softmax() } < 1e-7)
        #expect(gradientCheck([x]) { $0[0].logSumExp(1) } < 1e-7)
        #expect(gradientCheck([x]) { $0[0].gathered(1, Tensor([0, 0, 3], shape: [3, 1])) } < 1e-7)
        #expect(gradientCheck([x]) { $0[0].rfft().complexAsReal() } < 1e-7)
        #expect(gradientCheck([x.abs() + 1]) { $0[0].cumulativeProduct(1) } < 1e-6)
    }

    @Test func gradientCheckRefusesWrongGradients() {
        let x = normal([3])
        let wrong = gradientCheck([x]) { inputs in
            withCustomGradient(inputs) { inputs in
                ([inputs[0].square()], { [$0[0].map { $0 * inputs[0] * 2.001 }] })
            }[0]
        }
        #expect(wrong > 1e-4)
        let missing = gradientCheck([x]) { inputs in
            withCustomGradient(inputs) { inputs in ([inputs[0].square()], { _ in [nil] }) }[0]
        }
        #expect(missing == 1)
        let poisoned = gradientCheck([x]) { inputs in
            withCustomGradient(inputs) { inputs in ([inputs[0].square()], { _ in [inputs[0] * Double.nan] }) }[0]
        }
        #expect(poisoned == .infinity)
    }
}
