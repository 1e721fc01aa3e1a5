import Testing
import Torch
import TorchNN

@Suite struct InitializerTests {
    @Test func layersStartAsPyTorchsDo() throws {
        let golden = try Golden()
        let generator = RandomGenerator(seed: 7)
        let linear = Linear(5, 3, using: generator)
        let conv = Conv1d(4, 2, taps: 3, groups: 2, using: generator)
        let embedding = Embedding(4, 5, using: generator)
        var drawn = [
            ("linear.weight", linear.weight.value), ("linear.bias", try #require(linear.bias?.value)),
            ("conv.weight", conv.weight.value), ("conv.bias", try #require(conv.bias?.value)),
            ("embedding.weight", embedding.weight.value),
        ]
        let initializers: [(String, Initializer)] = [
            ("xavierUniform", .xavierUniform()), ("xavierNormal", .xavierNormal()),
            ("kaimingUniform", .kaimingUniform()), ("orthogonal", .orthogonal()),
        ]
        for (name, initializer) in initializers {
            let tensor = Tensor.zeros([4, 3, 2])
            initializer.apply(to: tensor, using: generator)
            drawn.append((name, tensor))
        }
        for (name, tensor) in drawn {
            expectClose(tensor, try golden.tensor("drawn.\(name)").to(.float32), tolerance: 1e-6, name)
        }
    }

    @Test(arguments: [[6, 6], [3, 8], [8, 3], [4, 3, 2]])
    func orthogonalRowsOrColumns(_ shape: [Int]) {
        let parameter = Parameter(.zeros(shape, dtype: .float64))
        Initializer.orthogonal(gain: 2).apply(to: parameter, using: RandomGenerator(seed: 8))
        let matrix = parameter.value.detached().flattened(1)
        let (rows, columns) = (matrix.size(0), matrix.size(1))
        let product = rows <= columns ? matmul(matrix, matrix.transposed()) : matmul(matrix.transposed(), matrix)
        expectClose(product, Tensor.eye(min(rows, columns), dtype: .float64) * 4)
    }

    @Test func statisticsAreAsNamed() {
        let generator = RandomGenerator(seed: 9)
        func drawn(_ initializer: Initializer) -> Tensor {
            let tensor = Tensor.full([300, 400], 7.0)
            initializer.apply(to: tensor, using: generator)
            return tensor
        }
        #expect(drawn(.zeros).abs().maximum().item() == 0)
        #expect((drawn(.ones) - 1).abs().maximum().item() == 0)
        let deviations: [(Initializer, Double)] = [
            (.normal(deviation: 0.02), 0.02), (.uniform(bound: 0.5), 0.5 / 3.0.squareRoot()),
            (.xavierUniform(gain: 2), 2 * (2.0 / 700).squareRoot()), (.xavierNormal(), (2.0 / 700).squareRoot()),
            (.kaimingUniform(), (2.0 / 400).squareRoot()),
        ]
        for (initializer, expected) in deviations {
            let tensor = drawn(initializer)
            #expect(abs(tensor.variance().item().squareRoot() / expected - 1) < 0.01, "\(initializer)")
            #expect(abs(tensor.mean().item()) < 0.02 * expected, "\(initializer)")
        }
    }

    @Test func vectorsHaveNoFans() {
        let vector = Tensor.zeros([4])
        let generator = RandomGenerator(seed: 0)
        for initializer in [Initializer.xavierUniform(), .xavierNormal(), .kaimingUniform(), .orthogonal()] {
            let message = misuse { initializer.apply(to: vector, using: generator) }
            #expect(message == "Initializer: expected a tensor of at least two dimensions, none of them empty, got [4]")
        }
    }
}
