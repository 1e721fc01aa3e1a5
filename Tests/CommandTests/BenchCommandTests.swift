import Foundation
import Testing

#if canImport(FoundationXML)
    import FoundationXML
#endif

/// What `subq bench` and `subq doctor` print and write.
@Suite(.serialized) struct BenchCommandTests {
    static let small = ["--heads", "2", "--head-dim", "4", "--repeats", "2", "--threads", "1"]

    private func bench(_ arguments: String...) throws -> Command.Result {
        try Workspace.withCopy { folder in
            let result = try Command.run(["bench"] + arguments + Self.small, in: folder)
            #expect(result.code == 0 && result.errors == "", "\(result)")
            return result
        }
    }

    private func objects(_ result: Command.Result) throws -> [[String: Any]] {
        try result.output.split(separator: "\n").map {
            try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
        }
    }

    @Test func tablesAreAligned() throws {
        let output = try bench(
            "attention", "--mechanism", "linear,{name: ngram, ngram: 3},{name: ngram, ngram: 4}", "--causal",
            "--length", "64,512,1024", "--roofline", "--reference"
        ).output
        let lines = output.split(separator: "\n", omittingEmptySubsequences: false)
        let header = try #require(lines.firstIndex { $0.hasPrefix("mechanism ") })
        let rows = lines[(header + 1)...].prefix { !$0.isEmpty }
        #expect(rows.count == 12)
        // Numbers end where their column's name ends.
        let ends = lines[header].ranges(of: "N ").map {
            lines[header].distance(from: lines[header].startIndex, to: $0.lowerBound)
        }
        for row in rows {
            let end = row.index(row.startIndex, offsetBy: ends[0])
            #expect(row[end] != " " && (row[row.index(after: end)] == " "), "\(row)")
        }
        #expect(rows.filter { $0.contains("  fit ") }.count == 3)
        #expect(rows.filter { $0.hasPrefix("ngram, ngram: 4 ") }.count == 4)
        #expect(output.contains("GFLOP/s") && output.contains("reference ms") && output.contains("of sgemm"))
    }

    @Test func jsonHasAnObjectForEachMeasurement() throws {
        let found = try objects(
            try bench(
                "layer", "--mechanism", "softmax,aft", "--causal", "--length", "32,256", "--json", "--reference",
                "--roofline"))
        #expect(
            found.map { $0["mechanism"] as? String } == [
                "softmax", "softmax", "softmax", "softmax", "aft", "aft", "aft", "aft",
            ])
        #expect(
            found.map { $0["form"] as? String }
                == Array(repeating: ["fast", "reference"], count: 4).joined().map { $0 })
        for object in found {
            for key in ["batch", "heads", "length", "head_dim", "threads", "median_ms", "min_ms", "peak_rss_mb"] {
                #expect(try #require(object[key] as? Double) > 0, "\(key)")
            }
            #expect(object["causal"] as? Bool == true && object["pass"] as? String == "forward-backward")
            #expect((object["times_fast"] != nil) == (object["form"] as? String == "reference"))
            #expect((object["time_exponent"] != nil) == (object["length"] as? Int == 256))
            #expect((object["sgemm_share"] != nil) == (object["mechanism"] as? String == "softmax"))
        }
    }

    @Test func modelsTellTokens() throws {
        let sizes = ["--layers", "1", "--heads", "2", "--model-dim", "8", "--threads", "1", "--json"]
        try Workspace.withCopy { folder in
            let training = try Command.run(
                ["bench", "lm", "--mechanism", "linear", "--length", "64", "--repeats", "2"] + sizes, in: folder)
            #expect(try #require(try objects(training).first?["tokens_per_s"] as? Double) > 0)
            let generation = try Command.run(
                ["bench", "generate", "--mechanism", "softmax", "--context", "32", "--tokens", "4"] + sizes, in: folder)
            let object = try #require(try objects(generation).first)
            #expect(try #require(object["tokens_per_s"] as? Double) > 0)
            #expect(try #require(object["prefill_ms"] as? Double) > 0)
        }
    }

    @Test func plotsAreWritten() throws {
        try Workspace.withCopy { folder in
            let result = try Command.run(
                ["bench", "layer", "--mechanism", "softmax,linear", "--length", "64,128", "--plot", "p.svg"]
                    + Self.small, in: folder)
            #expect(result.code == 0 && result.errors == "", "\(result)")
            let data = try Data(contentsOf: folder.appendingPathComponent("p.svg"))
            #expect(XMLParser(data: data).parse())
            let text = String(decoding: data, as: UTF8.self)
            #expect(text.contains(">softmax") && text.contains(">linear") && text.contains(" ∝ N"))
            // Nothing else was left behind.
            let names = try FileManager.default.contentsOfDirectory(atPath: folder.path)
            #expect(names.allSatisfy { !$0.hasPrefix(".") })
        }
    }

    /// A plot that cannot be written is told before anything is measured.
    @Test(arguments: [
        ("nowhere/p.svg", 73, "no such folder"), ("text.txt/p.svg", 73, "not a folder"),
        ("d.svg", 73, "it is a folder"),
        ("p.png", 64, "must end in .svg"),
    ])
    func plotsThatCannotBe(path: String, code: Int32, says: String) throws {
        try Workspace.withCopy { folder in
            let script = "mkdir d.svg; \"$subq\" bench layer --mechanism linear --length 64,1000000 --plot \(path)"
            let start = ContinuousClock.now
            let result = try Command.run(script: script, in: folder)
            #expect(ContinuousClock.now - start < .seconds(20))
            #expect(result.code == code && result.output == "")
            #expect(result.errorLines.count == 1 && result.errors.contains(says), "\(result.errors)")
        }
    }

    /// The process that measures does not outlive the one that it measures for.
    @Test func aKilledBenchLeavesNothingRunning() throws {
        try Workspace.withCopy { folder in
            let script = """
                "$subq" bench attention --mechanism softmax --length 100000 --threads 1 > /dev/null & parent=$!
                for i in $(seq 200); do child=$(pgrep -P $parent) && break; sleep 0.05; done
                [ -n "$child" ] || exit 98
                kill -9 $parent; wait $parent 2> /dev/null
                for i in $(seq 200); do kill -0 $child 2> /dev/null || exit 0; sleep 0.05; done
                kill -9 $child; exit 99
                """
            let result = try Command.run(script: script, in: folder)
            #expect(result.code == 0)
        }
    }

    @Test(arguments: [
        "train text.yaml --out new", "evaluate copy", "generate text --tokens 3", "conformance text", "doctor",
        "bench attention --mechanism linear", "bench lm --mechanism linear",
    ])
    func aWrongInstructionSetIsToldFirst(arguments: String) throws {
        try Workspace.withCopy { folder in
            let result = try Command.run(script: "SUBQ_ISA=sse9 \"$subq\" \(arguments)", in: folder)
            #expect(result.code == 64 && result.output == "")
            #expect(result.errorLines.count == 1, "\(result.errors)")
            #expect(result.errors.contains("no instruction set 'sse9'; it has reference, baseline"))
            #expect(!FileManager.default.fileExists(atPath: folder.appendingPathComponent("new").path))
        }
    }

    @Test func doctorSaysWhatKernelsRunWith() throws {
        try Workspace.withCopy { folder in
            let output = try Command.run(script: "SUBQ_ISA=baseline \"$subq\" doctor", in: folder).output
            #expect(output.contains(#/kernels run with +baseline +\(forced by SUBQ_ISA; there are reference/#))
            for name in ["LibTorch headers", "LibTorch library", "threads", "instruction set", "fused kernels"] {
                #expect(output.contains("\n\(name) ") || output.hasPrefix("\(name) "))
            }
            #expect(
                try Command.run(script: "\"$subq\" doctor", in: folder).output.contains("SUBQ_ISA can force another"))
        }
    }
}
