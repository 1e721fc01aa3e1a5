import Foundation
import Testing

/// What the command says and does when nothing, or something outside it, is wrong.
@Suite(.serialized) struct CommandTests {
    @Test func helpAndVersion() throws {
        try Workspace.withCopy { folder in
            for arguments in [
                [], ["--help"], ["help", "train"], ["train", "--help"], ["bench", "lm", "-h"],
                ["data", "listops", "-h"],
            ] {
                let result = try Command.run(arguments, in: folder)
                #expect(result.code == 0 && result.errors == "", "\(result)")
                #expect(result.output.contains("USAGE: subq"))
                // Wide enough for every terminal.
                #expect(result.output.split(separator: "\n").allSatisfy { $0.count <= 100 })
            }
            let version = try Command.run(["--version"], in: folder)
            #expect(version.code == 0 && version.output.wholeMatch(of: /\d+\.\d+\.\d+\n/) != nil)
        }
    }

    /// JSON goes to standard output, and nothing else does.
    @Test func standardOutputHoldsResultsOnly() throws {
        try Workspace.withCopy { folder in
            for arguments in [["list", "--json"], ["doctor", "--json"], ["evaluate", "copy", "--json"]] {
                let result = try Command.run(arguments, in: folder)
                #expect(result.code == 0 && result.errors == "", "\(result)")
                #expect(throws: Never.self) { try JSONSerialization.jsonObject(with: Data(result.output.utf8)) }
            }
            let train = try Command.run(["train", "copy.yaml", "--out", "new"], in: folder)
            #expect(train.code == 0 && train.output == "")
        }
    }

    @Test func generateContinuesStandardInput() throws {
        try Workspace.withCopy { folder in
            let result = try Command.run(
                ["generate", "text", "--prompt", "-", "--tokens", "5", "--temperature", "0"], in: folder, input: "The ")
            #expect(result.code == 0 && result.errors == "" && result.output.hasSuffix("\n"))
        }
    }

    /// A golden file that cannot be read is a failure with its name, like one whose numbers are wrong.
    @Test(arguments: ["text.txt", "text/model.safetensors", "cut.safetensors"])
    func conformanceReportsABadFile(name: String) throws {
        try Workspace.withCopy { folder in
            let script = "head -c 3000 text/model.safetensors > cut.safetensors; \"$subq\" conformance \(name)"
            let result = try Command.run(script: script, in: folder)
            #expect(result.code == 1 && result.errors == "")
            #expect(result.output.hasPrefix("FAILED  \(name)"))
            #expect(result.output.hasSuffix("\n0 passed, 1 failed\n"))
        }
    }

    /// A reader that goes away is no mistake.
    @Test(arguments: [
        "list", "list --json", "generate text --tokens 20", "evaluate copy", "train copy.yaml --out new",
    ])
    func aClosedPipeEndsQuietly(arguments: String) throws {
        try Workspace.withCopy { folder in
            let script = "\"$subq\" \(arguments) | true; test ${PIPESTATUS[0]} = 0"
            let result = try Command.run(script: script, in: folder)
            #expect(result.code == 0)
            #expect(!result.errors.contains("Fatal"))
            #expect(try Command.run(script: "\"$subq\" list 2>&1 | head -n 1", in: folder).errors == "")
        }
    }

    #if os(Linux)
        @Test(arguments: ["list", "list --json", "generate text --tokens 20", "evaluate copy", "doctor"])
        func aFullStandardOutputIsTold(arguments: String) throws {
            try Workspace.withCopy { folder in
                let result = try Command.run(script: "\"$subq\" \(arguments) > /dev/full", in: folder)
                #expect(result.code == 74)
                #expect(result.errors == "subq: cannot write 'standard output': the disk is full\n")
            }
        }
    #endif

    /// A file that may not grow stands for a full disk: the checkpoint before stays good, and training goes on from it.
    @Test func aFullDiskKeepsTheLastGoodCheckpoint() throws {
        try Workspace.withCopy { folder in
            func names() throws -> [String] {
                try FileManager.default.contentsOfDirectory(
                    atPath: folder.appendingPathComponent("text/checkpoint").path
                )
                .sorted()
            }
            let before = try names()
            let more = "train text.yaml --out text --resume --set training.steps=9"
            // In units of 512 or 1024 bytes; too few for a model.
            let full = try Command.run(script: "ulimit -f 16; \"$subq\" \(more) 2> >(cat >&2)", in: folder)
            #expect(full.code == 74)
            #expect(full.errors.split(separator: "\n").last?.hasPrefix("subq: cannot write") == true, "\(full.errors)")
            #expect(try names() == before)
            #expect(try Command.run(script: "\"$subq\" evaluate text", in: folder).code == 0)
            let again = try Command.run(script: "\"$subq\" \(more)", in: folder)
            #expect(again.code == 0 && again.errors.contains("resumed at step 4"))
        }
    }

    @Test func aDamagedCheckpointIsPassedOver() throws {
        try Workspace.withCopy { folder in
            let script =
                "truncate -s 1000 text/checkpoint/step-00000004/model.safetensors; "
                + "\"$subq\" train text.yaml --out text --resume"
            let result = try Command.run(script: script, in: folder)
            #expect(result.code == 0)
            #expect(result.errors.contains("warning: passed over a checkpoint"))
            #expect(result.errors.contains("resumed at step 2"))
        }
    }

    @Test func twoTrainersInOneRunAreRefused() throws {
        try Workspace.withCopy { folder in
            let script = """
                \"$subq\" train text.yaml --out new --set training.steps=100000000 2>/dev/null & first=$!
                until [ -s new/metrics.jsonl ]; do kill -0 $first || exit 99; sleep 0.05; done
                \"$subq\" train text.yaml --out new --set training.steps=100000000 --resume; code=$?
                kill -INT $first; (sleep 20; kill -9 $first 2>/dev/null) & wait $first; echo "first $?" >&2; exit $code
                """
            let result = try Command.run(script: script, in: folder)
            #expect(result.code == 75)
            #expect(result.errorLines.first?.hasPrefix("subq: another process") == true, "\(result.errors)")
            // Interrupted, it has saved and says so by its code.
            #expect(result.errorLines.last == "first 130", "\(result.errors)")
        }
    }

    /// Diverged training names the step and the parameter; the checkpoint before stays.
    @Test func divergenceIsTold() throws {
        try Workspace.withCopy { folder in
            let arguments = [
                "train", "text.yaml", "--out", "new", "--set", "optimizer.learningRate=1e30", "--set",
                "optimizer.clipNorm=0", "--set", "training.steps=50", "--set", "training.checkpointEvery=1",
            ]
            let result = try Command.run(arguments, in: folder)
            #expect(result.code == 70)
            #expect(
                result.errorLines.last?.wholeMatch(
                    of: /subq: training diverged at step \d+: the loss is .* is '[a-z.0-9]+'\..*/)
                    != nil, "\(result.errors)")
        }
    }
}
