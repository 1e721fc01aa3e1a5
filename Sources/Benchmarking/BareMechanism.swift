import SequenceMixers
import Torch
import TorchNN

/// A mechanism between its projections, as a function of the tensors that it takes.
struct BareMechanism {
    private let layer: any BareAttending
    /// Of each tensor that it takes.
    private let shape: [Int]

    /// - Throws: `ConfigurationError` for a layer that has no part like that.
    init(_ layer: any SequenceMixer, named name: String, _ shape: BenchmarkShape, reference: Bool) throws {
        guard let layer = layer as? any BareAttending else {
            throw ConfigurationError("mixer '\(name)' is a whole layer; measure it with 'bench layer'")
        }
        layer.usesReference = reference
        self.layer = layer
        self.shape = [shape.batch, shape.heads, shape.length, shape.headDim]
    }

    /// What is trained in it.
    var parameters: [Parameter] { layer.bareParameters }

    /// Random inputs: q, k, v, or one for both queries and keys, and v.
    func inputs(using generator: RandomGenerator) -> [Tensor] {
        let laidOut = layer.takesTokensFirst ? [shape[0], shape[2], shape[1], shape[3]] : shape
        return (0..<(layer.queriesAreKeys ? 2 : 3)).map { _ in Tensor.randomNormal(laidOut, using: generator) }
    }

    func callAsFunction(_ inputs: [Tensor]) -> Tensor {
        let heads = layer.takesTokensFirst ? inputs.map { $0.transposed(1, 2) } : inputs
        return layer.queriesAreKeys
            ? layer.attend(heads[0], heads[0], heads[1]) : layer.attend(heads[0], heads[1], heads[2])
    }
}
