import Foundation
import Testing

@testable import Datasets

@Suite struct ByteFilesTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    @Test func folderIsReadInOrderOfPath() throws {
        try folder.write("b", to: "b.txt")
        try folder.write("A", to: "Z.txt")
        try folder.write("ä", to: "ä.txt")
        try folder.write("deep", to: "a/z/deep.txt")
        try folder.write("hidden", to: ".hidden.txt")
        try folder.write("hidden", to: ".git/config.txt")
        try folder.write("", to: "empty.txt")
        #expect(try ByteFiles.read(folder.url) == Data("Adeepbä".utf8))
    }

    @Test func extensionsSelectFiles() throws {
        try folder.write("1", to: "a.txt")
        try folder.write("2", to: "b.md")
        try folder.write("3", to: "c")
        try folder.write(try folder.gzip(Array("4".utf8)), to: "d.txt.gz")
        #expect(try ByteFiles.read(folder.url, extensions: ["txt"]) == Data("14".utf8))
        #expect(try ByteFiles.read(folder.url, extensions: [".md", "txt"]) == Data("124".utf8))
        #expect(try ByteFiles.read(folder.url) == Data("1234".utf8))
        #expect(throws: DatasetError.noFiles(path: folder.url.path(percentEncoded: false), extensions: ["c", "h"])) {
            try ByteFiles.read(folder.url, extensions: ["c", "h"])
        }
    }

    @Test func linksAreFollowedButNotLoops() throws {
        let target = try folder.write("text", to: "target/a.txt")
        let link = folder.url.appending(component: "link")
        try FileManager.default.createSymbolicLink(at: link, withDestinationURL: target.deletingLastPathComponent())
        try FileManager.default.createSymbolicLink(
            at: folder.url.appending(path: "target/loop"), withDestinationURL: folder.url)
        try FileManager.default.createSymbolicLink(
            at: folder.url.appending(path: "target/b.txt"), withDestinationURL: target)
        try FileManager.default.createSymbolicLink(
            at: folder.url.appending(path: "target/broken.txt"),
            withDestinationURL: folder.url.appending(component: "none"))
        #expect(try ByteFiles.read(link) == Data("texttext".utf8))
    }

    @Test func missingAndEmptyPathsAreErrors() throws {
        let missing = folder.url.appending(component: "no such")
        #expect(throws: DatasetError.missingPath(missing.path(percentEncoded: false))) {
            try ByteFiles.read(missing)
        }
        #expect(throws: DatasetError.noFiles(path: folder.url.path(percentEncoded: false), extensions: [])) {
            try ByteFiles.read(folder.url)
        }
        let empty = try folder.write("", to: "empty")
        #expect(throws: DatasetError.empty(path: empty.path(percentEncoded: false))) { try ByteFiles.read(empty) }
        #expect(throws: DatasetError.self) { try ByteFiles.read(URL(filePath: "/dev/null")) }
    }

    @Test(arguments: [0, 1, 1000, 300_000, 1_000_000])
    func gzipUnpacks(count: Int) throws {
        var generator = SeededGenerator(seed: UInt64(count))
        let bytes = (0..<count).map { _ in UInt8(generator.next(below: 50)) }
        let packed = try folder.gzip(bytes)
        #expect(try Gzip.decompress(Data(packed), path: "x") == Data(bytes))
        #expect(try Gzip.decompress(Data(packed + packed), path: "x") == Data(bytes + bytes))
        #expect(try Gzip.decompress(Data(packed + [0, 0, 0]), path: "x") == Data(bytes))
    }

    @Test func cutGzipIsAnError() throws {
        let packed = try folder.gzip((0..<5000).map { UInt8(truncatingIfNeeded: $0 &* $0 >> 3) })
        for count in stride(from: 0, to: packed.count, by: 13) {
            let file = try folder.write(packed[..<count], to: "cut.gz")
            #expect(throws: DatasetError.self, "\(count) of \(packed.count)") { try ByteFiles.read(file) }
        }
    }

    @Test(arguments: 0..<100 as Range<UInt64>)
    func damagedGzipIsAnErrorOrHarmless(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let bytes = (0..<3000).map { _ in UInt8(generator.next(below: 9)) }
        var packed = try folder.gzip(bytes)
        packed[generator.next(below: packed.count)] ^= UInt8(1 << generator.next(below: 8))
        // A flag or time stamp of the header may change without harm; the bytes may not.
        if let unpacked = try? Gzip.decompress(Data(packed), path: "x") {
            #expect(unpacked == Data(bytes))
        }
    }

    @Test func fileThatIsNotGzipIsAnError() throws {
        let file = try folder.write("plain text", to: "a.gz")
        #expect(throws: DatasetError.self) { try ByteFiles.read(file) }
        let garbage = try folder.write(try folder.gzip([1, 2, 3]) + [0, 7], to: "b.gz")
        #expect(throws: DatasetError.self) { try ByteFiles.read(garbage) }
    }
}
