import Foundation
import Testing
import Torch

@testable import Training

struct RunDirectoryTests {
    @Test func aNewRunMayNotReplaceAnOldOne() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("a/new run")
            do {
                let run = try RunDirectory.create(at: url)
                #expect(!run.isBegun)
                try AtomicFile.write(Data("name: x\n".utf8), to: run.recipe)
            }
            #expect(throws: RunError.exists(path: url.relativePath)) { try RunDirectory.create(at: url) }
            #expect(try RunDirectory.resume(at: url).isBegun)
            #expect(try RunDirectory.open(at: url).isBegun)
        }
    }

    @Test func aRunKilledBeforeItsRecipeCanBeTakenUp() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("run")
            _ = try RunDirectory.create(at: url)
            #expect(try !RunDirectory.create(at: url).isBegun)
            #expect(try !RunDirectory.resume(at: url).isBegun)
            #expect(throws: RunError.self) { try RunDirectory.open(at: url) }
        }
    }

    @Test func otherFoldersAndFilesAreRefused() throws {
        try withTemporaryFolder { folder in
            try Data().write(to: folder.appendingPathComponent("holiday.jpg"))
            for url in [folder, folder.appendingPathComponent("holiday.jpg")] {
                for open in [RunDirectory.create, RunDirectory.resume, RunDirectory.open] {
                    #expect(throws: (any Error).self) { try open(url) }
                }
            }
            let missing = folder.appendingPathComponent("missing")
            #expect(throws: RunError.notARun(path: missing.relativePath, reason: "no such folder")) {
                try RunDirectory.resume(at: missing)
            }
            let error = #expect(throws: FileWriteError.self) {
                try RunDirectory.create(at: folder.appendingPathComponent("holiday.jpg/run"))
            }
            #expect(error?.code == ENOTDIR)
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["holiday.jpg"])
        }
    }

    @Test func oneTrainerAtATime() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("run")
            let process = Int(ProcessInfo.processInfo.processIdentifier)
            var run: RunDirectory? = try RunDirectory.create(at: url)
            #expect(throws: RunError.locked(path: url.relativePath, process: process)) {
                try RunDirectory.resume(at: url)
            }
            #expect(run != nil)
            run = nil
            #expect(throws: Never.self) { try RunDirectory.resume(at: url) }
        }
    }
}

struct CheckpointStoreTests {
    private func write(_ store: CheckpointStore, _ step: Int) throws {
        try store.save(step: step) { folder in
            try Data("step \(step)".utf8).write(to: folder.appendingPathComponent("state"))
            try Data(repeating: UInt8(truncatingIfNeeded: step), count: 3000)
                .write(to: folder.appendingPathComponent("model"))
        }
    }

    private func names(_ store: CheckpointStore) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: store.folder.path).sorted()
    }

    private func withStore(_ body: (CheckpointStore) throws -> Void) throws {
        try withTemporaryFolder { try body(CheckpointStore(folder: $0.appendingPathComponent("checkpoint"))) }
    }

    @Test func keepsTheNewestTwo() throws {
        try withStore { store in
            #expect(try store.newest() == nil)
            for step in [0, 100, 200, 300] { try write(store, step) }
            #expect(try names(store) == ["step-00000200", "step-00000300"])
            let newest = try #require(try store.newest())
            #expect(newest.step == 300)
            #expect(try String(contentsOf: newest.file("state"), encoding: .utf8) == "step 300")
        }
    }

    @Test func aFailureLeavesTheOldOnes() throws {
        struct Stop: Error {}
        try withStore { store in
            try write(store, 1)
            #expect(throws: Stop.self) {
                try store.save(step: 2) { folder in
                    try Data("half".utf8).write(to: folder.appendingPathComponent("state"))
                    throw Stop()
                }
            }
            #expect(try names(store) == ["step-00000001"])
            #expect(try store.newest()?.step == 1)
        }
    }

    /// Every kind of damage to the newest: it is named, and the one before is used.
    @Test(arguments: ["cut", "flip", "grow", "remove", "no manifest", "bad manifest", "foreign manifest"])
    func damageIsFoundAndPassedOver(kind: String) throws {
        try withStore { store in
            for step in [100, 200] { try write(store, step) }
            let newest = try #require(try store.newest())
            let model = newest.file("model")
            let manifest = newest.file("manifest.json")
            var data = try Data(contentsOf: model)
            switch kind {
            case "cut": try data.prefix(1234).write(to: model)
            case "flip":
                data[2000] ^= 1
                try data.write(to: model)
            case "grow": try (data + [0]).write(to: model)
            case "remove": try FileManager.default.removeItem(at: model)
            case "no manifest": try FileManager.default.removeItem(at: manifest)
            case "bad manifest": try Data("{".utf8).write(to: manifest)
            default:
                let text = try String(contentsOf: manifest, encoding: .utf8)
                try Data(text.replacing("\"model\"", with: "\"../model\"").utf8).write(to: manifest)
            }
            var warnings: [String] = []
            #expect(try store.newest { warnings.append($0) }?.step == 100)
            #expect(warnings.count == 1)
            #expect(warnings.first?.contains("step-00000200") == true)

            // Training goes on from 100 and reaches 200 again.
            try write(store, 150)
            #expect(try names(store) == ["step-00000100", "step-00000150"])
            try write(store, 200)
            #expect(try store.newest { Issue.record("\($0)") }?.step == 200)
        }
    }

    @Test func aStepCanBeWrittenAgain() throws {
        try withStore { store in
            for _ in 0..<4 { try write(store, 200) }
            #expect(try names(store).count == 2)
            #expect(try store.newest()?.step == 200)
        }
    }

    @Test func noWholeCheckpointIsAnError() throws {
        try withStore { store in
            try write(store, 100)
            let newest = try #require(try store.newest())
            try Data().write(to: newest.file("model"))
            let error = #expect(throws: RunError.self) { try store.newest() }
            #expect(error?.description.contains("model' is damaged: it has 0 bytes, expected 3000") == true)
        }
    }

    @Test func leftoversOfAKilledWriterAreRemoved() throws {
        try withStore { store in
            try write(store, 100)
            let leftover = store.folder.appendingPathComponent(".partial-step-00000200")
            try FileManager.default.createDirectory(at: leftover, withIntermediateDirectories: false)
            try Data("half".utf8).write(to: leftover.appendingPathComponent("model"))
            #expect(try store.newest()?.step == 100)
            try write(store, 200)
            #expect(try names(store) == ["step-00000100", "step-00000200"])
            #expect(try store.newest()?.step == 200)
        }
    }
}

struct KillTests {
    /// Killed at a random moment while it writes checkpoints without end: what is left is always whole.
    @Test(arguments: 0..<4) func aKillLeavesAWholeCheckpoint(trial: Int) async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let path = folder.path
        for _ in 0..<3 {
            await #expect(processExitsWith: .signal(SIGKILL)) { [path = path as String] in
                let store = CheckpointStore(folder: URL(fileURLWithPath: path).appendingPathComponent("checkpoint"))
                let first = try store.newest { _ in exit(1) }?.step ?? 0
                try store.save(step: first) { try Data().write(to: $0.appendingPathComponent("state")) }
                let delay = UInt32.random(in: 0...30_000)
                Thread.detachNewThread {
                    usleep(delay)
                    kill(getpid(), SIGKILL)
                }
                for step in first + 1...Int.max {
                    try store.save(step: step) { folder in
                        for name in ["model", "optimizer"] {
                            let data = Data(repeating: UInt8(truncatingIfNeeded: step), count: 50_000)
                            try AtomicFile.write(data, to: folder.appendingPathComponent(name))
                        }
                    }
                }
            }
        }
        let store = CheckpointStore(folder: folder.appendingPathComponent("checkpoint"))
        let newest = try #require(try store.newest { Issue.record("\($0)") })
        if newest.step > 0, FileManager.default.fileExists(atPath: newest.file("model").path) {
            #expect(try Data(contentsOf: newest.file("model")).first == UInt8(truncatingIfNeeded: newest.step))
        }
    }
}

struct MetricsLogTests {
    private func record(_ step: Int) -> MetricsRecord {
        MetricsRecord(step: step, split: "train", values: ["loss": 1 / Double(step + 1), "tokens": 3])
    }

    @Test func linesAreJSON() {
        #expect(record(1).json == #"{"step":1,"split":"train","loss":0.5,"tokens":3.0}"#)
        let odd = MetricsRecord(step: 2, split: "a\"b", values: ["x": .nan, "y": -.infinity])
        #expect(odd.json == #"{"step":2,"split":"a\"b","x":null,"y":null}"#)
    }

    @Test func aResumedRunHasEachStepOnce() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("metrics.jsonl")
            let log = try MetricsLog(at: url)
            for step in 0..<10 { try log.append(record(step)) }
            // Killed in the middle of a line.
            try OutputFile(appendingTo: url.path).write(Data(#"{"step":10,"spl"#.utf8))
            #expect(try MetricsLog.read(url) == (0..<10).map(record))

            let resumed = try MetricsLog(at: url, resumingAfter: 6)
            for step in 7..<9 { try resumed.append(record(step)) }
            #expect(try MetricsLog.read(url) == (0..<9).map(record))
            let text = try String(contentsOf: url, encoding: .utf8)
            #expect(text.hasSuffix("\n") && text.split(separator: "\n").count == 9)

            _ = try MetricsLog(at: url)
            #expect(try MetricsLog.read(url) == [])
        }
    }

    @Test func aDamagedLineIsNamed() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("metrics.jsonl")
            try Data((record(0).json + "\nnonsense\n" + record(1).json + "\n").utf8).write(to: url)
            #expect(throws: RunError.damaged(path: url.path, reason: "line 2 is no record of metrics")) {
                try MetricsLog.read(url)
            }
            #expect(throws: RunError.self) { try MetricsLog.read(folder.appendingPathComponent("missing")) }
        }
    }

    @Test func numbersComeBackExactly() throws {
        try withTemporaryFolder { folder in
            let url = folder.appendingPathComponent("metrics.jsonl")
            let log = try MetricsLog(at: url)
            let values = [0.1, 1e-300, 1e22, 123_456_789.123, -0.0, .pi, .leastNonzeroMagnitude]
            for (step, value) in values.enumerated() {
                try log.append(MetricsRecord(step: step, split: "x", values: ["v": value]))
            }
            #expect(try MetricsLog.read(url).map { $0.values["v"] } == values)
        }
    }
}

struct InterruptFlagTests {
    @Test func theFirstSignalIsNoted() async {
        await #expect(processExitsWith: .success) {
            let flag = InterruptFlag()
            guard flag.receivedSignal == nil else { exit(1) }
            kill(getpid(), SIGTERM)
            for _ in 0..<1000 where flag.receivedSignal == nil { usleep(1000) }
            exit(flag.receivedSignal == SIGTERM ? 0 : 2)
        }
    }

    @Test func theSecondSignalEndsTheProcess() async {
        await #expect(processExitsWith: .exitCode(128 + SIGINT)) {
            let flag = InterruptFlag()
            kill(getpid(), SIGTERM)
            for _ in 0..<1000 where flag.receivedSignal == nil { usleep(1000) }
            kill(getpid(), SIGINT)
            sleep(10)
            exit(flag.receivedSignal ?? 0)
        }
    }
}
