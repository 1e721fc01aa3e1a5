import Torch

/// A trained vector for each position, joined from those of its coordinates: position n lies at the row-major index
/// (i₁, …, i_k) of a grid, and its vector is (E₁[i₁], …, E_k[i_k]) (Kitaev et al., Reformer, 2020, arXiv 2001.04451).
///
/// Weights Σ shape_a · dims_a in place of Π shape_a · Σ dims_a.
public final class AxialPositionalEmbedding: Module {
    /// For each axis a, `[shape[a], dims[a]]`.
    public let axes: [Parameter]
    public let shape: [Int]
    public let dims: [Int]

    /// The vectors are drawn from the normal distribution of deviation 1.
    public init(shape: [Int], dims: [Int], using generator: RandomGenerator) {
        torchPrecondition(
            !shape.isEmpty && shape.count == dims.count && (shape + dims).allSatisfy { $0 > 0 },
            in: "AxialPositionalEmbedding",
            "expected as many positive sizes as widths, got shape \(shape), dims \(dims)")
        self.shape = shape
        self.dims = dims
        axes = zip(shape, dims).map { Parameter(.drawn([max($0, 0), max($1, 0)], .normal(deviation: 1), generator)) }
        super.init()
    }

    /// The positions that the grid has.
    public var maximumLength: Int { shape.reduce(1, *) }

    /// The vectors of the positions from `offset` on: `[length, Σ dims]`.
    public func callAsFunction(length: Int, offset: Int = 0) -> Tensor {
        let fits = length >= 0 && offset >= 0 && length + offset <= maximumLength
        torchPrecondition(
            fits, in: "AxialPositionalEmbedding",
            "\(length) positions from \(offset) on do not lie within the \(maximumLength) of shape \(shape)")
        let positions = Tensor.arange(fits ? offset..<offset + length : 0..<0)
        var stride = maximumLength
        let parts = zip(shape, axes).map { size, axis in
            stride /= max(size, 1)
            let index = positions.floorDivided(by: max(stride, 1)).remainder(dividingBy: max(size, 1))
            return embedding(axis.value, index.to(axis.value.device))
        }
        return concatenate(parts, dim: 1)
    }
}
