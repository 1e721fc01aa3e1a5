import Foundation

/// The sizes of an image.
public struct ImageSize: Codable, Hashable, Sendable {
    /// 1 for gray, 3 for red, green and blue.
    public var channels: Int
    public var height: Int
    public var width: Int

    public init(channels: Int, height: Int, width: Int) {
        self.channels = channels
        self.height = height
        self.width = width
    }

    /// Numbers of one image.
    public var count: Int { channels * height * width }
}

/// Images of one size with a class each, in three splits, a byte for each number.
///
/// As token sequences: the token is a pixel's brightness from 0 to 255, channel by channel and row by row.
public struct ImageDataset: TokenDataset {
    /// What the data is called in messages.
    public let name: String
    public let size: ImageSize
    public let classes: Int
    private let splits: [DatasetSplit: LabeledImages]

    public let vocabularySize = 256
    public var maximumLength: Int { size.count }
    public var objective: Objective { .classification(classes: classes) }

    init(name: String, size: ImageSize, classes: Int, splits: [DatasetSplit: LabeledImages]) {
        self.name = name
        self.size = size
        self.classes = classes
        self.splits = splits
    }

    /// The classes of a split's images.
    public func labels(of split: DatasetSplit) -> [UInt8] { splits[split]?.labels ?? [] }

    /// The share of the most frequent class of a split: what guessing without looking gets right.
    public func majorityShare(of split: DatasetSplit) -> Double {
        let labels = labels(of: split)
        let largest = Dictionary(grouping: labels) { $0 }.values.map(\.count).max() ?? 0
        return labels.isEmpty ? 0 : Double(largest) / Double(labels.count)
    }

    public func trainingBatches(batchSize: Int, seed: UInt64) throws(DatasetError) -> any BatchSource<TokenBatch> {
        let images = splits[.train] ?? LabeledImages()
        let length = size.count
        return try ShuffledBatches(
            images.labels.count, name: "train split of \(name)", batchSize: batchSize, seed: seed
        ) { images.batch(of: $0, length: length) }
    }

    /// In the order of the split.
    public func evaluationBatches(of split: DatasetSplit, batchSize: Int) throws(DatasetError)
        -> EvaluationBatches<TokenBatch>
    {
        try DatasetError.check(batchSize > 0, "batch size", batchSize, expected: "a positive number of images")
        let images = splits[split] ?? LabeledImages()
        guard !images.labels.isEmpty else {
            throw .tooFewExamples(what: "\(split) split of \(name)", examples: 0, needed: 1)
        }
        let length = size.count
        return EvaluationBatches(rows: images.labels.count, batchSize: batchSize) { rows in
            images.batch(of: rows, length: length)
        }
    }
}

/// Images one after the other, and their classes.
struct LabeledImages: Sendable {
    var pixels: [UInt8] = []
    var labels: [UInt8] = []

    /// Adds the images of another.
    mutating func append(_ other: LabeledImages) {
        pixels += other.pixels
        labels += other.labels
    }

    /// Takes the last `count` images away and returns them.
    mutating func removeLast(_ count: Int, length: Int) -> LabeledImages {
        let kept = labels.count - count
        let taken = LabeledImages(pixels: Array(pixels[(kept * length)...]), labels: Array(labels[kept...]))
        pixels.removeLast(count * length)
        labels.removeLast(count)
        return taken
    }

    func batch(of indices: some Collection<Int>, length: Int) -> TokenBatch {
        var inputs: [Int32] = []
        inputs.reserveCapacity(indices.count * length)
        for index in indices {
            inputs.append(contentsOf: pixels[index * length..<(index + 1) * length].lazy.map(Int32.init))
        }
        return TokenBatch(
            inputs: inputs, batch: indices.count, length: length, targets: indices.map { Int32(labels[$0]) })
    }
}
