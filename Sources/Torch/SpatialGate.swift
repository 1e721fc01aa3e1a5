import CTorch

/// The kernel of gMLP's spatial gating unit: u ⊙ (W LayerNorm(v) + b) for z `[batch, length, 2 channels]`, whose halves
/// are u and v.
///
/// `normScale` and `normShift` `[channels]`; w `[heads, length, length]` and bias `[heads, length]` for as many groups of
/// channels. A causal W counts as 0 above its diagonal, and what is there is not computed. `paddingMask`
/// `[batch, length]`: LayerNorm(v) is 0 where it is false. For the CPU.
public func spatialGate(
    _ z: Tensor, normScale: Tensor, normShift: Tensor, w: Tensor, bias: Tensor, paddingMask: Tensor? = nil,
    epsilon: Double, isCausal: Bool
) -> Tensor {
    call("spatial_gate", [z, normScale, normShift, w, bias, paddingMask]) { pointers, error in
        ctorch_spatial_gate(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5], epsilon, isCausal, error)
    }
}
