import ArgumentParser
import Foundation
import Torch

/// Where and with how many threads a subcommand computes.
struct ComputeOptions: ParsableArguments {
    @Option(help: "Threads for one operation; all cores when left out.")
    var threads: Int?

    @Option(help: "Where to compute: cpu, cuda, cuda:N or mps.")
    var device = "cpu"

    /// - Throws: ``UsageError`` or `TorchError` for what this machine does not have.
    func apply() throws {
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
