import ArgumentParser
import Foundation
import Torch

struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Say what this program runs on.")

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        let header = TorchRuntime.headerVersion
        let library = TorchRuntime.libraryVersion
        let rows = [
            ("LibTorch headers", header),
            (
                "LibTorch library",
                library + (library.hasPrefix(header) ? "" : "  (differs from the headers: build again)")
            ),
            ("threads", "\(TorchRuntime.threadCount) of \(ProcessInfo.processInfo.activeProcessorCount) cores"),
            ("instruction set", TorchRuntime.instructionSet),
            ("allocator", TorchRuntime.usesCachingAllocator ? "caching" : "system"),
            ("fused kernels", "causal linear attention and momentum attention (chunked, forward and backward)"),
            (
                "devices",
                (["cpu"] + [Device.cuda(0), .mps].filter(\.isAvailable).map(\.description)).joined(separator: ", ")
            ),
        ]
        if json { return try Dictionary(uniqueKeysWithValues: rows).printJSON() }
        for (name, value) in rows { print(name.padding(toLength: 18, withPad: " ", startingAt: 0) + value) }
    }
}
