import Torch
import TorchNN

/// A layer whose mechanism can be run alone, between its projections: for measurements.
///
/// ``Attention`` says it for every ``AttentionCore``; a layer of its own kind says it here or in its own file, and can be
/// measured so from then on.
package protocol BareAttending: ReferenceEvaluating {
    /// From projected q, k, v `[batch, heads, length, headDim]` to what the output projection gets, in the same shape,
    /// and in the form that ``ReferenceEvaluating/usesReference`` says.
    func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor

    /// What is trained in it.
    var bareParameters: [Parameter] { get }

    /// Whether one projection gives both queries and keys.
    var queriesAreKeys: Bool { get }

    /// Whether it wants a token's heads side by side in memory, as projections leave them, and not a head's tokens.
    var takesTokensFirst: Bool { get }
}

extension BareAttending {
    package var queriesAreKeys: Bool { false }
    package var takesTokensFirst: Bool { true }
}

extension Attention: BareAttending {
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor { attend(q, k, v, nil) }

    package var bareParameters: [Parameter] { core.parameters() }
    package var takesTokensFirst: Bool { false }
}

extension AFT: BareAttending {
    /// AFT-conv, too, with keys of as many channels as the values have, whose layer makes them of one a head.
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        usesReference ? core.reference(q, k, v, paddingMask: nil) : core(q, k, v, paddingMask: nil)
    }

    package var bareParameters: [Parameter] { core.parameters() }
}

extension LinformerAttention: BareAttending {
    /// With compressed keys and values, also where the layer compresses its input instead.
    package func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        usesReference ? core.reference(q, k, v, paddingMask: nil) : core(q, k, v, paddingMask: nil)
    }

    package var bareParameters: [Parameter] { core.parameters() }
    package var takesTokensFirst: Bool { false }
}

extension LSHAttention: BareAttending {
    package func attend(_ queryKey: Tensor, _: Tensor, _ v: Tensor) -> Tensor {
        usesReference ? core.reference(queryKey, v, paddingMask: nil) : core(queryKey, v, paddingMask: nil)
    }

    package var bareParameters: [Parameter] { core.parameters() }
    package var queriesAreKeys: Bool { true }
    package var takesTokensFirst: Bool { false }
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
        let (queries, keys) = encoded(q, k, at: positions(from: [0], length: q.size(2), q.device))
        let found = attended(queries, keys, v, nil)
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
