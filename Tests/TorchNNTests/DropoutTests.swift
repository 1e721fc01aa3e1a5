import Testing
import Torch
import TorchNN

@Suite struct DropoutTests {
    @Test(arguments: [0.1, 0.5, 0.9])
    func keepsTheMeanAndDropsTheGivenShare(_ probability: Double) {
        let dropout = Dropout(probability, using: RandomGenerator(seed: 3))
        let out = dropout(Tensor.ones([200, 500]))
        let dropped = (out .== 0).to(.float64).mean().item()
        #expect(abs(dropped - probability) < 0.01)
        #expect(abs(out.mean().item() - 1) < 0.05)
        let kept = out.selected(where: out .!= 0)
        expectClose(kept, .full(like: kept, 1 / (1 - probability)), tolerance: 1e-6)
    }

    @Test func drawsNothingWhenItDoesNothing() {
        let generator = RandomGenerator(seed: 4)
        let before = generator.state
        let x = Tensor.randomNormal([4, 4], using: RandomGenerator(seed: 5))
        let dropout = Dropout(0.5, using: generator)
        dropout.evaluate()
        #expect(dropout(x).isIdentical(to: x))
        #expect(Dropout(0, using: generator)(x).isIdentical(to: x))
        #expect(generator.state.isIdentical(to: before))
        dropout.train()
        #expect(!dropout(x).isIdentical(to: x))
        #expect(!generator.state.isIdentical(to: before))
    }

    @Test func isReproducedByTheGenerator() {
        let generator = RandomGenerator(seed: 6)
        let dropout = Dropout(0.3, using: generator)
        let x = Tensor.ones([50])
        let start = generator.state
        let (first, second) = (dropout(x), dropout(x))
        #expect(!first.isIdentical(to: second))
        generator.state = start
        #expect(dropout(x).isIdentical(to: first))
        #expect(dropout(x).isIdentical(to: second))
    }

    @Test func gradientsPassWhereTheInputDid() {
        let x = Tensor.ones([100]).requiringGrad()
        let out = Dropout(0.4, using: RandomGenerator(seed: 7))(x)
        out.sum().backward()
        #expect(x.grad?.isIdentical(to: out.detached()) == true)
    }
}
