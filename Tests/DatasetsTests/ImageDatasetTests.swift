import Foundation
import Testing

@testable import Datasets

@Suite struct ImageDatasetTests {
    let folder: TemporaryFolder

    init() throws { folder = try TemporaryFolder() }

    private func idx(_ sizes: [Int], _ bytes: [UInt8], kind: UInt8 = 8) -> [UInt8] {
        let header = sizes.flatMap { size in (0..<4).reversed().map { UInt8(size >> (8 * $0) & 255) } }
        return [0, 0, kind, UInt8(sizes.count)] + header + bytes
    }

    /// Images of 2 by 3 pixels: image i is i, i + 1, …, and its class i mod 10.
    private func writeMNIST(train: Int = 12, test: Int = 4, packed: Bool = false) throws {
        for (name, count) in [("train", train), ("t10k", test)] {
            let images = (0..<count).flatMap { image in (0..<6).map { UInt8(image + $0) } }
            for (part, bytes) in [
                ("images-idx3-ubyte", idx([count, 2, 3], images)),
                ("labels-idx1-ubyte", idx([count], (0..<count).map { UInt8($0 % 10) })),
            ] {
                try folder.write(packed ? folder.gzip(bytes) : bytes, to: "\(name)-\(part)\(packed ? ".gz" : "")")
            }
        }
    }

    @Test(arguments: [false, true]) func mnistIsRead(_ packed: Bool) throws {
        try writeMNIST(packed: packed)
        let data = try ImageDataset.mnist(contentsOf: folder.url, validationCount: 3)
        #expect(data.size == ImageSize(channels: 1, height: 2, width: 3))
        #expect(data.vocabularySize == 256 && data.maximumLength == 6)
        #expect(data.labels(of: .train) == Array(0..<9))
        #expect(data.labels(of: .validation) == [9, 0, 1])
        #expect(data.labels(of: .test) == [0, 1, 2, 3] && data.majorityShare(of: .test) == 0.25)
        let batches = try data.evaluationBatches(of: .validation, batchSize: 2)
        #expect(batches.count == 2)
        #expect(batches[0].inputs == [9, 10, 11, 12, 13, 14, 10, 11, 12, 13, 14, 15] && batches[0].targets == [9, 0])
        #expect(batches[1].batch == 1 && batches[1].paddingMask == nil && batches[1].realTokens == 6)
    }

    @Test func trainingTakesEachImageOnceInAnEpochAndResumes() throws {
        try writeMNIST()
        let data = try ImageDataset.mnist(contentsOf: folder.url, validationCount: 2)
        var source = try data.trainingBatches(batchSize: 3, seed: 5)
        #expect(source.batchesPerEpoch == 3)
        let first = try (0..<6).map { _ in try source.next() }
        for epoch in [first[..<3], first[3...]] {
            let images = epoch.flatMap { batch in (0..<3).map { batch.inputs[6 * $0] } }
            #expect(Set(images).count == 9)
            for batch in epoch { #expect(batch.targets == (0..<3).map { batch.inputs[6 * $0] % 10 }) }
        }
        try source.resume(at: BatchPosition(seed: 5, epoch: 1, index: 1))
        #expect(try source.next() == first[4])
        #expect(throws: DatasetError.self) { try data.trainingBatches(batchSize: 11, seed: 5) }
    }

    @Test func cifarIsRead() throws {
        let record = { (label: UInt8) in [label] + (0..<3072).map { UInt8(truncatingIfNeeded: $0 + Int(label)) } }
        try folder.write(record(3) + record(9), to: "data_batch_1.first2.bin")
        try folder.write(folder.gzip(record(4)), to: "data_batch_2.bin.gz")
        try folder.write(record(7), to: "test_batch.bin")
        try folder.write("airplane", to: "batches.meta.txt")
        let data = try ImageDataset.cifar10(contentsOf: folder.url, validationCount: 1)
        #expect(data.size == ImageSize(channels: 3, height: 32, width: 32) && data.classes == 10)
        #expect(data.labels(of: .train) == [3, 9] && data.labels(of: .validation) == [4])
        let batch = try data.evaluationBatches(of: .test, batchSize: 5)[0]
        #expect(batch.targets == [7] && batch.inputs.prefix(3) == [7, 8, 9] && batch.length == 3072)
    }

    private func reason(_ read: () throws -> ImageDataset) -> String {
        (#expect(throws: DatasetError.self) { try read() })?.description ?? ""
    }

    @Test func damagedMNISTIsRefused() throws {
        let labels = "train-labels-idx1-ubyte"
        for (file, bytes, text) in [
            ("train-images-idx3-ubyte", [1, 2, 3], "it is no IDX file of bytes in 3 dimensions"),
            (labels, idx([12], [UInt8](repeating: 0, count: 11)), "it has 11 bytes of data, its header says 12"),
            (labels, idx([11], [UInt8](repeating: 0, count: 11)), "it has 11 labels for 12 images"),
            (labels, idx([12], [UInt8](repeating: 10, count: 12)), "it has the label 10, expected 0 to 9"),
            (labels, idx([12], [UInt8](repeating: 0, count: 12), kind: 9), "it is no IDX file of bytes in 1 dimension"),
            (
                "t10k-images-idx3-ubyte", idx([4, 1, 1], [1, 2, 3, 4]),
                "test images are 1 by 1, not as those for training"
            ),
            ("train-images-idx3-ubyte", idx([0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF], []), "it has 0 bytes of data"),
        ] as [(String, [UInt8], String)] {
            try writeMNIST()
            try folder.write(bytes, to: file)
            let found = reason { try .mnist(contentsOf: folder.url, validationCount: 2) }
            #expect(found.contains(text), "\(found)")
        }
        try writeMNIST()
        #expect(reason { try .mnist(contentsOf: folder.url, validationCount: 12) }.contains("needs at least 13"))
        #expect(reason { try .mnist(contentsOf: folder.url, validationCount: -1) }.contains("validation examples"))
        try FileManager.default.removeItem(at: folder.url.appending(component: labels))
        #expect(reason { try .mnist(contentsOf: folder.url) }.hasSuffix("\(labels).gz: no such file or folder"))
    }

    @Test func damagedCIFARIsRefused() throws {
        let read = { try ImageDataset.cifar10(contentsOf: folder.url, validationCount: 0) }
        #expect(reason(read).contains("no files named *.bin"))
        try folder.write([UInt8](repeating: 1, count: 3073), to: "data_batch_1.bin")
        #expect(reason(read).hasSuffix("/test_batch*.bin: no such file or folder"))
        try folder.write([UInt8](repeating: 1, count: 3072), to: "test_batch.bin")
        #expect(reason(read).contains("has 3072 bytes, expected a multiple of 3073 for whole images"))
        try folder.write([UInt8](repeating: 10, count: 3073), to: "test_batch.bin")
        #expect(reason(read).contains("image 1 has the label 10, expected 0 to 9"))
        try folder.write([UInt8](), to: "test_batch.bin")
        #expect(reason(read).contains("is empty"))
    }
}
