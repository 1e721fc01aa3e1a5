import Foundation

extension ImageDataset {
    /// MNIST, or another set in its four files: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the same with
    /// `t10k`, plain or as `.gz` (LeCun et al. 1998).
    ///
    /// - Parameter validationCount: so many of the last training images are for validation.
    /// - Throws: ``DatasetError`` for files that are missing, damaged, or do not fit together.
    public static func mnist(contentsOf folder: URL, validationCount: Int = 5_000) throws(DatasetError) -> ImageDataset
    {
        var (train, size) = try idx("train", in: folder)
        let (test, testSize) = try idx("t10k", in: folder)
        let name = folder.path(percentEncoded: false)
        guard testSize == size else {
            throw .malformedFile(
                path: name,
                reason: "its test images are \(testSize.height) by \(testSize.width), not as those for training")
        }
        let validation = try split(&train, validationCount, size, name)
        return ImageDataset(
            name: name, size: size, classes: 10, splits: [.train: train, .validation: validation, .test: test])
    }

    /// CIFAR-10 in its binary version: `data_batch_1.bin` and so on, and `test_batch.bin`, records of a label and 3,072
    /// pixels (Krizhevsky 2009). Names may have more before `.bin`, and may end in `.gz`; of shorter files all records
    /// count.
    ///
    /// - Parameter validationCount: so many of the last training images are for validation.
    /// - Throws: ``DatasetError`` for files that are missing or damaged.
    public static func cifar10(contentsOf folder: URL, validationCount: Int = 5_000) throws(DatasetError)
        -> ImageDataset
    {
        let size = ImageSize(channels: 3, height: 32, width: 32)
        let name = folder.path(percentEncoded: false)
        var train = try records("data_batch", in: folder, size)
        let test = try records("test_batch", in: folder, size)
        let validation = try split(&train, validationCount, size, name)
        return ImageDataset(
            name: name, size: size, classes: 10, splits: [.train: train, .validation: validation, .test: test])
    }

    private static func split(_ train: inout LabeledImages, _ count: Int, _ size: ImageSize, _ name: String)
        throws(DatasetError) -> LabeledImages
    {
        try DatasetError.check(count >= 0, "validation examples", count, expected: "at least 0")
        guard train.labels.count > count else {
            throw .tooFewExamples(what: "train split of \(name)", examples: train.labels.count, needed: count + 1)
        }
        return train.removeLast(count, length: size.count)
    }

    // MARK: MNIST

    private static func idx(_ part: String, in folder: URL) throws(DatasetError) -> (LabeledImages, ImageSize) {
        let images = try idxFile("\(part)-images-idx3-ubyte", in: folder, dimensions: 3)
        let labels = try idxFile("\(part)-labels-idx1-ubyte", in: folder, dimensions: 1)
        guard images.sizes[0] == labels.sizes[0] else {
            throw .malformedFile(
                path: labels.path, reason: "it has \(labels.sizes[0]) labels for \(images.sizes[0]) images")
        }
        guard images.sizes[1] > 0, images.sizes[2] > 0 else {
            throw .malformedFile(path: images.path, reason: "its images are empty")
        }
        if let label = labels.bytes.first(where: { $0 > 9 }) {
            throw .malformedFile(path: labels.path, reason: "it has the label \(label), expected 0 to 9")
        }
        let size = ImageSize(channels: 1, height: images.sizes[1], width: images.sizes[2])
        return (LabeledImages(pixels: images.bytes, labels: labels.bytes), size)
    }

    /// The format: two zeros, 8 for bytes, the number of dimensions, their sizes in four bytes each, the bytes.
    private static func idxFile(_ file: String, in folder: URL, dimensions: Int) throws(DatasetError) -> (
        path: String, sizes: [Int], bytes: [UInt8]
    ) {
        let plain = folder.appending(component: file)
        let exists = FileManager.default.fileExists(atPath: plain.path(percentEncoded: false))
        let url = exists ? plain : plain.appendingPathExtension("gz")
        let path = url.path(percentEncoded: false)
        let bytes = [UInt8](try ByteFiles.readFile(url))
        let header = 4 + 4 * dimensions
        guard bytes.count >= header, bytes[0..<4] == [0, 0, 8, UInt8(dimensions)] else {
            throw .malformedFile(
                path: path, reason: "it is no IDX file of bytes in \(dimensions) dimension\(dimensions == 1 ? "" : "s")"
            )
        }
        let sizes = (1...dimensions).map { index in
            bytes[4 * index..<4 * index + 4].reduce(0) { $0 << 8 | Int($1) }
        }
        var count = 1
        for size in sizes {
            let (product, overflow) = count.multipliedReportingOverflow(by: size)
            count = overflow ? .max : product
        }
        guard bytes.count - header == count else {
            throw .malformedFile(
                path: path, reason: "it has \(bytes.count - header) bytes of data, its header says \(count)")
        }
        return (path, sizes, Array(bytes[header...]))
    }

    // MARK: CIFAR-10

    private static func records(_ prefix: String, in folder: URL, _ size: ImageSize) throws(DatasetError)
        -> LabeledImages
    {
        let path = folder.path(percentEncoded: false)
        let all = try ByteFiles.files(in: folder, extensions: ["bin"])
        let files = all.filter { $0.lastPathComponent.hasPrefix(prefix) }
        guard !files.isEmpty else { throw .missingPath("\(path)/\(prefix)*.bin") }
        var images = LabeledImages()
        for file in files { images.append(try records(of: file, size)) }
        return images
    }

    private static func records(of file: URL, _ size: ImageSize) throws(DatasetError) -> LabeledImages {
        let bytes = [UInt8](try ByteFiles.readFile(file))
        let path = file.path(percentEncoded: false)
        let length = 1 + size.count
        guard !bytes.isEmpty else { throw .empty(path: path) }
        guard bytes.count.isMultiple(of: length) else {
            throw .malformedFile(
                path: path, reason: "it has \(bytes.count) bytes, expected a multiple of \(length) for whole images")
        }
        var images = LabeledImages()
        images.pixels.reserveCapacity(bytes.count)
        for start in stride(from: 0, to: bytes.count, by: length) {
            guard bytes[start] < 10 else {
                throw .malformedFile(
                    path: path,
                    reason: "image \(start / length + 1) has the label \(bytes[start]), expected 0 to 9")
            }
            images.labels.append(bytes[start])
            images.pixels += bytes[start + 1..<start + length]
        }
        return images
    }
}
