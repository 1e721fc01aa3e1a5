import ArgumentParser
import Conformance
import Foundation
import Torch

struct ConformanceCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "conformance", abstract: "Compare the mechanisms with golden files made by their authors' code.")

    @Argument(help: "Golden files, or folders of them.")
    var paths: [String]

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        _ = try KernelInstructions.active()
        let files = try paths.flatMap(GoldenFiles.find)
        var reports: [ConformanceReport] = []
        for file in files {
            let report = ConformanceRunner.check(file, named: file.relativePath)
            reports.append(report)
            if !json { print(report.text) }
        }
        let failed = reports.count { !$0.passed }
        if json {
            try reports.printJSON()
        } else {
            print("\(reports.count - failed) passed, \(failed) failed")
        }
        if failed > 0 { throw ExitCode(1) }
    }
}
