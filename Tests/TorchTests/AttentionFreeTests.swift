import Testing
import Torch

@Suite struct AttentionFreeTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var length: Int
        var channels = 5
        var heads = 2
        var isCausal = true
        /// Of a bias of positions, or of heads; 0 for none.
        var taps = 0
        var isOfHeads = false
        var hasSharedKey = false
        var isGated = true
        var isMasked = false
        /// Of keys and biases: beyond some tens, weights are summed pair by pair.
        var size = 1.0
        var testDescription: String {
            "N \(length), D \(channels), H \(heads), \(isCausal ? "causal" : "bidirectional"), taps \(taps)"
                + "\(isOfHeads ? " of heads" : "")\(hasSharedKey ? ", shared key" : "")"
                + "\(isMasked ? ", masked" : ""), size \(size)"
        }

        /// Numbers that float32 has too: large ones would differ by more than their weights may.
        func inputs(_ dtype: DType = .float64) -> [Tensor] {
            let generator = RandomGenerator(seed: UInt64(length + taps))
            func drawn(_ shape: [Int], _ scale: Double) -> Tensor {
                (Tensor.randomNormal(shape, using: generator) * scale).to(dtype)
            }
            var inputs = [
                drawn([2, heads, length, hasSharedKey ? 1 : channels], size), drawn([2, heads, length, channels], 1),
            ]
            if taps > 0 { inputs.append(drawn([isOfHeads ? heads : length, taps], size / 2)) }
            if isGated { inputs.append(drawn([2, heads, length, channels], 1)) }
            if isMasked { inputs.append(Tensor.random(in: 0..<4, [2, length], using: generator) .> 0) }
            return inputs
        }

        func callAsFunction(_ x: [Tensor]) -> [Tensor] {
            var rest = x.dropFirst(2)
            let w = taps > 0 ? rest.removeFirst() : nil
            let q = isGated ? rest.removeFirst() : nil
            let bias = w.map { isOfHeads ? AttentionFreeBias.heads($0) : .positions($0) } ?? .zero
            return [attentionFree(q, x[0], x[1], paddingMask: rest.first, bias: bias, isCausal: isCausal)]
        }
    }

    static let cases: [Case] = [true, false].flatMap { causal -> [Case] in
        let odd = causal ? 0 : 1
        return [
            Case(length: 1, isCausal: causal),
            Case(length: 70, channels: 64, heads: 1, isCausal: causal, isGated: false, isMasked: true),
            Case(length: 300, channels: 7, heads: 1, isCausal: causal, size: 300),
            Case(length: 99, channels: 70, isCausal: causal, size: 30),
            Case(length: 1100, channels: 3, heads: 5, isCausal: causal),
            Case(length: 130, channels: 128, heads: 34, isCausal: causal),  // over 4 MiB: written around the caches
            Case(length: 1, isCausal: causal, taps: 7),
            Case(length: 200, channels: 16, isCausal: causal, taps: 12 + odd, isMasked: true),
            Case(length: 410, channels: 3, heads: 5, isCausal: causal, taps: 40 + odd),
            Case(length: 230, channels: 70, heads: 1, isCausal: causal, taps: 1, isGated: false),
            Case(length: 420, channels: 4, isCausal: causal, taps: 200 + odd, isMasked: true),
            Case(length: 390, channels: 9, isCausal: causal, taps: 8 + odd, isMasked: true, size: 100),
            Case(length: 250, channels: 20, heads: 3, isCausal: causal, taps: 30 + odd, isOfHeads: true),
            Case(
                length: 203, channels: 70, isCausal: causal, taps: 6 + odd, isOfHeads: true, hasSharedKey: true,
                isMasked: true),
            Case(
                length: 400, channels: 5, isCausal: causal, taps: 10 + odd, isOfHeads: true, hasSharedKey: true,
                isMasked: true, size: 1e4),
        ]
    }

    @Test(arguments: cases) func everyInstructionSetGivesTheLoops(_ setting: Case) throws {
        // Beside the one key that counts the others' gradients are differences.
        try expectKernel(setting.inputs(), single: setting.size > 10 ? 2e-3 : 5e-5) { setting($0) }
    }

    @Test(arguments: cases.filter { $0.length > 200 }) func threadsDoNotMatter(_ setting: Case) {
        expectSameBitsOnAnyThreads(setting.inputs(.float32)) { setting($0) }
    }

    @Test(arguments: cases.filter { $0.length < 100 && $0.taps < 8 && $0.channels < 10 || $0.length == 1 })
    func gradientsAreThoseOfTheFunction(_ setting: Case) {
        var short = setting
        short.length = 5
        short.channels = 2
        let inputs = short.inputs().filter { $0.dtype == .float64 }
        short.isMasked = false
        let fixed = short
        #expect(gradientCheck(inputs) { fixed($0)[0] } < 1e-6)
    }

    /// Rows of another memory order, as heads side by side make them.
    @Test(arguments: [
        Case(length: 210, channels: 64, taps: 12), Case(length: 130, channels: 128, heads: 34),
        Case(length: 130, channels: 128, heads: 34, isCausal: false),
    ])
    func stridesDoNotMatter(_ setting: Case) {
        let inputs = setting.inputs(.float32)
        let strided = inputs.map { $0.rank == 4 ? $0.transposed(1, 2).contiguous().transposed(1, 2) : $0 }
        let found = [inputs, strided].map { inputs in
            let leaves = inputs.map { $0.requiringGrad() }
            let out = setting(leaves)[0]
            return [out] + gradients(of: [out.square().sum()], withRespectTo: leaves).compactMap { $0 }
        }
        for (a, b) in zip(found[0], found[1]) { #expect((a - b).abs().maximum().item() == 0) }
    }

    @Test func aQueryThatSeesNoKeyGivesZero() {
        for taps in [0, 5] {
            let setting = Case(length: 40, taps: taps, isMasked: true, size: 50)
            var inputs = setting.inputs(.float32)
            let places = Tensor.arange(0..<40).unsqueezed(0).repeated(2, dim: 0)
            inputs[inputs.count - 1] = (places .>= 30)
            let leaves = inputs.map { $0.dtype == .bool ? $0 : $0.requiringGrad() }
            let out = setting(leaves)[0]
            #expect(out.sliced(2, 0..<30).abs().maximum().item() == 0)
            for gradient in gradients(of: [out.sum()], withRespectTo: leaves.filter { $0.requiresGrad }) {
                #expect(gradient?.isFinite().all().integerItem() == 1)
            }
        }
    }

    @Test func misuseIsReported() {
        let x = Tensor.ones([1, 2, 7, 3])
        #expect(torchError { _ = attentionFree(x, .ones([1, 2, 7, 2]), x, isCausal: true) }.operation == "aft")
        #expect(
            torchError {
                _ = attentionFree(x, x, x, bias: .heads(.ones([2, 4])), isCausal: false)
            }.message.contains("odd"))
        #expect(
            torchError {
                _ = attentionFree(x, x, x, bias: .positions(.ones([6, 4])), isCausal: true)
            }.message.contains("biases [7, taps]"))
        #expect(
            torchError {
                let k = x.requiringGrad()
                let out = attentionFree(nil, k, x, isCausal: true)
                _ = gradients(of: [out.sum()], withRespectTo: [k], createGraph: true)
            }.message.contains("twice"))
    }
}
