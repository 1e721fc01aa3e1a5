import Testing
import Torch
import TorchNN

@Suite struct AxialPositionalEmbeddingTests {
    @Test func positionsAreRowMajor() {
        for (shape, dims) in [([4, 5], [6, 4]), ([7], [3]), ([2, 3, 4], [1, 2, 3]), ([1, 9], [2, 2])] {
            let positions = AxialPositionalEmbedding(shape: shape, dims: dims, using: RandomGenerator(seed: 1))
            #expect(positions.axes.map(\.value.shape) == zip(shape, dims).map { [$0, $1] })
            let count = shape.reduce(1, *)
            #expect(positions.maximumLength == count)
            let all = positions(length: count)
            #expect(all.shape == [count, dims.reduce(0, +)])
            for n in 0..<count {
                var rest = n
                let parts = zip(shape, positions.axes).reversed().map { size, axis in
                    defer { rest /= size }
                    return axis.value.selected(0, rest % size)
                }
                #expect(all.selected(0, n).isIdentical(to: concatenate(Array(parts.reversed()))))
            }
            let some = positions(length: max(0, count - 3), offset: min(2, count))
            #expect(some.isIdentical(to: all.sliced(0, min(2, count)..<min(2, count) + max(0, count - 3))))
        }
    }

    @Test func gradientsReachTheTables() throws {
        let positions = AxialPositionalEmbedding(shape: [3, 2], dims: [1, 1], using: RandomGenerator(seed: 2))
        positions(length: 5).sum().backward()
        #expect(try #require(positions.axes[0].grad).scalars(as: Double.self) == [2, 2, 1])
        #expect(try #require(positions.axes[1].grad).scalars(as: Double.self) == [3, 2])
        #expect(positions.namedParameters().map(\.name) == ["axes.0", "axes.1"])
    }

    @Test func whatDoesNotFitIsRefused() {
        let positions = AxialPositionalEmbedding(shape: [3, 2], dims: [1, 1], using: RandomGenerator(seed: 2))
        for (length, offset) in [(7, 0), (3, 4), (-1, 0), (1, -1)] {
            let error = #expect(throws: TorchError.self) {
                try withTorchErrors { positions(length: length, offset: offset) }
            }
            #expect(error?.message.contains("do not lie within the 6 of shape [3, 2]") == true)
        }
        for (shape, dims) in [([], []), ([3], [1, 1]), ([0, 2], [1, 1]), ([3, 2], [0, 2])] as [([Int], [Int])] {
            #expect(throws: TorchError.self) {
                try withTorchErrors {
                    _ = AxialPositionalEmbedding(shape: shape, dims: dims, using: RandomGenerator(seed: 1))
                }
            }
        }
    }
}
