import Foundation
import Testing
import Torch

@Suite struct TensorNeuralTests {
    @Test(arguments: 0..<5) func einsumIsTheSumItNames(_ seed: Int) {
        var numbers = SeededNumbers(seed)
        let sizes = (0..<5).map { _ in Int.random(in: 1...5, using: &numbers) }
        let q = normal([sizes[0], sizes[1], sizes[2], sizes[4]], seed: seed)
        let k = normal([sizes[0], sizes[1], sizes[3], sizes[4]], seed: seed + 9)
        let scores = einsum("bhnd,bhmd->bhnm", q, k)
        expectClose(scores, matmul(q, k.transposed()))
        expectClose(scores, (q.unsqueezed(3) * k.unsqueezed(2)).sum(4))
        #expect(torchError { _ = einsum("ij,jk->ik", q, k) }.operation == "einsum")
        #expect(torchError { _ = einsum("not an equation", q) }.operation == "einsum")
    }

    @Test(arguments: 1...20) func fourierTransformsAreInverse(_ count: Int) {
        let x = normal([3, count], seed: count)
        let spectrum = x.rfft()
        #expect(spectrum.shape == [3, count / 2 + 1])
        #expect(spectrum.dtype == .complex128)
        expectClose(spectrum.irfft(count: count), x)
        expectClose(x.rfft(orthonormal: true).irfft(count: count, orthonormal: true), x)
        expectClose(x.transposed().rfft(0).irfft(0, count: count), x.transposed())
        // The definition: X_f = Σ x_t exp(-2πi f t / n).
        let angles =
            Tensor.arange(0..<spectrum.size(1), dtype: .float64).unsqueezed(1)
            * Tensor.arange(0..<count, dtype: .float64) * (2 * Double.pi / Double(count))
        expectClose(spectrum.complexAsReal()[.ellipsis, 0], matmul(x, angles.cos().transposed()), 1e-11)
        expectClose(spectrum.complexAsReal().realAsComplex().irfft(count: count), x)
    }

    @Test func fourierRefusesNoPoints() {
        #expect(torchError { _ = normal([4]).rfft(count: 0) }.operation == "rfft")
        #expect(torchError { _ = normal([4]).irfft(count: -3) }.operation == "irfft")
    }

    @Test func softmaxIsStable() {
        let x = normal([4, 6])
        expectClose(x.softmax(), x.exp() / x.exp().sum(1, keepDim: true))
        expectClose((x + 3000).softmax(), x.softmax(), 1e-10)
        expectClose(softmax(x, dim: 0).sum(0), Tensor.ones([6], dtype: .float64))
        expectClose((x * 1e4).logSoftmax().logSumExp(1), Tensor.zeros([4], dtype: .float64), 1e-9)
        let masked = x.masked(
            where: Tensor.ones([6, 6]).upperTriangle(diagonal: 1)[..<4] .!= 0, with: -Double.infinity)
        #expect(masked.softmax()[0].scalars() == [1.0, 0, 0, 0, 0, 0])
        #expect(torchError { _ = x.softmax(2) }.kind == .indexOutOfRange)
    }

    @Test func normsFollowTheirFormulas() {
        let x = normal([2, 3, 8])
        let weight = normal([8], seed: 1)
        let bias = normal([8], seed: 2)
        let centered = x - x.mean(2, keepDim: true)
        let deviation = (centered.square().mean(2, keepDim: true) + 1e-5).sqrt()
        expectClose(layerNorm(x, shape: [8], weight: weight, bias: bias), centered / deviation * weight + bias)
        let root = (x.square().mean(2, keepDim: true) + 1e-6).sqrt()
        expectClose(rmsNorm(x, shape: [8], weight: weight), x / root * weight)
    }

    @Test func convolutionIsASumOverTaps() {
        let x = normal([2, 3, 10])
        let weight = normal([4, 3, 3], seed: 1)
        let bias = normal([4], seed: 2)
        let windows = x.padded(2, before: 2).unfolded(2, size: 3)  // [2, 3, 10, 3]
        let expected = einsum("bint,oit->bon", windows, weight) + bias.unsqueezed(1)
        expectClose(conv1d(x.padded(2, before: 2), weight, bias), expected)
    }

    @Test func embeddingAndCrossEntropy() {
        let table = normal([5, 3]).requiringGrad()
        let indices = Tensor([1, 0, 4, 1], shape: [2, 2])
        let rows = embedding(table, indices, paddingIndex: 0)
        #expect(rows.shape == [2, 2, 3])
        rows.sum().backward()
        #expect(table.grad?[.all, 0].scalars() == [0.0, 2, 0, 0, 1])
        #expect(torchError { _ = embedding(table, Tensor([5])) }.kind != .internal)

        let logits = normal([4, 5])
        let targets = Tensor([0, -100, 3, 4])
        let losses = -logits.logSoftmax().gathered(1, targets.clamped(min: 0).unsqueezed(1)).squeezed(1)
        let expected = (losses[0] + losses[2] + losses[3]) / 3
        expectClose(crossEntropy(logits, targets), expected)
        #expect(crossEntropy(logits, targets, reduction: .none)[1].item() == 0)
    }

    @Test(arguments: [true, false]) func attentionKernelAgreesWithTheFormula(_ causal: Bool) {
        let (q, k, v) = (normal([2, 3, 7, 4]), normal([2, 3, 7, 4], seed: 1), normal([2, 3, 7, 5], seed: 2))
        var scores = matmul(q, k.transposed()) * 0.3
        if causal {
            scores = scores.masked(where: Tensor.ones([7, 7]).upperTriangle(diagonal: 1) .!= 0, with: -Double.infinity)
        }
        expectClose(scaledDotProductAttention(q, k, v, causal: causal, scale: 0.3), matmul(scores.softmax(), v))
    }

    @Test func factorsOfQR() {
        let x = normal([5, 3])
        let (q, r) = x.qr()
        expectClose(matmul(q, r), x)
        expectClose(matmul(q.transposed(), q), Tensor.eye(3, dtype: .float64))
    }
}
