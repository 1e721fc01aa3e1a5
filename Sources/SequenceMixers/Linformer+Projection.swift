// How Linformer makes few rows of many tokens. Wang, Li, Khabsa, Fang, Ma 2020, arXiv 2006.04768, section 4.
//
//   linear        row r = Σ_j E_rj x_j                              E [k, n], of shorter sequences the first columns
//   mean, max     row r = the mean or largest of window r of s tokens
//   convolution   row r = b + Σ_t W_t x_(rs+t)                      W_t [e, e], the same for all heads
import Foundation
import Torch
import TorchNN

/// What Linformer compresses keys and values with.
public enum LinformerProjectionKind: String, NamedChoice {
    /// Learned matrices E and F, as long as the longest sequence.
    case linear
    case meanPool = "mean-pool"
    case maxPool = "max-pool"
    /// A convolution whose stride is its width.
    case convolution
}

/// Compresses sequences: x `[batch, heads, length, dim]` → `[batch, heads, rows, dim]`.
///
/// What is padded counts as zero in sums and is left out of pooled windows.
public final class LinformerProjection: Module {
    public let kind: LinformerProjectionKind
    /// E of `linear`: `[k, maximumLength]`, or `[heads, k, maximumLength]` with one for each head.
    public let key: Parameter?
    /// F of `linear`; nil where E serves the values, too.
    public let value: Parameter?
    public let keyConvolution: Conv1d?
    public let valueConvolution: Conv1d?
    /// s, tokens a row; nil for `linear`.
    public let window: Int?

    /// Learned matrices, drawn by Xavier's rule with a gain of 1/√2.
    ///
    /// - Parameters:
    ///   - shape: of E, `[k, maximumLength]` or `[heads, k, maximumLength]`.
    ///   - isShared: whether values are compressed by E, too.
    public init(shape: [Int], isShared: Bool, using generator: RandomGenerator) {
        torchPrecondition(
            (2...3).contains(shape.count) && shape.allSatisfy { $0 > 0 }, in: "LinformerProjection",
            "expected a shape [k, maximumLength] or [heads, k, maximumLength], got \(shape)")
        kind = .linear
        key = Parameter(Self.drawn(shape, generator))
        value = isShared ? nil : Parameter(Self.drawn(shape, generator))
        keyConvolution = nil
        valueConvolution = nil
        window = nil
        super.init()
    }

    /// Pooling over windows of `window` tokens.
    public init(pooling kind: LinformerProjectionKind, window: Int) {
        torchPrecondition(
            kind == .meanPool || kind == .maxPool, in: "LinformerProjection", "'\(kind.rawValue)' is no pooling")
        torchPrecondition(window > 0, in: "LinformerProjection", "expected a window of at least 1, got \(window)")
        self.kind = kind
        key = nil
        value = nil
        keyConvolution = nil
        valueConvolution = nil
        self.window = max(window, 1)
        super.init()
    }

    /// A convolution over windows of `window` tokens for keys, and another for values.
    public init(keyDim: Int, valueDim: Int, window: Int, using generator: RandomGenerator) {
        torchPrecondition(window > 0, in: "LinformerProjection", "expected a window of at least 1, got \(window)")
        kind = .convolution
        key = nil
        value = nil
        keyConvolution = Conv1d(keyDim, keyDim, taps: max(window, 1), stride: max(window, 1), using: generator)
        valueConvolution = Conv1d(valueDim, valueDim, taps: max(window, 1), stride: max(window, 1), using: generator)
        self.window = max(window, 1)
        super.init()
    }

    private static func drawn(_ shape: [Int], _ generator: RandomGenerator) -> Tensor {
        let matrices = shape.dropLast(2).reduce(1, *)
        let tensor = Tensor.uninitialized([matrices] + shape.suffix(2))
        for index in 0..<matrices {
            Initializer.xavierUniform(gain: 0.5.squareRoot()).apply(to: tensor.selected(0, index), using: generator)
        }
        return tensor.reshaped(to: shape)
    }

    /// The longest sequence it can take; nil when there is no limit.
    public var maximumLength: Int? { key?.value.size(-1) }

    /// Whether each head has a matrix of its own.
    var isPerHead: Bool { key.map { $0.value.rank == 3 && $0.value.size(0) > 1 } ?? false }

    /// Whether the rows of keys and of values are made alike.
    var isShared: Bool { value == nil && valueConvolution == nil }

    /// - Parameter literal: by the definition, row by row, instead of by products of matrices.
    func keys(_ x: Tensor, _ paddingMask: Tensor?, literal: Bool) -> Tensor {
        rows(of: x, key, keyConvolution, paddingMask, literal)
    }

    func values(_ x: Tensor, _ paddingMask: Tensor?, literal: Bool) -> Tensor {
        rows(of: x, value ?? key, valueConvolution, paddingMask, literal)
    }

    /// `[batch, rows]`, false where a window has no real token; nil when all rows are to be looked at.
    func rowMask(_ paddingMask: Tensor?) -> Tensor? {
        guard let paddingMask, window != nil else { return nil }
        let windows = cut(paddingMask.to(.int64).unsqueezed(1).unsqueezed(3))  // [batch, 1, rows, window, 1]
        return windows.flattened(3, 4).squeezed(1).any(2)
    }

    private func rows(
        of x: Tensor, _ matrix: Parameter?, _ convolution: Conv1d?, _ paddingMask: Tensor?, _ literal: Bool
    ) -> Tensor {
        let wide = x.to(x.dtype.accumulator)  // sums over the sequence leave the range of half precision
        let rows: Tensor
        if let matrix {
            let real = maskedKeys(wide, paddingMask)
            rows = literal ? matmul(columns(matrix, of: x).to(wide.dtype), real) : product(matrix, real)
        } else if let convolution {
            let real = maskedKeys(wide, paddingMask)
            rows = literal ? literalConvolution(real, convolution) : self.convolution(real, convolution)
        } else {
            rows = literal ? literalPooling(wide, paddingMask) : pooled(wide, paddingMask)
        }
        return rows.to(x.dtype)
    }

    // MARK: Learned matrices

    /// The matrix's part for a sequence as long as x.
    private func columns(_ matrix: Parameter, of x: Tensor) -> Tensor {
        let (length, most) = (x.size(2), matrix.value.size(-1))
        torchPrecondition(
            length <= most, in: "LinformerProjection",
            "a sequence of \(length) tokens is longer than the maximumLength of \(most)")
        return matrix.value.sliced(-1, 0..<max(0, min(length, most)))
    }

    /// One product for all sequences, so that its gradient by the matrix is one, too.
    private func product(_ matrix: Parameter, _ x: Tensor) -> Tensor {
        let part = columns(matrix, of: x).to(x.dtype)
        let (batch, heads, length, dim) = (x.size(0), x.size(1), x.size(2), x.size(3))
        if isPerHead {
            let flat = x.permuted(1, 2, 0, 3).reshaped(heads, length, batch * dim)
            return matmul(part, flat).reshaped(heads, -1, batch, dim).permuted(2, 0, 1, 3)
        }
        let flat = x.permuted(2, 0, 1, 3).reshaped(length, batch * heads * dim)
        return matmul(part.reshaped(-1, length), flat).reshaped(-1, batch, heads, dim).permuted(1, 2, 0, 3)
    }

    // MARK: Windows

    /// `[batch, heads, length, dim]` → `[batch, heads, rows, window, dim]`
    private func cut(_ x: Tensor, padding value: Double = 0) -> Tensor {
        let size = window ?? 1
        let rows = (x.size(2) + size - 1) / size
        return x.padded(2, after: rows * size - x.size(2), value: value)
            .reshaped(x.size(0), x.size(1), rows, size, -1)
    }

    private func pooled(_ x: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let real = (paddingMask ?? .ones([1, x.size(2)], dtype: .bool, device: x.device)).unsqueezed(1).unsqueezed(3)
        let counts = cut(real.to(x.dtype)).sum(3)  // [batch or 1, 1, rows, 1]
        if kind == .meanPool { return cut(x.masked(where: .!real, with: 0)).sum(3) / counts.clamped(min: 1) }
        let largest = cut(x.masked(where: .!real, with: -Double.infinity), padding: -.infinity).maximum(3)
        return largest.masked(where: counts .== 0, with: 0)
    }

    private func convolution(_ x: Tensor, _ convolution: Conv1d) -> Tensor {
        let weight = convolution.weight.value.permuted(0, 2, 1).flattened(1, 2)  // [dim, window · dim]
        return linear(cut(x).flattened(3, 4), weight.to(x.dtype), convolution.bias?.value.to(x.dtype))
    }

    // MARK: By the definition

    /// The positions of each window.
    private func windows(_ length: Int) -> [Range<Int>] {
        let size = window ?? 1
        return stride(from: 0, to: length, by: size).map { $0..<min($0 + size, length) }
    }

    private func literalPooling(_ x: Tensor, _ paddingMask: Tensor?) -> Tensor {
        let mask = paddingMask ?? .ones([x.size(0), x.size(2)], dtype: .bool, device: x.device)
        let rows = windows(x.size(2)).map { window -> Tensor in
            let part = x.sliced(2, window)
            let real = mask.sliced(1, window).unsqueezed(1).unsqueezed(3)
            let count = real.to(x.dtype).sum(2)
            if kind == .meanPool { return part.masked(where: .!real, with: 0).sum(2) / count.clamped(min: 1) }
            return part.masked(where: .!real, with: -Double.infinity).maximum(2).masked(where: count .== 0, with: 0)
        }
        return stack(rows, dim: 2)
    }

    private func literalConvolution(_ x: Tensor, _ convolution: Conv1d) -> Tensor {
        let weight = convolution.weight.value.to(x.dtype)
        let rows = windows(x.size(2)).map { window -> Tensor in
            let products = window.map { linear(x.selected(2, $0), weight.selected(2, $0 - window.lowerBound)) }
            let sum = products.dropFirst().reduce(products[0], +)
            return convolution.bias.map { sum + $0.value.to(x.dtype) } ?? sum
        }
        return stack(rows, dim: 2)
    }
}
