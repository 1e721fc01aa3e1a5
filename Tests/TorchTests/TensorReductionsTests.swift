import Foundation
import Testing
import Torch

@Suite struct TensorReductionsTests {
    private let x = normal([3, 4, 5])

    @Test func overAllAndOverSome() {
        let values = x.scalars(as: Double.self)
        #expect((x.sum().item() - values.reduce(0, +)).magnitude < 1e-12)
        #expect(x.maximum().item() == values.max())
        #expect(x.minimum().item() == values.min())
        #expect(x.sum(1).shape == [3, 5])
        #expect(x.mean(0, -1).shape == [4])
        #expect(x.sum(0, 2, keepDim: true).shape == [1, 4, 1])
        expectClose(x.sum(0, 2), x.sum(2).sum(0))
        expectClose(x.mean(1), x.sum(1) / 4)
        expectClose(x.variance(1), (x - x.mean(1, keepDim: true)).square().sum(1) / 3)
        expectClose(x.variance(1, correction: 0), (x - x.mean(1, keepDim: true)).square().mean(1))
        expectClose(x.norm(2), x.square().sum(2).sqrt())
        expectClose(x.norm(order: 1), x.abs().sum())
        expectClose(x.product(0), x[0] * x[1] * x[2])
        #expect(Tensor([2, 3]).sum().dtype == .int64)
        #expect(Tensor([true, true]).sum().integerItem() == 2)
    }

    @Test func logSumExpIsStable() {
        expectClose(x.logSumExp(2), x.exp().sum(2).log())
        expectClose((x + 5000).logSumExp(2), x.logSumExp(2) + 5000)
        expectClose((x - 5000).logSumExp(2), x.logSumExp(2) - 5000)
        #expect(Tensor([-Double.infinity, -.infinity]).logSumExp().item() == -.infinity)
    }

    @Test func cumulativeFormsFollowTheirSums() {
        var sum = Tensor.zeros([3, 5], dtype: .float64)
        var product = Tensor.ones([3, 5], dtype: .float64)
        for position in 0..<4 {
            sum += x[.all, position]
            product *= x[.all, position]
            expectClose(x.cumulativeSum(1)[.all, position], sum)
            expectClose(x.cumulativeProduct(1)[.all, position], product)
            expectClose(x.cumulativeLogSumExp(1)[.all, position], x[.all, ...position].logSumExp(1))
            expectClose(x.cumulativeMaximum(1)[.all, position], x[.all, ...position].maximum(1))
        }
    }

    @Test func allAndAny() {
        #expect(Tensor([true, false]).any().scalars() == [true])
        #expect(Tensor([true, false]).all().scalars() == [false])
        #expect(Tensor([[0, 1], [0, 0]].flatMap { $0 }, shape: [2, 2]).any(1).scalars() == [true, false])
    }

    @Test func safeRootHasNoInfiniteGradient() {
        let zero = Tensor.zeros([2], dtype: .float64).requiringGrad()
        zero.safeRoot().sum().backward()
        #expect(zero.grad?.scalars() == [0.0, 0.0])
        let rows = Tensor([3.0, 4.0, 0.0, 0.0], shape: [2, 2]).requiringGrad()
        let norm = rows.safeNorm(1)
        #expect(norm.scalars() == [5.0, 0.0])
        norm.sum().backward()
        #expect(rows.grad?.isFinite().all().scalars() == [true])
    }

    @Test func emptyAndWrongDimensions() {
        #expect(Tensor.zeros([0]).sum().item() == 0)
        #expect(torchError { _ = Tensor.zeros([0]).maximum() }.operation == "amax")
        #expect(torchError { _ = x.sum(3) }.kind == .indexOutOfRange)
        #expect(torchError { _ = x.sum(0, 0) }.operation == "sum")
    }
}
