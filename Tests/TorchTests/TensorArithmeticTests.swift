import Foundation
import Testing
import Torch

@Suite struct TensorArithmeticTests {
    private static let floats = DType.allCases.filter(\.isFloatingPoint)

    @Test(arguments: floats) func numbersKeepTheTensorsType(_ dtype: DType) {
        let x = Tensor.ones([3], dtype: dtype)
        for result in [x + 1, x - 0.5, x * 2.5, x / 3, 1 + x, 2 - x, 0.5 * x, 3 / x, x.power(2), pow(2, x), -x] {
            #expect(result.dtype == dtype)
        }
    }

    @Test func wholeNumbersStayWholeWhereTheyCan() {
        let x = Tensor([5, -7, 2])
        #expect((x + 1).scalars() == [6, -6, 3])
        #expect((10 - x).scalars() == [5, 17, 8])
        #expect(x.floorDivided(by: 2).scalars() == [2, -4, 1])
        #expect(x.remainder(dividingBy: 3).scalars() == [2, 2, 2])
        #expect(x.clamped(min: -1, max: 3).dtype == .int64)
        #expect(x.clamped(min: -1, max: 3).scalars() == [3, -1, 2])
        #expect(x.clamped(max: 2.5).dtype == .float32)
        #expect((x / 2).dtype == .float32)
        #expect((x + 0.5).scalars(as: Float.self) == [5.5, -6.5, 2.5])
        // 2^53 + 1 has no Double.
        #expect((Tensor([9_007_199_254_740_992]) + 1).scalars() == [9_007_199_254_740_993])
    }

    @Test(arguments: 0..<30) func broadcastsLikeTheRule(_ seed: Int) {
        var numbers = SeededNumbers(seed)
        let full = (0..<Int.random(in: 1...4, using: &numbers)).map { _ in Int.random(in: 1...4, using: &numbers) }
        func thinned() -> [Int] {
            Array(
                full.map { Bool.random(using: &numbers) ? $0 : 1 }[Int.random(in: 0..<full.count, using: &numbers)...])
        }
        let (left, right) = (thinned(), thinned())
        let a = normal(left, seed: seed)
        let b = normal(right, seed: seed + 100)
        let shape = (0..<max(left.count, right.count)).reversed().map { back in
            max(
                back < left.count ? left[left.count - 1 - back] : 1,
                back < right.count ? right[right.count - 1 - back] : 1)
        }
        func element(_ values: [Double], _ sizes: [Int], _ index: [Int]) -> Double {
            var offset = 0
            for (size, position) in zip(sizes, index.suffix(sizes.count)) {
                offset = offset * size + min(position, size - 1)
            }
            return values[offset]
        }
        let (x, y) = (a.scalars(as: Double.self), b.scalars(as: Double.self))
        let expected = (0..<shape.reduce(1, *)).map { flat in
            var rest = flat
            let index = Array(
                shape.reversed().map { size in
                    defer { rest /= size }
                    return rest % size
                }.reversed())
            return element(x, left, index) - element(y, right, index)
        }
        let found = a - b
        #expect(found.shape == shape)
        #expect(found.scalars() == expected)
        #expect((a * b).isIdentical(to: b * a))
    }

    @Test func compoundAssignmentLeavesOtherCopiesAlone() {
        let original = Tensor([1.0, 2.0])
        var copy = original
        copy += Tensor(1.0)
        copy *= Tensor(10.0)
        copy -= original
        copy /= original
        #expect(copy.scalars() == [19.0, 14.0])
        #expect(original.scalars() == [1.0, 2.0])
    }

    @Test func comparesAndCombines() {
        let x = Tensor([1.0, 2.0, 3.0])
        #expect((x .> 2).scalars() == [false, false, true])
        #expect((x .>= 2).scalars() == [false, true, true])
        #expect((x .== Tensor([1.0, 0.0, 3.0])).scalars() == [true, false, true])
        #expect((x .!= 2).scalars() == [true, false, true])
        #expect((x .> 1 .&& x .< 3).scalars() == [false, true, false])
        #expect((x .<= 1 .|| x .>= 3).scalars() == [true, false, true])
        #expect((.!(x .> 1)).scalars() == [true, false, false])
        #expect(select(x .> 1, x, -x).scalars() == [-1.0, 2.0, 3.0])
        #expect(x.masked(where: x .> 1, with: -Double.infinity).scalars() == [1.0, -Double.infinity, -Double.infinity])
        #expect(minimum(x, Tensor(2.0)).scalars() == [1.0, 2.0, 2.0])
        #expect(maximum(x, Tensor(2.0)).scalars() == [2.0, 2.0, 3.0])
        #expect(interpolate(x, x + 10, weight: 0.5).scalars() == [6.0, 7.0, 8.0])
    }

    @Test func functionsFollowTheirFormulas() {
        let values: [Double] = [-3.5, -1.5, -0.25, 0.25, 0.5, 2.5]
        let x = Tensor(values)
        func check(_ found: Tensor, _ expected: (Double) -> Double, sourceLocation: SourceLocation = #_sourceLocation) {
            expectClose(found, Tensor(values.map(expected)), 1e-12, sourceLocation: sourceLocation)
        }
        check(exp(x)) { Foundation.exp($0) }
        check(x.expm1()) { Foundation.expm1($0) }
        check(x.abs().log()) { Foundation.log(Swift.abs($0)) }
        check(x.abs().rsqrt()) { 1 / Swift.abs($0).squareRoot() }
        check(x.square()) { $0 * $0 }
        check(tanh(x)) { Foundation.tanh($0) }
        check(sigmoid(x)) { 1 / (1 + Foundation.exp(-$0)) }
        check(relu(x)) { max($0, 0) }
        check(x.silu()) { $0 / (1 + Foundation.exp(-$0)) }
        check(x.elu()) { $0 > 0 ? $0 : Foundation.expm1($0) }
        check(x.erfc()) { Foundation.erfc($0) }
        check(x.gelu()) { $0 * 0.5 * (1 + Foundation.erf($0 / 2.0.squareRoot())) }
        check(x.softplus()) { Foundation.log1p(Foundation.exp($0)) }
        check(x.leakyRelu(slope: 0.1)) { $0 > 0 ? $0 : 0.1 * $0 }
        check(x.round()) { $0.rounded(.toNearestOrEven) }
        check(x.trunc()) { $0.rounded(.towardZero) }
        check(x.floor()) { $0.rounded(.down) }
        check(x.sign()) { $0 < 0 ? -1 : 1 }
        let odd = Tensor([Double.nan, .infinity, 1])
        #expect(odd.isNaN().scalars() == [true, false, false])
        #expect(odd.isInfinite().scalars() == [false, true, false])
        #expect(odd.isFinite().scalars() == [false, false, true])
    }

    @Test func relativeErrorSeesNaN() {
        #expect(!(Tensor([Double.nan]).relativeError(to: Tensor([1.0])) < 1))
        #expect(Tensor([1.0, 2.2]).relativeError(to: Tensor([1.0, 2.0])).isApproximately(0.1))
        #expect(!Tensor([1.0]).isIdentical(to: Tensor([Float(1)])))
    }
}

extension Double {
    fileprivate func isApproximately(_ other: Double) -> Bool { (self - other).magnitude < 1e-12 }
}
