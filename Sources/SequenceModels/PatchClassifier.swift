import SequenceMixers
import Torch
import TorchNN

/// The sizes of a model's images.
public struct ImageShape: Codable, Equatable, Sendable {
    public var channels: Int
    public var height: Int
    public var width: Int

    public init(channels: Int, height: Int, width: Int) {
        self.channels = channels
        self.height = height
        self.width = width
    }

    /// How many squares of `patchSize` pixels on each side the image is cut into.
    ///
    /// - Throws: `ConfigurationError` for sizes that are out of range, or that the patches do not divide.
    public func patches(of patchSize: Int) throws -> Int {
        for (name, value) in [("channels", channels), ("height", height), ("width", width), ("patchSize", patchSize)]
        where !(1...100_000).contains(value) {
            throw ConfigurationError("\(name) must be from 1 to 100000, not \(value)")
        }
        guard height.isMultiple(of: patchSize), width.isMultiple(of: patchSize) else {
            throw ConfigurationError("patchSize \(patchSize) does not divide images of \(height) by \(width) pixels")
        }
        return (height / patchSize) * (width / patchSize)
    }
}

/// One of several classes for an image, which is cut into patches: each is a token, row by row.
public final class PatchClassifier: Module {
    public let patch: Linear
    public let learned: LearnedPositionalEmbedding?
    public let axial: AxialPositionalEmbedding?
    private let sinusoidal: SinusoidalPositionalEmbedding?
    public let encoder: SequenceEncoder
    public let head: Linear
    public let shape: ImageShape
    public let patchSize: Int
    public let pooling: Pooling
    public let classes: Int

    /// - Throws: `ConfigurationError` when the configuration cannot be built, or not as an image classifier.
    public init(
        _ configuration: ModelConfiguration, _ shape: ImageShape, classes: Int, using generator: RandomGenerator
    ) throws {
        guard classes > 1 else { throw ConfigurationError("a classifier needs at least 2 classes, not \(classes)") }
        let size = configuration.patchSize
        let patches = try shape.patches(of: size)
        encoder = try SequenceEncoder(configuration, isCausal: false, maximumLength: patches, using: generator)
        let dim = configuration.modelDim
        patch = Linear(shape.channels * size * size, dim, using: generator)
        learned =
            configuration.position == .learned
            ? LearnedPositionalEmbedding(maximumLength: patches, dim: dim, using: generator) : nil
        if configuration.position == .axial {
            let axes = try configuration.resolvedAxes(maximumLength: patches)
            axial = AxialPositionalEmbedding(shape: axes.shape, dims: axes.dims, using: generator)
        } else {
            axial = nil
        }
        switch configuration.position {
        case .sinusoidal: sinusoidal = SinusoidalPositionalEmbedding(dim)
        case .none, .learned, .rotary, .axial: sinusoidal = nil
        case .sinusoidalConcatenated:
            throw ConfigurationError(
                "an image classifier has no token embedding that position sinusoidal-concatenated could stand beside")
        }
        head = Linear(configuration.outputDim, classes, using: generator)
        self.shape = shape
        patchSize = size
        pooling = configuration.pooling
        self.classes = classes
        super.init()
    }

    /// Brightness from 0 to 255, `[batch, channels · height · width]` channel by channel and row by row, in whole
    /// numbers or others → logits `[batch, classes]`.
    public func callAsFunction(_ pixels: Tensor) -> Tensor {
        let count = shape.channels * shape.height * shape.width
        torchPrecondition(
            pixels.rank == 2 && pixels.size(1) == count, in: "PatchClassifier",
            "expected pixels [batch, \(count)]; got \(pixels.shape)")
        let y = encoder(positioned(patch(patches(pixels))))
        return head(pooling == .mean ? y.mean(1) : y.selected(1, 0))
    }

    /// `[batch, patches, channels · patchSize²]`, brightness brought to -1 … 1.
    private func patches(_ pixels: Tensor) -> Tensor {
        let values = pixels.to(patch.weight.value.dtype) * (2 / 255.0) - 1
        let (rows, columns) = (shape.height / patchSize, shape.width / patchSize)
        let grid = values.reshaped(-1, shape.channels, rows, patchSize, columns, patchSize)
        return grid.permuted(0, 2, 4, 1, 3, 5).flattened(3, 5).flattened(1, 2)
    }

    private func positioned(_ x: Tensor) -> Tensor {
        let length = x.size(1)
        if let learned { return x + learned(length: length) }
        if let axial { return x + axial(length: length) }
        if let sinusoidal { return x + sinusoidal(length: length).to(x.dtype).to(x.device) }
        return x
    }
}
