import Foundation

/// The built command, run as a process of its own.
enum Command {
    struct Result {
        var code: Int32
        /// The process ended by a signal, such as a crash.
        var wasSignaled: Bool
        var output: String
        var errors: String

        var errorLines: [Substring] { errors.split(separator: "\n", omittingEmptySubsequences: false).dropLast() }
    }

    struct NotBuilt: Error, CustomStringConvertible {
        let path: String
        var description: String { "\(path) is not there: build the product subq" }
    }

    /// SwiftPM puts executables beside the test bundle.
    static let url = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        .appendingPathComponent("subq")

    /// Runs `subq` in a folder, through `bash` when a script is given, where `$subq` is the command.
    static func run(
        _ arguments: [String] = [], script: String? = nil, in folder: URL, input: String = ""
    ) throws -> Result {
        guard FileManager.default.isExecutableFile(atPath: url.path) else { throw NotBuilt(path: url.path) }
        let process = Process()
        process.executableURL = script == nil ? url : URL(fileURLWithPath: "/bin/bash")
        process.arguments = script.map { ["-c", $0] } ?? arguments
        process.environment = ProcessInfo.processInfo.environment.merging(["subq": url.path]) { $1 }
        process.currentDirectoryURL = folder
        // Files, since a pipe that nobody empties would stop a talkative process.
        let names = ["input", "output", "errors"].map {
            FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).\($0)")
        }
        defer { for name in names { try? FileManager.default.removeItem(at: name) } }
        try Data(input.utf8).write(to: names[0])
        for name in names[1...] { try Data().write(to: name) }
        process.standardInput = try FileHandle(forReadingFrom: names[0])
        process.standardOutput = try FileHandle(forWritingTo: names[1])
        process.standardError = try FileHandle(forWritingTo: names[2])
        try process.run()
        process.waitUntilExit()
        return Result(
            code: process.terminationStatus, wasSignaled: process.terminationReason == .uncaughtSignal,
            output: String(decoding: try Data(contentsOf: names[1]), as: UTF8.self),
            errors: String(decoding: try Data(contentsOf: names[2]), as: UTF8.self))
    }
}

/// Small recipes, data and finished runs that the tests use and spoil: each takes a copy of its own.
final class Workspace: Sendable {
    /// `text.yaml`, `copy.yaml`, `listops.yaml`, `text.txt`, and the runs `text`, `copy`, `listops`.
    static let shared = Result { try Workspace() }
    private let folder: URL

    private init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("subq-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let training = "batchSize: 2, evaluateEvery: 0, evaluationBatches: 2, checkpointEvery: 2, logEvery: 1"
        let recipes = [
            "text": """
            task: language-model
            data: {kind: bytes, path: text.txt, length: 32}
            model:
              layers: 1
              modelDim: 16
              heads: 2
              position: learned
              mixer: {name: momentum, momentum: 0.6}
            training: {steps: 4, \(training)}
            """,
            "copy": """
            task: copy
            data: {kind: copy, length: 16}
            model: {layers: 1, modelDim: 16, heads: 2, position: none, mixer: {name: linear}}
            training: {steps: 2, \(training)}
            """,
            "listops": """
            task: classification
            data: {kind: listops, length: 24, minimumLength: 5, trainingExamples: 32, validationExamples: 8, testExamples: 8}
            model: {layers: 1, modelDim: 16, heads: 2, mixer: {name: softmax}}
            training: {steps: 2, \(training)}
            """,
        ]
        let lines = (1...200).map { "The quick brown fox \($0) jumps over the lazy dog.\n" }
        try Data(lines.joined().utf8).write(to: folder.appendingPathComponent("text.txt"))
        for (name, recipe) in recipes.sorted(by: { $0.key < $1.key }) {
            try Data(recipe.utf8).write(to: folder.appendingPathComponent("\(name).yaml"))
            let result = try Command.run(["train", "\(name).yaml", "--out", name], in: folder)
            guard result.code == 0 else { throw Failed(errors: result.errors) }
        }
        Self.removed = folder.path
        atexit { try? FileManager.default.removeItem(atPath: Workspace.removed) }
    }

    struct Failed: Error {
        let errors: String
    }

    /// What `atexit` removes; a C function can capture nothing.
    nonisolated(unsafe) private static var removed = ""

    /// A copy that `body` may spoil.
    static func withCopy<Value>(_ body: (URL) throws -> Value) throws -> Value {
        let source = try shared.get().folder
        let copy = source.deletingLastPathComponent().appendingPathComponent("subq-\(UUID().uuidString)")
        try FileManager.default.copyItem(at: source, to: copy)
        defer { try? FileManager.default.removeItem(at: copy) }
        return try body(copy)
    }
}
