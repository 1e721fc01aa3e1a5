import ArgumentParser
import Foundation
import Torch

/// The command: its subcommands, one a file.
struct Subq: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "subq",
        abstract: "Models for long sequences: train, evaluate, generate, compare.",
        version: "0.1.0",
        subcommands: [
            List.self, Train.self, Evaluate.self, Generate.self, DataCommand.self, Bench.self, ConformanceCommand.self,
            Doctor.self,
        ])
}

@main
enum Main {
    static func main() {
        // A reader that goes away (`subq list | head`) ends the output, not the process.
        signal(SIGPIPE, SIG_IGN)
        // For comparison only: the system's allocator page-faults every large temporary in anew.
        if ProcessInfo.processInfo.environment["SUBQ_ALLOCATOR"] != "system" { TorchRuntime.useCachingAllocator() }
        do {
            var command = try Subq.parseAsRoot(Array(CommandLine.arguments.dropFirst()))
            try command.run()
        } catch {
            Failure.exit(error)
        }
    }
}
