import ArgumentParser
import Conformance
import Datasets
import Foundation
import SequenceMixers
import Torch
import TorchNN
import Training

/// A user's mistake found by a subcommand itself: one line, exit code 64.
struct UsageError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The end of the command after an error: one line on standard error and an exit code of sysexits.h.
enum Failure {
    static func exit(_ error: any Error) -> Never {
        let code = exitCode(for: error)
        if let own = error as? ExitCode { Foundation.exit(own.rawValue) }
        if isArgumentParsers(error) {
            if code == 0 {
                print(Subq.fullMessage(for: error))
            } else {
                complain(Subq.message(for: error))
            }
        } else {
            complain("\(error)")
        }
        Foundation.exit(code)
    }

    /// One line on standard error.
    static func complain(_ text: String) {
        let line = text.split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }.joined(
            separator: " ")
        FileHandle.standardError.write(Data("subq: \(line)\n".utf8))
    }

    private static func isArgumentParsers(_ error: any Error) -> Bool {
        switch error {
        case is UsageError, is RecipeError, is DatasetError, is SafetensorsError, is RunError, is FileWriteError,
            is ConfigurationError, is ConformanceError, is TorchError, is DivergenceError, is LoadError:
            false
        default: true
        }
    }

    private static func exitCode(for error: any Error) -> Int32 {
        switch error {
        case is UsageError: EX_USAGE
        case let error as RecipeError: error.isAboutFile ? EX_NOINPUT : EX_CONFIG
        case is ConfigurationError: EX_CONFIG
        case let error as DatasetError: error.isAboutFile ? EX_NOINPUT : EX_DATAERR
        case is SafetensorsError, is LoadError, is ConformanceError: EX_DATAERR
        case let error as RunError:
            switch error {
            case .exists: EX_CANTCREAT
            case .notARun: EX_NOINPUT
            case .locked: EX_TEMPFAIL
            case .damaged, .noWholeCheckpoint: EX_DATAERR
            }
        case is FileWriteError: EX_IOERR
        case is DivergenceError: EX_SOFTWARE
        case let error as TorchError:
            error.kind == .outOfMemory ? EX_OSERR : (error.operation == "device" ? EX_USAGE : EX_SOFTWARE)
        default: Subq.exitCode(for: error).rawValue
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

extension RecipeError {
    /// Whether the recipe's file is missing or cannot be read, rather than saying something wrong.
    fileprivate var isAboutFile: Bool {
        if case .unreadable = problem { return true }
        return false
    }
}

extension DatasetError {
    /// Whether a file is missing or cannot be read, rather than holding something wrong.
    fileprivate var isAboutFile: Bool {
        switch self {
        case .missingPath, .unreadable, .noFiles: true
        default: false
        }
    }
}
