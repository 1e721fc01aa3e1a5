import Foundation
import Testing

/// A user's mistake, and how the command must answer it.
struct Mistake: CustomTestStringConvertible, Sendable {
    /// Exit codes of sysexits.h.
    enum Code: Int32 {
        case usage = 64
        case data = 65
        case noInput = 66
        case software = 70
        case system = 71
        case cannotCreate = 73
        case inputOutput = 74
        case busy = 75
        case configuration = 78
    }

    var arguments: [String]
    var code: Code
    /// What the line must say.
    var says: String
    /// Spoils the folder first: a `bash` script.
    var spoil: String?
    var input = ""

    init(_ arguments: String..., code: Code, says: String, spoil: String? = nil, input: String = "") {
        self.arguments = arguments
        self.code = code
        self.says = says
        self.spoil = spoil
        self.input = input
    }

    /// A mistake in an override of a good recipe.
    static func setting(_ override: String, _ code: Code = .configuration, says: String) -> Mistake {
        Mistake("train", "text.yaml", "--out", "new", "--set", override, code: code, says: says)
    }

    /// A mistake in a recipe file of its own, given as `printf` takes it.
    static func recipe(_ text: String, _ code: Code = .configuration, says: String) -> Mistake {
        Mistake("train", "r.yaml", "--out", "new", code: code, says: says, spoil: "printf -- '\(text)' > r.yaml")
    }

    /// A data file that is not as it must be; the script makes `d`.
    static func data(_ spoil: String, path: String = "d", _ code: Code = .data, says: String) -> Mistake {
        Mistake(
            "train", "text.yaml", "--out", "new", "--set", "data.path=\(path)", code: code, says: says, spoil: spoil)
    }

    /// A ListOps folder whose training file is spoiled.
    static func table(_ line: String, _ code: Code = .data, says: String) -> Mistake {
        let good = #"Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n( ( ( [MIN 2 ) 9 ) ] )\t2\n"#
        return Mistake(
            "train", "listops.yaml", "--out", "new", "--set", "data.path=d", code: code, says: says,
            spoil: "mkdir d; for s in train val test; do printf '\(good)' > d/basic_$s.tsv; done;"
                + "printf '\(line)' >> d/basic_train.tsv")
    }

    /// A table of series that is not as it must be; the script makes `d`.
    static func series(_ spoil: String, _ code: Code = .data, says: String) -> Mistake {
        task("forecasting", "{kind: series, path: d, channels: 2, lookback: 4, horizon: 2}", spoil, code, says)
    }

    /// A folder of images that is not as it must be; the script makes `d`.
    static func images(_ spoil: String, _ code: Code = .data, says: String) -> Mistake {
        task("image-classification", "{kind: mnist, path: d}", spoil, code, says)
    }

    private static func task(_ name: String, _ data: String, _ spoil: String, _ code: Code, _ says: String) -> Mistake {
        let model = "{layers: 1, modelDim: 4, heads: 2, position: none, mixer: {name: softmax}}"
        let recipe = "{task: \(name), data: \(data), model: \(model), training: {batchSize: 2}}"
        return Mistake(
            "train", "r.yaml", "--out", "new", code: code, says: says, spoil: "printf '\(recipe)' > r.yaml; \(spoil)")
    }

    /// A run directory that is not as it must be.
    static func run(
        _ spoil: String, read subcommand: String = "evaluate", _ code: Code = .data, says: String
    ) -> Mistake {
        Mistake(subcommand, "text", code: code, says: says, spoil: "cd text && \(spoil)")
    }

    /// A checkpoint that cannot be resumed.
    static func checkpoint(_ spoil: String, _ code: Code = .data, says: String) -> Mistake {
        Mistake(
            "train", "text.yaml", "--out", "text", "--resume", code: code, says: says,
            spoil: "cd text/checkpoint && \(spoil)")
    }

    var testDescription: String { (spoil.map { "\($0); " } ?? "") + "subq " + arguments.joined(separator: " ") }
}
