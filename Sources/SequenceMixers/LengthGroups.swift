import Torch

/// The sequences of a padded batch by their number of real tokens, for mechanisms that take in a whole sequence at
/// once: each is then computed at its own length, as if what is padded were not there.
///
/// Costs one evaluation for each of the different lengths in the batch.
public struct LengthGroups {
    /// The number of real tokens of each sequence.
    public let lengths: [Int]
    private let length: Int
    /// Rows of the flattened batch, a sequence's real tokens before its padded ones, each in their order.
    private let order: Tensor
    /// The inverse of `order`.
    private let places: Tensor

    /// - Parameter paddingMask: `[batch, length]`, true for a real token.
    public init(_ paddingMask: Tensor) {
        let (batch, real) = (paddingMask.size(0), paddingMask.to(.int64))
        length = paddingMask.size(1)
        lengths = real.sum(1).scalars(as: Int64.self).map(Int.init)
        let first = (Tensor.arange(0..<batch, device: paddingMask.device) * length).unsqueezed(1)
        let sorted = real.argsort(1, descending: true, stable: true)
        order = (sorted + first).flattened()
        places = (sorted.argsort(1) + first).flattened()
    }

    /// `body` on the real tokens of sequences of one length `[sequences, n, channels]`, to the same shape; its outputs
    /// stand where the real tokens do, zeros where the padded ones do.
    public func mapped(_ x: Tensor, _ body: (Tensor) -> Tensor) -> Tensor {
        let y = evaluated(x, paddedTo: length, body)
        return y.flattened(0, 1).indexed(0, places).reshaped(to: x.shape)
    }

    /// `body` on the real tokens of sequences of one length `[sequences, n, channels]`, to any number of positions up to
    /// `width`; its outputs stand at the front of `[batch, width, channels]`, zeros after them.
    public func evaluated(_ x: Tensor, paddedTo width: Int, _ body: (Tensor) -> Tensor) -> Tensor {
        let compact = x.flattened(0, 1).indexed(0, order).reshaped(to: x.shape)
        let groups = Dictionary(grouping: lengths.indices) { lengths[$0] }.sorted { $0.key < $1.key }
        let outputs = groups.map { count, members in
            let sequences = compact.indexed(0, Tensor(members)).sliced(1, 0..<count)
            let out = count == 0 ? sequences : body(sequences)
            return out.padded(1, after: width - out.size(1))
        }
        let order = groups.flatMap(\.value)
        return concatenate(outputs).indexed(0, Tensor(order.indices.sorted { order[$0] < order[$1] }))
    }
}
