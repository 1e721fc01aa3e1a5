import ArgumentParser
import Datasets
import Foundation

struct DataCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "data", abstract: "Make a data set.", subcommands: [ListOps.self])

    struct ListOps: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "listops",
            abstract:
                "Long Range Arena's ListOps: basic_train.tsv, basic_val.tsv and basic_test.tsv, every answer proved twice."
        )

        @Option(help: "The folder to write to.")
        var out: String
        @Option(parsing: .unconditional, help: "Expressions of the training split.")
        var train = 96_000
        @Option(parsing: .unconditional, help: "Expressions of the validation split.")
        var validation = 2_000
        @Option(parsing: .unconditional, help: "Expressions of the test split.")
        var test = 2_000
        @Option(parsing: .unconditional, help: "Expressions have more tokens than this.")
        var lengthAbove = 500
        @Option(parsing: .unconditional, help: "Expressions have fewer tokens than this.")
        var lengthBelow = 2_000
        @Option(parsing: .unconditional, help: "Nesting of operators.")
        var maximumDepth = 10
        @Option(parsing: .unconditional, help: "Arguments of an operator.")
        var maximumArguments = 10
        @Option(parsing: .unconditional, help: "Seed of the generator.")
        var seed = 0

        func run() throws {
            for (name, value, least) in [
                ("train", train, 1), ("validation", validation, 1), ("test", test, 1), ("length-above", lengthAbove, 0),
                ("length-below", lengthBelow, lengthAbove + 2), ("maximum-depth", maximumDepth, 2),
                ("maximum-arguments", maximumArguments, 2), ("seed", seed, 0),
            ] where value < least {
                throw UsageError("--\(name) must be at least \(least), not \(value)")
            }
            var configuration = ListOpsConfiguration()
            configuration.maximumDepth = maximumDepth
            configuration.maximumArguments = maximumArguments
            configuration.lengthAbove = lengthAbove
            configuration.lengthBelow = lengthBelow
            configuration.trainCount = train
            configuration.validationCount = validation
            configuration.testCount = test
            configuration.seed = UInt64(seed)
            let folder = try URL(folder: out, "--out")
            // First, since generating takes a while.
            try ListOpsFile.makeFolder(folder)
            let splits = try ListOpsSplits(generating: configuration)
            try ListOpsFile.write(splits, to: folder)
            print("wrote \(train + validation + test) expressions to \(folder.relativePath)")
        }
    }
}
