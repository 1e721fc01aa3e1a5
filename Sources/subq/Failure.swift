import ArgumentParser
import Conformance
import Datasets
import Foundation
import SequenceMixers
import Torch
import TorchNN
import TorchOptimizers
import Training

/// A user's mistake found by a subcommand itself: one line, exit code 64.
struct UsageError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The end of the command after an error: one line on standard error and an exit code of sysexits.h.
enum Failure {
    /// After what ArgumentParser threw: a request for help, or arguments that do not parse.
    static func exit(parsing error: any Error) -> Never {
        if let error = error as? UsageError { exit(error) }
        let code = Subq.exitCode(for: error).rawValue
        if code == 0 {
            print(Subq.fullMessage(for: error))
        } else {
            complain(Subq.message(for: error))
        }
        Foundation.exit(code)
    }

    /// After what a subcommand threw.
    static func exit(_ error: any Error) -> Never {
        switch error {
        case let error as ExitCode: Foundation.exit(error.rawValue)
        // A request for help also comes as the error of a command that ArgumentParser makes of `--help`.
        case _ where Subq.exitCode(for: error) == .success: exit(parsing: error)
        case is StandardOutput.ReaderGone: Foundation.exit(0)
        default:
            complain("\(error)")
            Foundation.exit(exitCode(for: error))
        }
    }

    /// One line on standard error.
    static func complain(_ text: String) {
        let lines = text.split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }
        StandardErrorOutput().write("subq: \(lines.joined(separator: " "))\n")
    }

    private static func exitCode(for error: any Error) -> Int32 {
        switch error {
        case is UsageError: EX_USAGE
        case let error as RecipeError: exitCode(for: error.problem)
        case is ConfigurationError: EX_CONFIG
        case is MeasuringProcess.Ended: EX_OSERR
        case let error as DatasetError: exitCode(for: error)
        case let error as RunError: exitCode(for: error)
        case let error as ConformanceError: error.isMissingFile ? EX_NOINPUT : EX_DATAERR
        case is SafetensorsError, is LoadError, is OptimizerStateError: EX_DATAERR
        case let error as FileWriteError: error.operation == "create" ? EX_CANTCREAT : EX_IOERR
        case let error as TorchError:
            error.kind == .outOfMemory
                ? EX_OSERR : (["device", "SUBQ_ISA"].contains(error.operation) ? EX_USAGE : EX_SOFTWARE)
        default: EX_SOFTWARE
        }
    }

    private static func exitCode(for problem: RecipeError.Problem) -> Int32 {
        switch problem {
        case .unreadable: EX_NOINPUT
        case .override: EX_USAGE
        case .broken, .unknownKey, .missingKey, .invalid: EX_CONFIG
        }
    }

    private static func exitCode(for error: DatasetError) -> Int32 {
        switch error {
        case .missingPath, .unreadable, .noFiles: EX_NOINPUT
        case .unwritable: EX_CANTCREAT
        default: EX_DATAERR
        }
    }

    private static func exitCode(for error: RunError) -> Int32 {
        switch error {
        case .exists, .cannotBegin: EX_CANTCREAT
        case .notARun: EX_NOINPUT
        case .locked: EX_TEMPFAIL
        case .damaged, .noWholeCheckpoint: EX_DATAERR
        }
    }
}

extension Encodable {
    /// Prints the value as JSON on standard output.
    func printJSON() throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(self), as: UTF8.self))
    }
}
