import Testing
import Torch

@Suite struct TensorIndexingTests {
    private let x = Tensor.arange(0..<24).reshaped(2, 3, 4)

    @Test func positionsRangesAndNewDimensions() {
        #expect(x[1].shape == [3, 4])
        #expect(x[1, 2, 3].integerItem() == 23)
        #expect(x[-1, -1, -1].integerItem() == 23)
        #expect(x[0, 1..<3, 0].scalars() == [4, 8])
        #expect(x[0, 1...2, 0].scalars() == [4, 8])
        #expect(x[0, 0, 2...].scalars() == [2, 3])
        #expect(x[0, 0, ..<2].scalars() == [0, 1])
        #expect(x[0, 0, ...2].scalars() == [0, 1, 2])
        #expect(x[.ellipsis, 3].shape == [2, 3])
        #expect(x[1, .ellipsis, 3].scalars() == [15, 19, 23])
        #expect(x[.all, 0, .newAxis, 1...].shape == [2, 1, 3])
        #expect(x[.newAxis, .ellipsis, .newAxis].shape == [1, 2, 3, 4, 1])
        #expect(x[1..<1].shape == [0, 3, 4])
    }

    @Test func negativeRangesCountFromTheEnd() {
        #expect(x[0, 0, (-2)...].scalars() == [2, 3])
        #expect(x[0, 0, ..<(-1)].scalars() == [0, 1, 2])
        #expect(x[0, 0, (-3)..<(-1)].scalars() == [1, 2])
        #expect(x[0, 0, ...(-1)].scalars() == [0, 1, 2, 3])
        #expect(x[0, 0, (-2)...(-1)].scalars() == [2, 3])
    }

    @Test func viewsShareAndVectorsCopy() {
        #expect(x[0].sharesStorage(with: x))
        #expect(x[.all, 1..<2].sharesStorage(with: x))
        let picked = x[.all, Tensor([2, 0, 2])]
        #expect(picked.shape == [2, 3, 4])
        #expect(!picked.sharesStorage(with: x))
        #expect(picked[1, .all, 0].scalars() == [20, 12, 20])
    }

    @Test func misuseIsReported() {
        #expect(torchError { _ = x[2] }.kind == .indexOutOfRange)
        #expect(torchError { _ = x[-3] }.kind == .indexOutOfRange)
        #expect(torchError { _ = x[0, 0, 0, 0] }.message.contains("[2, 3, 4]"))
        #expect(torchError { _ = x[.all, 1..<4] }.operation == "subscript")
        #expect(torchError { _ = x[.all, 5...] }.operation == "subscript")
        #expect(torchError { _ = x[.ellipsis, .ellipsis] }.message.contains("ellipses"))
        #expect(torchError { _ = x[Tensor([7])] }.operation == "index_select")
        #expect(torchError { _ = x[Tensor([true, false])] }.operation == "index_select")
        #expect(torchError { _ = x.sliced(0, 0..<3) }.message.contains("size 2"))
        #expect(torchError { _ = x.sliced(0, 0..<1, step: 0) }.operation == "slice")
        #expect(torchError { _ = x.size(3) }.kind == .indexOutOfRange)
    }

    @Test(arguments: 0..<5) func scatterUndoesGather(_ seed: Int) {
        let values = normal([3, 7], seed: seed)
        let order = normal([3, 7], seed: seed + 50).argsort(1)
        let restored = Tensor.zeros([3, 7], dtype: .float64).scattered(1, order, values.gathered(1, order))
        #expect(restored.isIdentical(to: values))
        let twice = values.scattered(1, order, values.gathered(1, order), adding: true)
        expectClose(twice, values * 2)
    }

    @Test func indexAddSumsWhatMeets() {
        let source = normal([5, 2])
        let positions = Tensor([0, 2, 0, 1, 2])
        let expected = matmul(positions.oneHot(3).to(.float64).transposed(), source)
        expectClose(Tensor.zeros([3, 2], dtype: .float64).indexAdded(0, positions, source), expected)
    }

    @Test func masksAndNonzero() {
        let mask = x.remainder(dividingBy: 5) .== 0
        #expect(x.selected(where: mask).scalars() == [0, 5, 10, 15, 20])
        #expect(mask.nonzero().shape == [5, 3])
        #expect(mask.nonzero()[1].scalars() == [0, 1, 1])
    }

    @Test func topKAgreesWithSorting() {
        let values = normal([4, 9])
        let (top, where_) = values.topK(3)
        let (sorted, _) = values.sorted(descending: true)
        #expect(top.isIdentical(to: sorted[.all, ..<3].contiguous()))
        #expect(values.gathered(1, where_).isIdentical(to: top))
        let (least, _) = values.topK(2, largest: false)
        #expect(least.isIdentical(to: values.sorted().values[.all, ..<2].contiguous()))
        #expect(values.argmax().scalars() == where_[.all, 0].scalars(as: Int.self))
        #expect(values.argmin(keepDim: true).shape == [4, 1])
        #expect(torchError { _ = values.topK(10) }.operation == "topk")
        #expect(Tensor([1, 0, 1, 0]).argsort().scalars() == [1, 3, 0, 2])
    }
}
