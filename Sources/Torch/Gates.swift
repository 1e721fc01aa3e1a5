import CTorch

/// f(gate) ∘ value: of one shape and type. Fused on the CPU, gradients included; elsewhere of LibTorch's operations.
public func gatedProduct(_ gate: Tensor, _ nonlinearity: Nonlinearity, _ value: Tensor) -> Tensor {
    guard gate.device == .cpu else { return nonlinearity(gate) * value }
    return call("gated_product", gate, value) { ctorch_gated_product($0, $1, nonlinearity.rawValue, $2) }
}

/// x + sigmoid(gate) (silu(first + second) - x): of one shape and type. Fused on the CPU, gradients included; elsewhere of
/// LibTorch's operations.
public func gatedResidual(_ x: Tensor, gate: Tensor, _ first: Tensor, _ second: Tensor) -> Tensor {
    guard x.device == .cpu else { return x + gate.sigmoid() * ((first + second).silu() - x) }
    return call("gated_residual", [x, gate, first, second]) { pointers, error in
        ctorch_gated_residual(pointers[0], pointers[1], pointers[2], pointers[3], error)
    }
}
