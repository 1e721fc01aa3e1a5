import ArgumentParser
import Foundation
import Torch

// Numbers are parsed `.unconditional`, so that `--threads -1` is refused for its value, not as an option of that name.

/// Where and with how many threads a subcommand computes.
struct ComputeOptions: ParsableArguments {
    @Option(parsing: .unconditional, help: "Threads for one operation; all cores when left out.")
    var threads: Int?

    @Option(help: "Where to compute: cpu, cuda, cuda:N or mps.")
    var device = "cpu"

    /// - Throws: ``UsageError`` or `TorchError` for what this machine does not have.
    func apply() throws {
        _ = try KernelInstructions.active()  // a wrong SUBQ_ISA is told before any work
        if let threads {
            guard (1...1024).contains(threads) else {
                throw UsageError("--threads must be from 1 to 1024, not \(threads)")
            }
            TorchRuntime.threadCount = threads
        }
        let device = try Device(named: device)
        guard device == .cpu else {
            throw UsageError("--device \(self.device): this version trains and generates on the cpu only")
        }
    }
}

extension URL {
    /// The folder that an argument names.
    ///
    /// - Throws: ``UsageError`` for empty text, which would name the current folder.
    init(folder path: String, _ argument: String) throws {
        guard !path.isEmpty else { throw UsageError("\(argument) is empty, expected the path of a folder") }
        self.init(fileURLWithPath: path)
    }
}
