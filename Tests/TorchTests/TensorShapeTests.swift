import Testing
import Torch

@Suite struct TensorShapeTests {
    private let x = Tensor.arange(0..<24).reshaped(2, 3, 4)

    @Test func rearrangements() {
        #expect(x.reshaped(4, -1).shape == [4, 6])
        #expect(x.reshaped(to: [] + [24]).scalars() == Array(0..<24))
        #expect(x.permuted(2, 0, 1).shape == [4, 2, 3])
        #expect(x.permuted(2, 0, 1)[3, 1, 2].integerItem() == 23)
        #expect(x.transposed().shape == [2, 4, 3])
        #expect(x.transposed(0, 2).isContiguous == false)
        #expect(x.transposed(0, 2).contiguous().isContiguous)
        #expect(x.transposed(0, 2).transposed(0, 2).isIdentical(to: x))
        #expect(x.flattened(1).shape == [2, 12])
        #expect(x.unsqueezed(1).squeezed(1).shape == [2, 3, 4])
        #expect(x[0..<1].expanded(to: [5, -1, 4]).shape == [5, 3, 4])
        #expect(x.flipped(0, 2)[0, 0].scalars() == [15, 14, 13, 12])
        #expect(x.tiled(2, 1, 1).shape == [4, 3, 4])
        #expect(Tensor([1, 2]).repeated(2, dim: 0).scalars() == [1, 1, 2, 2])
        #expect(Tensor([1, 2, 3]).rolled(0, by: 1).scalars() == [3, 1, 2])
        #expect(Tensor([1, 2, 3, 4]).unfolded(0, size: 2, step: 1)[1].scalars() == [2, 3])
        #expect(Tensor.ones([3, 3]).lowerTriangle().sum().item() == 6)
        #expect(Tensor.ones([3, 3]).upperTriangle(diagonal: 1).sum().item() == 3)
        #expect(x[0].diagonal().scalars() == [0, 5, 10])
    }

    @Test func paddingGoesWhereItIsTold() {
        let padded = x.padded(1, before: 1, after: 2, value: 9)
        #expect(padded.shape == [2, 6, 4])
        #expect(padded[.all, 1..<4].contiguous().isIdentical(to: x))
        #expect(padded[0, .all, 0].scalars() == [9, 0, 4, 8, 9, 9])
        #expect(x.padded(-1, after: 1).shape == [2, 3, 5])
        #expect(x.padded(0).isIdentical(to: x))
        #expect(torchError { _ = x.padded(3, before: 1) }.operation == "pad")
        #expect(torchError { _ = x.padded(-9, before: 1) }.operation == "pad")
    }

    @Test(arguments: 0..<3) func splittingAndJoiningAreInverse(_ dim: Int) {
        let pieces = x.split(into: x.size(dim), dim: dim)
        #expect(concatenate(pieces, dim: dim).isIdentical(to: x))
        #expect(stack(pieces.map { $0.squeezed(dim) }, dim: dim).isIdentical(to: x))
    }

    @Test func misuseNamesTheShapes() {
        #expect(torchError { _ = x.reshaped(5, 5) }.description.contains("[2, 3, 4]"))
        #expect(torchError { _ = x.split(into: 5, dim: 2) }.description.contains("size 4"))
        #expect(torchError { _ = x.split(into: -1, dim: 2) }.operation == "split")
        #expect(torchError { _ = concatenate([]) }.operation == "cat")
        #expect(torchError { _ = concatenate([x, x[0]]) }.operation == "cat")
        #expect(torchError { _ = Tensor([1, 2, 3], shape: [2, 2]) }.operation == "tensor")
        #expect(torchError { _ = Tensor.zeros([-1]) }.operation == "full")
        #expect(torchError { _ = Tensor.zeros([1 << 40, 1 << 40]) }.operation == "full")
    }

    @Test(arguments: DType.allCases) func castsAndSizes(_ dtype: DType) {
        let source = Tensor([0.0, 1.0, 2.0])
        let cast = source.to(dtype)
        #expect(cast.dtype == dtype)
        cast.withBytes { #expect($0.count == 3 * dtype.size) }
        if dtype != .complex64 && dtype != .complex128 {
            #expect(cast.to(.float64).scalars() == (dtype == .bool ? [0.0, 1.0, 1.0] : [0.0, 1.0, 2.0]))
        }
        #expect(Tensor.zeros(like: cast).dtype == dtype)
    }

    @Test func castsRound() {
        #expect(Tensor([1.0 / 3]).to(.bfloat16).to(.float64).item() == 0.333984375)
        #expect(Tensor([-1.7, 1.7]).to(.int64).scalars() == [-1, 1])
        #expect(Tensor([0, 3]).scalars(as: Bool.self) == [false, true])
        #expect(Tensor([true, false]).scalars(as: Float.self) == [1, 0])
        #expect(Tensor([70000.0]).to(.float16).item() == .infinity)
        #expect(Tensor.arange(from: 0.0, to: 1.0, step: 0.25).scalars() == [0.0, 0.25, 0.5, 0.75])
        #expect(Tensor.eye(2).scalars() == [Float(1), 0, 0, 1])
        let x = Tensor([1.0])
        let copy = x.cloned()
        copy.fillInPlace(5)
        #expect(x.item() == 1)
    }

    @Test func prints() {
        #expect("\(Tensor(1.5))" == "Tensor([], float64) 1.5000")
        #expect("\(Tensor([1, -20]))" == "Tensor([2], int64)\n[  1, -20]")
        #expect("\(Tensor([true, false]))" == "Tensor([2], bool)\n[ true, false]")
        #expect("\(Tensor.zeros([2, 0]))" == "Tensor([2, 0], float32)")
        #expect(
            "\(Tensor([1.0, 2.0, 3.0, 4.0], shape: [2, 2]).requiringGrad())"
                == "Tensor([2, 2], float64, requiresGrad)\n[[1.0000, 2.0000],\n [3.0000, 4.0000]]")
        #expect("\(Tensor([1e-9, 1e9]))".contains("1.0000e-09, 1.0000e+09"))
        #expect("\(Tensor([Double.nan, -.infinity]))".contains("[ nan, -inf]"))
        #expect("\(Tensor([Int.max]))".contains("9223372036854775807"))
        #expect(
            "\(Tensor.arange(0..<100))".contains("[ 0,  1,  2,  3,  4,  5, …, 94, 95, 96, 97, 98, 99]"))
        #expect("\(Tensor.zeros([2, 2, 2]))".contains("]],\n\n [["))
        #expect("\(Tensor([1.0, 2.0]).rfft())".contains("complex128"))
        #expect("\(Tensor.zeros([50, 50]))".split(separator: "\n").count == 14)
    }
}
