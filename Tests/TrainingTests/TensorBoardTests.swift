import Foundation
import SwiftProtobuf
import Testing
import Torch

@testable import Training

struct TensorBoardTests {
    @Test(
        arguments: [
            (Data("123456789".utf8), 0xE306_9283), (Data(), 0), (Data("a".utf8), 0xC1D0_4330),
            // RFC 3720, appendix B.4.
            (Data(count: 32), 0x8A91_36AA), (Data(repeating: 0xFF, count: 32), 0x62A8_AB43),
            (Data(0..<32), 0x46DD_794E),
            (Data((0..<32).reversed()), 0x113F_DB5C),
        ] as [(Data, UInt32)])
    func checksumsMatchPublishedOnes(data: Data, checksum: UInt32) {
        #expect(data.withUnsafeBytes { CRC32C.checksum($0) } == checksum)
    }

    @Test func checksumsAddUpInParts() {
        let bytes = (0..<1000).map { _ in UInt8.random(in: 0...255) }
        for cut in [0, 1, 7, 8, 9, 500, 999, 1000] {
            var crc = CRC32C()
            bytes[..<cut].withUnsafeBytes { crc.update($0) }
            bytes[cut...].withUnsafeBytes { crc.update($0) }
            #expect(crc.value == bytes.withUnsafeBytes { CRC32C.checksum($0) })
        }
    }

    /// The start of a file as TensorFlow writes it: the version event at time 0.
    @Test func framingMatchesTheFormat() {
        let data = Data([0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0x1A, 0x0D] + Array("brain.Event:2".utf8))
        let record = EventRecord.framed(data)
        #expect(record.count == data.count + 16)
        #expect(record.prefix(8) == Data([24, 0, 0, 0, 0, 0, 0, 0]))
        // Masked CRC-32C of the eight bytes of the length 24, known from every event file there is.
        #expect(record[8..<12] == Data([0xA3, 0x7F, 0x4B, 0x22]))
    }

    private func events(_ url: URL) throws -> [TensorBoardEvent] {
        let (records, end) = EventRecord.read(try Data(contentsOf: url))
        #expect(try end == Data(contentsOf: url).count)
        return try records.map { try TensorBoardEvent(serializedBytes: $0) }
    }

    @Test func writesScalarsAndText() throws {
        try withTemporaryFolder { folder in
            let writer = try TensorBoardWriter(
                folder: folder, resumingAfter: nil, now: { Date(timeIntervalSince1970: 7) })
            try writer.scalars(["loss/train": 0.5, "rate": 3e-4], step: 10)
            try writer.text("recipe", "*hello*", step: 0)
            try writer.scalars([:], step: 11)
            try writer.close()
            let events = try events(writer.url)
            #expect(events.count == 3)
            #expect(events[0].fileVersion == "brain.Event:2" && events[0].wallTime == 7)
            #expect(events[1].step == 10 && events[1].summary.value.map(\.tag) == ["loss/train", "rate"])
            #expect(events[1].summary.value[0].simpleValue == 0.5)
            #expect(events[2].summary.value[0].tensor.stringVal == [Data("*hello*".utf8)])
        }
    }

    @Test func aResumedRunContinuesTheFile() throws {
        try withTemporaryFolder { folder in
            let writer = try TensorBoardWriter(folder: folder)
            for step in 1...5 { try writer.scalar("loss", 1, step: step) }
            try OutputFile(appendingTo: writer.url.path).write(Data([24, 0, 0, 0, 0, 0]))
            let resumed = try TensorBoardWriter(folder: folder, resumingAfter: 3)
            #expect(resumed.url == writer.url)
            try resumed.scalar("loss", 2, step: 4)
            let events = try events(writer.url)
            #expect(events.map(\.step) == [0, 1, 2, 3, 4, 5, 4, 4])
            #expect(events[6].sessionLog.status == .start)
            // A new run in the same second gets a file of its own.
            #expect(try TensorBoardWriter(folder: folder).url != writer.url)
        }
    }

    /// However a file ends or is damaged, what is whole before that is read and nothing else.
    @Test func brokenFilesAreReadAsFarAsTheyGo() {
        let payloads = (0..<5).map { Data(repeating: UInt8($0), count: $0 * 7) }
        let file = payloads.reduce(Data()) { $0 + EventRecord.framed($1) }
        for count in 0...file.count {
            let (records, end) = EventRecord.read(file.prefix(count))
            #expect(records == Array(payloads.prefix(records.count)) && end <= count)
        }
        for index in file.indices {
            var damaged = file
            damaged[index] ^= 0x10
            let records = EventRecord.read(damaged).records
            #expect(records.count < 5 && records == Array(payloads.prefix(records.count)))
        }
    }
}
