import ArgumentParser
import Foundation
import Torch

struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Say what this program runs on.")

    @Flag(help: "Print JSON.")
    var json = false

    private struct Row {
        let name: String
        let values: [String]

        init(_ name: String, _ values: String...) { self.init(name, values) }

        init(_ name: String, _ values: [String]) {
            self.name = name
            self.values = values
        }
    }

    func run() throws {
        let header = TorchRuntime.headerVersion
        let library = TorchRuntime.libraryVersion
        let warning = library.hasPrefix(header) ? "" : "  (differs from the headers: build again)"
        let isForced = ProcessInfo.processInfo.environment["SUBQ_ISA"].map { !$0.isEmpty } ?? false
        let active = try KernelInstructions.active()
        let others = KernelInstructions.available.filter { $0 != active }.joined(separator: ", ")
        let rows = [
            Row("LibTorch headers", header),
            Row("LibTorch library", library + warning),
            Row("threads", "\(TorchRuntime.threadCount) of \(ProcessInfo.processInfo.activeProcessorCount) cores"),
            Row("instruction set", TorchRuntime.instructionSet + "  (LibTorch's own operations)"),
            Row(
                "kernels run with",
                active + (isForced ? "  (forced by SUBQ_ISA; " : "  (SUBQ_ISA can force another; ")
                    + "there are \(others))"),
            Row("allocator", TorchRuntime.usesCachingAllocator ? "caching" : "system"),
            Row(
                "devices",
                (["cpu"] + [Device.cuda(0), .mps].filter(\.isAvailable).map(\.description)).joined(separator: ", ")),
            Row("fused kernels", KernelInstructions.fusedKernels),
        ]
        if json {
            let values = rows.map { row in (row.name, row.values.joined(separator: "; ")) }
            return try Dictionary(uniqueKeysWithValues: values).printJSON()
        }
        for row in rows {
            for (index, value) in row.values.enumerated() {
                print((index == 0 ? row.name : "").padding(toLength: 18, withPad: " ", startingAt: 0) + value)
            }
        }
    }
}
