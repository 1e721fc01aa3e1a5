import Torch
import TorchNN

/// A layer whose mechanism can be run alone, between its projections, though it is no ``AttentionCore``: for measurements.
package protocol BareAttending: ReferenceEvaluating {
    /// From projected q, k, v `[batch, heads, length, headDim]` to what the output projection gets, in the same shape,
    /// and in the form that ``ReferenceEvaluating/usesReference`` says.
    func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor

    /// What is trained in it.
    var bareParameters: [Parameter] { get }
}

extension NormAttention: BareAttending {
    /// With the norm over all heads.
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let places = positions(from: [0], length: q.size(2), q.device)
        let (queries, keys) = encoded(q, k, at: places)
        let found = products(queries, keys, v)
        return normalized(found.mergedHeads()).splitHeads(heads)
    }

    package var bareParameters: [Parameter] { position.parameters() }
}

extension DiagAttention: BareAttending {
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let places = positions(from: [0], length: q.size(2), q.device).remainder(dividingBy: block)
        let queries = position(q / Double(headDim).squareRoot(), at: places)
        let found = attended(queries, position(k, at: places), v, nil)
        return activation == .relu ? normalized(found.mergedHeads()).splitHeads(heads) : found
    }

    package var bareParameters: [Parameter] { position.parameters() }
}

extension CausalLongShortAttention: BareAttending {
    /// With mixtures chosen by the keys instead of the layer's input.
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let keys = k.mergedHeads()
        return attended(q / Double(q.size(3)).squareRoot(), keys, keys, v.mergedHeads(), cache: nil, paddingMask: nil)
    }

    package var bareParameters: [Parameter] {
        projections.bareParameters + (distances.map { $0.parameters() } ?? [])
    }
}

extension LongShortAttention: BareAttending {
    /// With mixtures chosen by the keys instead of the layer's input. For sequences without global tokens.
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let keys = k.mergedHeads()
        return attended(q / Double(q.size(3)).squareRoot(), keys, keys, v.mergedHeads(), nil)
    }

    package var bareParameters: [Parameter] { projections.bareParameters }
}

extension LongShortProjections {
    fileprivate var bareParameters: [Parameter] {
        mixture.parameters() + windowNorm.parameters() + longNorm.parameters()
    }
}
