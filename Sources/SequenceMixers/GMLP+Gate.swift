// The spatial gating unit of gMLP and its matrices; the equations are in GMLP.swift.
import Torch
import TorchNN

/// How the weights of a spatial gating unit depend on the positions.
public enum SpatialWeights: String, NamedChoice {
    /// A number for each pair: W `[n, n]`.
    case dense
    /// A number for each distance, W_ts = w_(n-1+s-t): w `[2n - 1]`.
    case toeplitz
}

/// u ⊙ (W LayerNorm(v) + b) for an input split into u, its first half of channels, and v.
///
/// W has a row and b an entry for each position up to a maximum length n; a shorter sequence uses the first ones. Time
/// O(N² D) with dense W, in the products of a fused kernel on the CPU, half of them if causal, and O(N log N D) with a
/// Toeplitz one, by Fourier transforms where the sequence is long; memory O(N D) besides W.
public final class SpatialGatingUnit: Module {
    public let norm: LayerNorm
    /// `[n, n]` or `[2n - 1]`, with several heads `[heads, …]`; uniform within ±10⁻³/n at first.
    public let weight: Parameter
    /// `[n]`, with several heads `[heads, n]`; ones at first, so that the unit begins by letting u pass.
    public let bias: Parameter
    public let weights: SpatialWeights
    public let heads: Int
    public let maximumLength: Int
    public let isCausal: Bool

    /// From this length on a Toeplitz product goes through Fourier transforms.
    static let transformLength = 512

    /// - Parameters:
    ///   - dim: channels of the input, a multiple of twice `heads`.
    ///   - heads: groups of v's channels that have W and b of their own.
    ///   - isCausal: leaves out the weights of later positions.
    public init(
        _ dim: Int, weights: SpatialWeights, heads: Int = 1, maximumLength: Int, isCausal: Bool,
        epsilon: Double = 1e-5, using generator: RandomGenerator
    ) {
        torchPrecondition(
            dim > 0 && heads > 0 && maximumLength > 0 && dim.isMultiple(of: 2 * max(heads, 1)),
            in: "SpatialGatingUnit",
            "expected positive sizes and channels that are a multiple of twice the heads; got \(dim) channels, "
                + "\(heads) heads, maximumLength \(maximumLength)")
        self.weights = weights
        self.heads = heads
        self.maximumLength = maximumLength
        self.isCausal = isCausal
        norm = LayerNorm(dim / 2, epsilon: epsilon)
        let length = max(maximumLength, 1)
        let groups = heads > 1 ? [heads] : []
        weight = Parameter(
            .uninitialized(groups + (weights == .dense ? [length, length] : [2 * length - 1])))
        bias = Parameter(.ones(groups + [length]))
        super.init()
        Initializer.uniform(bound: 1e-3 / Double(length)).apply(to: weight, using: generator)
    }

    /// z `[batch, length, dim]` → `[batch, length, dim / 2]`; `attention`, of the result's shape, is added to the gate.
    public func callAsFunction(_ z: Tensor, adding attention: Tensor? = nil, paddingMask: Tensor? = nil) -> Tensor {
        if let found = fused(z, attention, paddingMask) { return found }
        return gated(z, attention) { mixed(gates(z, paddingMask)) }
    }

    /// The kernel's result, where there is one: not for Fourier transforms, and not beside attention.
    private func fused(_ z: Tensor, _ attention: Tensor?, _ paddingMask: Tensor?) -> Tensor? {
        let shape = z.shape
        guard z.device == .cpu, attention == nil, shape.count == 3, shape[2] == 2 * norm.dim, !shape.contains(0),
            shape[1] <= maximumLength, weights == .dense || shape[1] < Self.transformLength, let shift = norm.bias
        else { return nil }
        return spatialGate(
            z, normScale: norm.weight.value, normShift: shift.value,
            w: pairs(0..<shape[1], columns: shape[1]), bias: bias.value.reshaped(heads, -1).sliced(1, 0..<shape[1]),
            paddingMask: paddingMask, epsilon: norm.epsilon, isCausal: isCausal)
    }

    /// The equation word for word.
    public func reference(_ z: Tensor, adding attention: Tensor? = nil, paddingMask: Tensor? = nil) -> Tensor {
        gated(z, attention) {
            let v = gates(z, paddingMask)
            let grouped = v.reshaped(v.size(0), v.size(1), heads, -1)
            return einsum("hts,bshc->bthc", matrix(v.size(1)), grouped).flattened(2, 3)
        }
    }

    private func gated(_ z: Tensor, _ attention: Tensor?, _ mix: () -> Tensor) -> Tensor {
        let shape = z.shape
        let isFit = shape.count == 3 && shape[2] == 2 * norm.dim && !shape.contains(0)
        torchPrecondition(
            isFit, in: "SpatialGatingUnit", "expected an input [batch, length, \(2 * norm.dim)], got \(shape)")
        guard isFit, checkLength(shape[1]) else { return z }
        return keep(z) * gate(mix(), attention, rows: 0..<shape[1])
    }

    /// u
    func keep(_ z: Tensor) -> Tensor { z.sliced(2, 0..<norm.dim) }

    /// LayerNorm(v), with zeros at padded positions: they are not mixed into others.
    func gates(_ z: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let v = norm(z.sliced(2, norm.dim..<2 * norm.dim))
        return paddingMask.map { v.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? v
    }

    /// W v + b + attention; the small sum first. b is that of the positions `rows`.
    func gate(_ mixed: Tensor, _ attention: Tensor?, rows: Range<Int>) -> Tensor {
        let bias = bias.value.reshaped(heads, -1).sliced(1, rows)  // [heads, rows]
        let spread = bias.transposed().repeated(norm.dim / heads, dim: 1)  // [rows, dim]
        return mixed + (attention.map { $0 + spread } ?? spread)
    }

    /// Traps when a sequence is too long; false where the caller is to go on without it.
    func checkLength(_ length: Int) -> Bool {
        torchPrecondition(
            length <= maximumLength, in: "SpatialGatingUnit",
            "a sequence of \(length) tokens is longer than the maximum length \(maximumLength) of its weights")
        return length <= maximumLength
    }

    // MARK: Products

    /// W v for v `[batch, length, dim]` from the first position on.
    func mixed(_ v: Tensor) -> Tensor {
        let (batch, length, dim) = (v.size(0), v.size(1), v.size(2))
        if weights == .toeplitz && length >= Self.transformLength { return convolved(v) }
        // [heads, length, batch * channels]: W meets all sequences in one product.
        let columns = v.reshaped(batch, length, heads, -1).permuted(2, 1, 0, 3).reshaped(heads, length, -1)
        let product = matmul(rows(0..<length, columns: length), columns)
        return product.reshaped(heads, length, batch, -1).permuted(2, 1, 0, 3).reshaped(batch, length, dim)
    }

    /// Rows of W cut to the first columns, zeros where a row is not to look: `[heads, rows, columns]`.
    func rows(_ rows: Range<Int>, columns: Int) -> Tensor {
        let selected = pairs(rows, columns: columns)
        return isCausal ? selected.lowerTriangle(diagonal: rows.lowerBound) : selected
    }

    /// The same, whatever a row is to look at.
    private func pairs(_ rows: Range<Int>, columns: Int) -> Tensor {
        switch weights {
        case .dense:
            return weight.value.reshaped(heads, maximumLength, maximumLength).sliced(1, rows).sliced(2, 0..<columns)
        case .toeplitz:
            // Row t is the part of w from n - 1 - t on.
            let last = maximumLength - 1
            let part = weight.value.reshaped(heads, -1).sliced(
                1, max(last - rows.upperBound + 1, 0)..<last - rows.lowerBound + columns)
            return part.unfolded(1, size: columns).flipped(1)
        }
    }

    /// W entry by entry: `[heads, length, length]`.
    private func matrix(_ length: Int) -> Tensor {
        let places = Tensor.arange(0..<length, device: weight.value.device)
        let distances = places.unsqueezed(0) - places.unsqueezed(1)  // s - t
        let whole: Tensor
        switch weights {
        case .dense:
            whole = weight.value.reshaped(heads, maximumLength, maximumLength).sliced(1, 0..<length).sliced(
                2, 0..<length)
        case .toeplitz:
            let entries = (distances + (maximumLength - 1)).flattened()
            whole = weight.value.reshaped(heads, -1).indexed(1, entries).reshaped(heads, length, length)
        }
        return isCausal ? whole.masked(where: distances .> 0, with: 0) : whole
    }

    /// The Toeplitz product as a convolution over lags t - s: of two transforms, that of w is the same for all
    /// channels.
    private func convolved(_ v: Tensor) -> Tensor {
        let (batch, length) = (v.size(0), v.size(1))
        let type = v.dtype.accumulator
        var points = 1
        while points < 2 * length - 1 { points *= 2 }
        let w = weight.value.to(type).reshaped(heads, -1)
        let past = w.sliced(1, maximumLength - length..<maximumLength).flipped(1)  // lags 0 ..< length
        var parts = [past.padded(1, after: points - 2 * length + 1)]
        // Negative lags stand at the end of the circle.
        let future = w.sliced(1, maximumLength..<maximumLength + length - 1).flipped(1)
        parts.append(isCausal ? .zeros(like: future) : future)
        let kernel = concatenate(parts, dim: 1).rfft().unsqueezed(1)  // [heads, 1, frequencies]
        let channels = v.to(type).reshaped(batch, length, heads, -1).permuted(0, 2, 3, 1)
        let product = channels.rfft(count: points) * kernel  // [batch, heads, channels, frequencies]
        let mixed = product.irfft(count: points).sliced(3, 0..<length)
        return mixed.permuted(0, 3, 1, 2).flattened(2, 3).to(v.dtype)
    }
}
