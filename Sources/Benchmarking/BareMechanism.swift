import SequenceMixers
import Torch
import TorchNN

/// A mechanism between its projections, as a function of the tensors that it takes.
struct BareMechanism {
    /// Of the tensors it takes; they are laid out as `[batch, length, heads, width]` where `tokensFirst`.
    let shapes: [[Int]]
    /// Whether the mechanism wants a token's heads side by side, as projections leave them.
    var tokensFirst = false
    /// What is trained in it.
    var parameters: [Parameter] = []
    let run: ([Tensor]) -> Tensor

    /// - Throws: `ConfigurationError` for a layer that has no part like that.
    init(
        _ layer: any SequenceMixer, named name: String, batch: Int, heads: Int, length: Int, headDim: Int,
        reference: Bool
    ) throws {
        let full = [batch, heads, length, headDim]
        switch layer {
        case let layer as any CoreHolding:
            let core = layer.anyCore
            shapes = [full, full, full]
            parameters = core.parameters()
            run = {
                reference
                    ? core.reference($0[0], $0[1], $0[2], paddingMask: nil)
                    : core($0[0], $0[1], $0[2], paddingMask: nil)
            }
        case let layer as AFT:
            shapes = [full, full, full]  // with AFT-conv, too, whose layer makes keys of one channel a head
            tokensFirst = true
            parameters = layer.core.parameters()
            run = {
                reference
                    ? layer.core.reference($0[0], $0[1], $0[2], paddingMask: nil)
                    : layer.core($0[0], $0[1], $0[2], paddingMask: nil)
            }
        case let layer as LinformerAttention:
            shapes = [full, full, full]
            parameters = layer.core.parameters()
            run = {
                reference
                    ? layer.core.reference($0[0], $0[1], $0[2], paddingMask: nil)
                    : layer.core($0[0], $0[1], $0[2], paddingMask: nil)
            }
        case let layer as LSHAttention:
            shapes = [full, full]  // queries are keys
            run = {
                reference
                    ? layer.core.reference($0[0], $0[1], paddingMask: nil) : layer.core($0[0], $0[1], paddingMask: nil)
            }
        case let layer as any BareAttending:
            layer.usesReference = reference
            shapes = [full, full, full]
            tokensFirst = true
            parameters = layer.bareParameters
            run = { layer.attend($0[0], $0[1], $0[2]) }
        default:
            throw ConfigurationError("mixer '\(name)' is a whole layer; measure it with 'bench layer'")
        }
    }

    /// Random inputs, and the same as the mechanism sees them.
    func inputs(using generator: RandomGenerator) -> [Tensor] {
        shapes.map { shape in
            Tensor.randomNormal(
                tokensFirst ? [shape[0], shape[2], shape[1], shape[3]] : shape, using: generator)
        }
    }

    func callAsFunction(_ inputs: [Tensor]) -> Tensor {
        run(tokensFirst ? inputs.map { $0.transposed(1, 2) } : inputs)
    }
}
