import ArgumentParser
import Foundation
import Torch

/// The command: its subcommands, one a file.
struct Subq: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "subq",
        abstract: "Models for long sequences: train, evaluate, generate, compare.",
        discussion: """
            subq train Recipes/demo.yaml --set data.path=TEXT
            subq evaluate runs/demo
            subq generate runs/demo --prompt 'Once upon'

            Results go to standard output, progress and errors to standard error. A user's mistake ends in one line and \
            an exit code of sysexits.h: 64 command line, 65 data, 66 no such file, 70 training diverged, 71 memory, \
            73 cannot create, 74 cannot write, 75 in use, 78 recipe.
            """,
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
        let arguments = Array(CommandLine.arguments.dropFirst())
        var command: any ParsableCommand
        do {
            try checkSubcommand(arguments[...], of: Subq.self)
            command = try Subq.parseAsRoot(arguments)
        } catch {
            Failure.exit(parsing: error)
        }
        do {
            try command.run()
            try StandardOutput.flush()
        } catch {
            Failure.exit(error)
        }
    }

    /// ArgumentParser calls an unknown subcommand an unexpected argument; this names the nearest one.
    private static func checkSubcommand(_ arguments: ArraySlice<String>, of command: any ParsableCommand.Type) throws {
        let subcommands = command.configuration.subcommands
        let shown = subcommands.filter { $0.configuration.shouldDisplay }
        guard !subcommands.isEmpty, let name = arguments.first, !name.hasPrefix("-"), name != "help" else { return }
        if let next = subcommands.first(where: { $0._commandName == name }) {
            return try checkSubcommand(arguments.dropFirst(), of: next)
        }
        let hint = NearestName.hint(for: name, among: shown.map { $0._commandName })
        throw UsageError("unknown subcommand '\(name)'; \(hint)")
    }
}
