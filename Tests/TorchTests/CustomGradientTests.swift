import Testing
import Torch

/// Counts its own living instances, to see what a graph holds on to.
private final class Witness {
    final class Count { var alive = 0 }
    private let count: Count

    init(_ count: Count) {
        self.count = count
        count.alive += 1
    }
    deinit { count.alive -= 1 }
}

@Suite struct CustomGradientTests {
    private func swish(_ x: Tensor, watching count: Witness.Count? = nil) -> Tensor {
        withCustomGradient([x]) { inputs in
            let x = inputs[0]
            let gate = x.sigmoid()
            let witness = count.map(Witness.init)
            return (
                [x * gate],
                { gradients in
                    withExtendedLifetime(witness) {
                        [gradients[0].map { $0 * (gate + x * gate * (1 - gate)) }]
                    }
                }
            )
        }[0]
    }

    @Test(arguments: [[1], [7], [3, 5], []]) func gradientIsRight(_ shape: [Int]) {
        #expect(gradientCheck([normal(shape)]) { swish($0[0]) } < 1e-7)
        #expect(gradientCheck([normal(shape)]) { swish(swish($0[0]) * 2) } < 1e-7)
    }

    @Test func severalInputsAndOutputs() {
        func productAndSum(_ a: Tensor, _ b: Tensor) -> [Tensor] {
            withCustomGradient([a, b]) { inputs in
                let (a, b) = (inputs[0], inputs[1])
                return (
                    [a * b, a + b],
                    { gradients in
                        let product = gradients[0] ?? .zeros(like: a)
                        let sum = gradients[1] ?? .zeros(like: a)
                        return [product * b + sum, product * a + sum]
                    }
                )
            }
        }
        let (a, b) = (normal([4]), normal([4], seed: 1))
        #expect(gradientCheck([a, b]) { stack(productAndSum($0[0], $0[1])) } < 1e-7)
        // One output unused: its gradient is nil, not an error.
        #expect(gradientCheck([a, b]) { productAndSum($0[0], $0[1])[0] } < 1e-7)
        #expect(gradientCheck([a, b]) { productAndSum($0[0], $0[1])[1].exp() } < 1e-7)
    }

    @Test func wholeNumberOutputsHaveNoGradient() {
        let x = Tensor([3.0, 1.0, 2.0]).requiringGrad()
        let outputs = withCustomGradient([x]) { inputs in
            let (values, order) = inputs[0].sorted()
            return (
                [order, values],
                { gradients in
                    #expect(gradients[0] == nil)
                    return [gradients[1].map { Tensor.zeros(like: $0).scattered(0, order, $0) }]
                }
            )
        }
        #expect(!outputs[0].requiresGrad)
        outputs[1].backward(gradient: Tensor([10.0, 20.0, 30.0]))
        #expect(x.grad?.scalars() == [30.0, 10.0, 20.0])
    }

    @Test func inputsWithoutGradientStayOut() {
        let fixed = normal([3])
        let x = normal([3], seed: 1).requiringGrad()
        let y = withCustomGradient([fixed, x]) { inputs in
            ([inputs[0] * inputs[1]], { [nil, $0[0].map { $0 * inputs[0] }] })
        }[0]
        y.sum().backward()
        expectClose(x.grad ?? .zeros([0]), fixed)
        #expect(!swish(fixed).requiresGrad)
        #expect(withNoGrad { !swish(x).requiresGrad })
    }

    @Test func pullbackIsReleasedWithTheGraph() {
        let count = Witness.Count()
        let x = normal([3]).requiringGrad()
        do {
            let y = swish(x, watching: count)
            #expect(count.alive == 1)
            _ = y
        }
        #expect(count.alive == 0, "dropped without a backward pass")

        let y = swish(x, watching: count).sum()
        y.backward(keepGraph: true)
        #expect(count.alive == 1)
        y.backward()
        #expect(count.alive == 0, "a pass that does not keep the graph lets go of it")

        _ = withNoGrad { swish(x, watching: count) }
        #expect(count.alive == 0, "never recorded")
    }

    /// Outputs caught by the pullback must not own themselves through the graph.
    @Test func capturedOutputsMakeNoCycle() {
        let count = Witness.Count()
        let x = normal([3]).requiringGrad()
        do {
            let y = withCustomGradient([x]) { inputs in
                let y = inputs[0].exp()
                let witness = Witness(count)
                return ([y], { gradients in withExtendedLifetime(witness) { [gradients[0].map { $0 * y }] } })
            }[0]
            #expect(count.alive == 1)
            _ = y
        }
        #expect(count.alive == 0)
    }

    @Test func usedGraphsSaySo() {
        let x = normal([3]).requiringGrad()
        let y = swish(x)
        y.backward(gradient: y.detached())
        #expect(torchError { y.backward(gradient: y.detached()) }.message.contains("already used by backward()"))
    }

    @Test func misuseOfThePullbackIsReported() {
        let x = normal([3]).requiringGrad()
        func backward(_ pullback: @escaping ([Tensor?]) -> [Tensor?]) -> TorchError {
            torchError { withCustomGradient([x]) { ([$0[0] * 2], pullback) }[0].sum().backward() }
        }
        #expect(backward { _ in [] }.message.contains("the pullback returned 0 gradients for 1 inputs"))
        #expect(backward { [$0[0], $0[0]] }.message.contains("2 gradients for 1 inputs"))
        let shape = backward { _ in [Tensor.ones([5], dtype: .float64)] }
        #expect(shape.operation == "backward")
        #expect(shape.message.contains("[5]"))
        let inside = backward { _ in [matmul(Tensor.ones([2, 3]), Tensor.ones([2, 3]))] }
        #expect(inside.message.contains("matmul"))
        #expect(inside.message.contains("[2, 3], [2, 3]"))
        #expect(!inside.description.contains("\n"))
        #expect(isGradEnabled)
    }

    @Test func secondDerivativesAreRefused() {
        let x = normal([3]).requiringGrad()
        let error = torchError { _ = gradients(of: [swish(x).sum()], withRespectTo: [x], createGraph: true) }
        #expect(error.message.contains("cannot be differentiated again"))
    }

    @Test func errorsOfTheForwardPassAreThrown() {
        struct Refusal: Error {}
        #expect(throws: Refusal.self) { try withCustomGradient([normal([1]).requiringGrad()]) { _ in throw Refusal() } }
        #expect(isGradEnabled)
    }
}

@Suite struct CheckpointedTests {
    private let weight = normal([4, 4], seed: 3).requiringGrad()
    private let bias = normal([4], seed: 4).requiringGrad()

    private func layer(_ x: Tensor) -> Tensor { (matmul(x, weight) + bias).tanh() * x }

    @Test func gradientsEqualThePlainOnes() {
        let x = normal([5, 4]).requiringGrad()
        func run(_ body: (Tensor) -> Tensor) -> [Tensor] {
            let found = gradients(of: [body(x).square().sum()], withRespectTo: [x, weight, bias])
            #expect(found.allSatisfy { $0 != nil })
            return found.compactMap { $0 }
        }
        let plain = run { layer(layer($0)) }
        let again = run { x in
            let once = checkpointed([x], parameters: [weight, bias]) { [layer($0[0])] }[0]
            return checkpointed([once], parameters: [weight, bias]) { [layer($0[0])] }[0]
        }
        let nested = run { x in
            checkpointed([x], parameters: [weight, bias]) { outer in
                let once = checkpointed(outer, parameters: [weight, bias]) { [layer($0[0])] }
                return [layer(once[0])]
            }[0]
        }
        for (found, expected) in zip(again, plain) { #expect(found.isIdentical(to: expected)) }
        for (found, expected) in zip(nested, plain) { expectClose(found, expected) }
    }

    @Test func backwardFillsTheParameters() {
        let x = normal([5, 4])
        let (weight, bias) = (weight, bias)
        layer(x).sum().backward()
        let expected = weight.grad
        weight.grad = nil
        bias.grad = nil
        checkpointed([x], parameters: [weight, bias]) { [layer($0[0])] }[0].sum().backward()
        #expect(weight.grad.map { found in expected.map(found.isIdentical) } == true)
        #expect(bias.grad != nil)
        #expect(x.grad == nil)
    }

    @Test func frozenParametersAndUnusedOutputs() {
        let frozen = normal([4, 4], seed: 8)
        let x = normal([5, 4]).requiringGrad()
        let outputs = checkpointed([x], parameters: [frozen, bias]) { inputs in
            [matmul(inputs[0], frozen) + bias, inputs[0].detached(), inputs[0].argmax()]
        }
        outputs[0].sum().backward(keepGraph: true)
        expectClose(x.grad ?? .zeros([0]), frozen.sum(1).expanded(to: [5, 4]))
        expectClose(bias.grad ?? .zeros([0]), Tensor.full([4], 5, dtype: .float64))
        // An output that depends on nothing gives zeros, as in LibTorch an input that is not used.
        #expect(
            gradients(of: [outputs[1].sum()], withRespectTo: [x], keepGraph: true)[0]?.abs().maximum().item() ?? 0 == 0)
    }
}
