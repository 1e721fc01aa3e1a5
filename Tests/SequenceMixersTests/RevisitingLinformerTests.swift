import SequenceMixers
import Testing
import Torch

@Suite struct RevisitingLinformerTests {
    private func normal(_ shape: [Int], seed: UInt64, _ dtype: DType = .float64) -> Tensor {
        .randomNormal(shape, using: RandomGenerator(seed: seed), dtype: dtype)
    }

    @Test func dataProjectedCannotBeCausal() throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
        let text =
            "revisiting-linformer: form data-projected reads the whole sequence, so a causal model needs separable"
        #expect(throws: ConfigurationError(text)) { try RevisitingLinformerOptions(.dataProjected).build(context) }
    }

    /// Keys whose exponentials lie further apart than single precision reaches, in either order.
    @Test(arguments: [DType.float32, .float64]) func keysFarApart(_ dtype: DType) throws {
        let core = RevisitingLinformerCore(isCausal: true)
        for slope in [40.0, -40.0, 700.0, -700.0] {
            let steps = Tensor.arange(0..<150, dtype: dtype).reshaped(1, 1, 150, 1) * slope
            let inputs = [
                normal([1, 1, 150, 3], seed: 2, dtype), normal([1, 1, 150, 3], seed: 3, dtype) + steps,
                normal([1, 1, 150, 4], seed: 4, dtype),
            ].map { $0.requiringGrad() }
            let forms = [
                core(inputs[0], inputs[1], inputs[2], paddingMask: nil),
                core.reference(inputs[0], inputs[1], inputs[2], paddingMask: nil),
            ]
            let close = dtype == .float32 ? 1e-2 : 1e-9  // numbers of 1e5 have few digits behind the point
            #expect(forms[0].deviation(from: forms[1]) < close, "slope \(slope)")
            for gradient in gradients(of: [forms[0].sum()], withRespectTo: inputs) {
                #expect(try #require(gradient).isAllFinite)
            }
        }
    }

    /// Every row of the implied matrix of weights is one distribution over the keys.
    @Test(arguments: [true, false]) func weightsSumToOne(_ causal: Bool) {
        let core = RevisitingLinformerCore(isCausal: causal)
        let (q, k) = (normal([2, 2, 90, 5], seed: 5), normal([2, 2, 90, 5], seed: 6))
        let out = core(q, k, .ones([2, 2, 90, 3], dtype: .float64), paddingMask: nil)
        #expect((out - 1).abs().maximum().item() < 1e-12)
    }
}
