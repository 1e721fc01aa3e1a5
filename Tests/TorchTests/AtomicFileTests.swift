import Foundation
import Testing

@testable import Torch

struct AtomicFileTests {
    struct Stop: Error {}

    @Test func writesAndReplaces() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("a file with spaces.txt")
            try AtomicFile.write(Data("one".utf8), to: url)
            try AtomicFile.write(Data("two".utf8), to: url)
            #expect(try Data(contentsOf: url) == Data("two".utf8))
            #expect(try names(in: folder) == ["a file with spaces.txt"])
        }
    }

    @Test func streamsInParts() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("parts")
            let count = try AtomicFile.write(to: url) { file in
                for part in 0..<100 { try file.write(Data([UInt8(part)])) }
                #expect(!FileManager.default.fileExists(atPath: url.path))
                return file.count
            }
            #expect(count == 100)
            #expect(try Data(contentsOf: url) == Data(0..<100))
        }
    }

    @Test func aFailureInTheBodyLeavesTheOldFile() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("kept")
            try AtomicFile.write(Data("old".utf8), to: url)
            #expect(throws: Stop.self) {
                try AtomicFile.write(to: url) { file in
                    try file.write(Data("half".utf8))
                    throw Stop()
                }
            }
            #expect(try Data(contentsOf: url) == Data("old".utf8))
            #expect(try names(in: folder) == ["kept"])
        }
    }

    @Test func aLinkStaysALink() throws {
        try withTemporaryFolder { folder in
            let target = folder.appendingPathComponent("target")
            let link = folder.appendingPathComponent("link")
            try AtomicFile.write(Data("old".utf8), to: target)
            try FileManager.default.createSymbolicLink(at: link, withDestinationURL: target)
            try AtomicFile.write(Data("new".utf8), to: link)
            #expect(try Data(contentsOf: target) == Data("new".utf8))
            #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link.path).hasSuffix("target"))
        }
    }

    @Test func errorsNameTheFileAndTheReason() throws {
        try withTemporaryFolder { folder in
            let missing = folder.appendingPathComponent("no/such/file")
            #expect(throws: FileWriteError(operation: "create", path: missing.path, code: ENOENT)) {
                try AtomicFile.write(Data(), to: missing)
            }
            let taken = folder.appendingPathComponent("folder")
            try FileManager.default.createDirectory(at: taken, withIntermediateDirectories: false)
            let error = #expect(throws: FileWriteError.self) { try AtomicFile.write(Data(), to: taken) }
            #expect(error?.description == "cannot write '\(taken.path)': it is a folder")
            #expect(try names(in: folder) == ["folder"])
        }
    }

    @Test(.enabled(if: FileManager.default.fileExists(atPath: "/dev/full")))
    func aFullDiskIsSaid() throws {
        let file = try OutputFile(appendingTo: "/dev/full")
        let error = #expect(throws: FileWriteError.self) { try file.write(Data("x".utf8)) }
        #expect(error?.description == "cannot write '/dev/full': the disk is full")
    }

    @Test func appendsAndShortens() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("log")
            for _ in 0..<2 {
                let file = try OutputFile(appendingTo: url.path)
                try file.write(Data("abc".utf8))
                try file.close()
            }
            let file = try OutputFile(appendingTo: url.path)
            #expect(file.count == 6)
            try file.truncate(to: 4)
            try file.write(Data("!".utf8))
            try file.close()
            #expect(try Data(contentsOf: url) == Data("abca!".utf8))
            #expect(throws: FileWriteError.self) { try OutputFile(creating: url.path) }
        }
    }

    @Test func removesWhatAKilledWriterLeft() throws {
        try withTemporaryFolder { folder in
            try Data().write(to: folder.appendingPathComponent(AtomicFile.temporaryPrefix + "1x"))
            try Data().write(to: folder.appendingPathComponent("kept"))
            AtomicFile.removeTemporaries(in: folder)
            #expect(try names(in: folder) == ["kept"])
        }
    }

    private func withTemporaryFolder(_ body: (URL) throws -> Void) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try body(folder)
    }

    private func names(in folder: URL) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
    }
}
