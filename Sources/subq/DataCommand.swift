import ArgumentParser
import Datasets
import Foundation

struct DataCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "data", abstract: "Make a data set.", subcommands: [ListOps.self, Copy.self])

    struct ListOps: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "listops",
            abstract:
                "Long Range Arena's ListOps: basic_train.tsv, basic_val.tsv and basic_test.tsv, every answer proved twice.",
            usage: "subq data listops --out <dir> [options]"
        )

        @Option(help: ArgumentHelp("The folder to write to.", valueName: "dir"))
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
            try DataCommand.check([
                ("train", train, 1), ("validation", validation, 1), ("test", test, 1), ("length-above", lengthAbove, 0),
                ("length-below", lengthBelow, lengthAbove + 2), ("maximum-depth", maximumDepth, 2),
                ("maximum-arguments", maximumArguments, 2), ("seed", seed, 0),
            ])
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

    struct Copy: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "copy",
            abstract:
                "The copy task of the Linear Transformer paper, a sequence a line: copy_train.txt and copy_test.txt.")

        @Option(help: "The folder to write to.")
        var out: String
        @Option(parsing: .unconditional, help: "Sequences of the training split.")
        var train = 10_000
        @Option(parsing: .unconditional, help: "Sequences of the test split.")
        var test = 1_000
        @Option(parsing: .unconditional, help: "Tokens of a sequence.")
        var length = 128
        @Option(parsing: .unconditional, help: "Symbols besides the separator.")
        var symbols = 10
        @Option(parsing: .unconditional, help: "Seed of the generator.")
        var seed = 0

        func run() throws {
            try DataCommand.check([("train", train, 1), ("test", test, 1), ("seed", seed, 0)])
            let task = try CopyTask(length: length, symbols: symbols)
            let folder = try URL(folder: out, "--out")
            try ListOpsFile.makeFolder(folder)
            // Two streams that never meet: even seeds train, odd ones test.
            try task.write(count: train, seed: 2 * UInt64(seed), to: folder.appending(component: "copy_train.txt"))
            try task.write(count: test, seed: 2 * UInt64(seed) + 1, to: folder.appending(component: "copy_test.txt"))
            print("wrote \(train + test) sequences to \(folder.relativePath)")
        }
    }

    private static func check(_ options: [(name: String, value: Int, least: Int)]) throws {
        for (name, value, least) in options where value < least {
            throw UsageError("--\(name) must be at least \(least), not \(value)")
        }
    }
}
