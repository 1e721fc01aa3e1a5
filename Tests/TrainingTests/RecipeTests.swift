import Datasets
import Foundation
import Testing
import Torch

@testable import Training

struct RecipeTests {
    static let demo = """
        name: demo
        task: language-model            # language-model | classification | copy
        seed: 0
        data:   { kind: bytes, path: some/folder, extensions: [h], length: 256, splits: [0.9, 0.05, 0.05] }
        model:
          layers: 4
          modelDim: 256
          norm: pre
          mixer: { name: momentum, momentum: 0.9, stepSize: 0.5 }
        optimizer: { name: adamw, learningRate: 3e-4, weightDecay: 0.01, betas: [0.9, 0.95], epsilon: 1e-8, clipNorm: 1.0 }
        schedule:  { name: cosine, warmupSteps: 100, finalFraction: 0.1 }
        training:  { steps: 1000, batchSize: 8, evaluateEvery: 200, logEvery: 10, timeLimitMinutes: 0 }

        """

    private func demo(_ overrides: String...) throws -> Recipe {
        try Recipe(yaml: Self.demo, name: "demo.yaml", overrides: overrides)
    }

    private func message(_ text: String, _ overrides: [String] = []) -> String? {
        let error = #expect(throws: RecipeError.self) {
            try Recipe(yaml: text, name: "x.yaml", overrides: overrides)
        }
        return error?.description
    }

    @Test func readsEveryKey() throws {
        let recipe = try demo()
        #expect(recipe.name == "demo")
        #expect(recipe.task == .languageModel)
        #expect(recipe.data == .bytes(DataRecipe.Bytes(path: "some/folder", extensions: ["h"])))
        #expect(recipe.model["mixer"]?["momentum"] == RecipeNode(.number(0.9)))
        #expect(recipe.optimizer.learningRate == 3e-4)
        #expect(recipe.optimizer.epsilon == 1e-8)
        #expect(recipe.schedule.name == .cosine)
        #expect(recipe.schedule.warmupSteps == 100)
        #expect(recipe.training.steps == 1000)
    }

    @Test func aShortRecipeTakesDefaults() throws {
        let recipe = try Recipe(yaml: "task: copy\ndata: {kind: copy}\nmodel: {}", name: "short")
        #expect(recipe.name == "short")
        #expect(recipe.training == TrainingRecipe())
        #expect(recipe.optimizer == OptimizerRecipe())
    }

    @Test(arguments: [
        [], ["schedule.name=linear"], ["optimizer={name: sgd, momentum: 0.9}"], ["schedule={name: step, every: 5}"],
        ["data={kind: listops, length: 128}", "task=classification"], ["name='yes'"], ["name='1e5'"], ["name='null'"],
        ["name=\"two\\nlines: #x\""], ["data.path=/a b/c: d #e"], ["model.x=[1, [2, three], {}]", "model.y={}"],
        ["model.x=-.inf", "model.y=1.", "model.z=.5e3", "model.w='.5e3'"],
        ["task=image-classification", "data={kind: mnist, path: x}", "optimizer={name: adam, sam: {rho: 0.5}}"],
        ["task=forecasting", "data={kind: ett, path: x, horizon: 3}", "schedule={name: cosine-restarts, every: 7}"],
        ["task=forecasting", "data={kind: series, path: x, channels: 2, splits: [0.5, 0.2, 0.3]}"],
    ])
    func survivesItsOwnYAML(overrides: [String]) throws {
        let recipe = try Recipe(yaml: Self.demo, name: "demo.yaml", overrides: overrides)
        let again = try Recipe(yaml: recipe.yaml(), name: "recipe.yaml")
        #expect(again == recipe)
        #expect(try again.differences(from: recipe) == [])
    }

    @Test func theResolvedFileIsReadable() throws {
        let text = try demo("schedule.name=constant", "schedule.finalFraction=").yaml()
        let lines = text.split(separator: "\n").map(String.init)
        #expect(lines.first == "name: demo")
        #expect(lines.contains("  splits: [0.9, 0.05, 0.05]"))
        #expect(lines.contains("  learningRate: 0.0003"))
    }

    @Test(arguments: [
        ("seed: 0", "sede: 0", "unknown key 'sede' in x.yaml:3; did you mean 'seed'?"),
        ("batchSize: 8", "batch_sise: 8", "unknown key 'training.batch_sise' in x.yaml:12; did you mean 'batchSize'?"),
        ("clipNorm: 1.0", "clip: 1.0", "unknown key 'optimizer.clip' in x.yaml:10; did you mean 'clipNorm'?"),
        (
            "length: 256", "symbols: 3",
            "unknown key 'data.symbols' in x.yaml:4; expected one of kind, path, extensions, length, splits"
        ),
        (
            "name: adamw", "name: sgd",
            "unknown key 'optimizer.betas' in x.yaml:10; expected one of name, learningRate, weightDecay, clipNorm, sam, momentum"
        ),
        ("path: some/folder", "paht: some/folder", "unknown key 'data.paht' in x.yaml:4; did you mean 'path'?"),
        ("path: some/folder, ", "", "missing key 'data.path' in x.yaml:4"),
        ("task: language-model", "#", "missing key 'task' in x.yaml:1"),
        (
            "task: language-model", "task: language-modle",
            "'task' in x.yaml:2: expected one of language-model, classification, image-classification, forecasting, copy, found 'language-modle'; did you mean 'language-model'?"
        ),
        ("task: language-model", "task: copy", "'data.kind' in x.yaml:4: expected copy for the task copy, found bytes"),
        ("steps: 1000", "steps: many", "'training.steps' in x.yaml:12: expected an integer, found the text 'many'"),
        ("steps: 1000", "steps: 10.5", "'training.steps' in x.yaml:12: expected an integer, found the number 10.5"),
        (
            "steps: 1000", "steps: 0",
            "'training.steps' in x.yaml:12: expected at least 1 and at most 1000000000000, found 0"
        ),
        (
            "steps: 1000", "steps: -3",
            "'training.steps' in x.yaml:12: expected at least 1 and at most 1000000000000, found -3"
        ),
        (
            "steps: 1000", "steps: 99999999999999999999999",
            "'training.steps' in x.yaml:12: expected an integer, found the number 1e+23"
        ),
        ("steps: 1000", "steps: [1]", "'training.steps' in x.yaml:12: expected an integer, found a list of 1"),
        ("seed: 0", "seed: true", "'seed' in x.yaml:3: expected an integer, found true"),
        ("name: demo", "name: 5", "'name' in x.yaml:1: expected text (put it in quotes), found the integer 5"),
        (
            "betas: [0.9, 0.95]", "betas: [0.9, x]",
            "'optimizer.betas[1]' in x.yaml:10: expected a number, found the text 'x'"
        ),
        (
            "betas: [0.9, 0.95]", "betas: [0.9]",
            "'optimizer.betas' in x.yaml:10: expected two numbers of at least 0 and less than 1, found [0.9]"
        ),
        ("betas: [0.9, 0.95]", "betas: 0.9", "'optimizer.betas' in x.yaml:10: expected a list, found the number 0.9"),
        (
            "learningRate: 3e-4", "learningRate: .nan",
            "'optimizer.learningRate' in x.yaml:10: expected a finite number, found the number nan"
        ),
        (
            "learningRate: 3e-4", "learningRate: .inf",
            "'optimizer.learningRate' in x.yaml:10: expected a finite number, found the number inf"
        ),
        (
            "learningRate: 3e-4", "learningRate: 0",
            "'optimizer.learningRate' in x.yaml:10: expected more than 0.0, found 0.0"
        ),
        (
            "finalFraction: 0.1", "finalFraction: 2",
            "'schedule.finalFraction' in x.yaml:11: expected at least 0.0 and at most 1.0, found 2.0"
        ),
        (
            "0.05, 0.05]", "0.05]",
            "'data.splits' in x.yaml:4: expected three shares that add up to 1, as in [0.9, 0.05, 0.05], found [0.9, 0.05]"
        ),
        ("extensions: [h]", "extensions: h", "'data.extensions' in x.yaml:4: expected a list, found the text 'h'"),
        (
            "schedule:  {", "schedule: fast #",
            "'schedule' in x.yaml:11: expected a section of keys, found the text 'fast'"
        ),
        ("seed: 0", "task: copy", "x.yaml:2:1: broken YAML: the key 'task' is there twice"),
        ("seed: 0", "seed: !!float 0", "x.yaml:3: recipes have no tags such as 'tag:yaml.org,2002:float'"),
        ("seed: 0", "seed: {[a]: b}", "x.yaml:3: expected a name as key, found a list or section"),
        (
            "seed: 0", "seed: 0\n<<: {a: 1}",
            "unknown key '<<' in x.yaml:4; expected one of name, task, seed, data, model, optimizer, schedule, training"
        ),
        ("seed: 0", "seed: [0", "x.yaml:4:5: broken YAML: did not find expected ',' or ']'"),
        ("seed: 0", "\tseed: 0", "x.yaml:3:1: broken YAML: found character that cannot start any token"),
        ("seed: 0", "seed: *nowhere", "x.yaml:3:7: broken YAML: found undefined alias"),
        ("seed: 0", "---\nseed: 0", "x.yaml:3:1: broken YAML: but found another document"),
    ])
    func mistakesAreNamedWithTheirPlace(old: String, new: String, text: String) {
        #expect(message(Self.demo.replacing(old, with: new, maxReplacements: 1)) == text)
    }

    @Test(arguments: [
        ("", "x.yaml: it is empty, expected a recipe"),
        ("# only a comment\n", "x.yaml: it is empty, expected a recipe"),
        ("just text", "x.yaml:1: expected a section of keys, found the text 'just text'"),
        ("- a\n- b", "x.yaml:1: expected a section of keys, found a list of 2"),
    ])
    func textsThatAreNoRecipe(text: String, expected: String) {
        #expect(message(text) == expected)
    }

    @Test func overridesTakeScalarsListsAndSections() throws {
        let recipe = try demo(
            "training.steps=7", "optimizer.betas=[0.5, 0.6]", "optimizer.betas.1=0.7", "data.path=a: b #c",
            "model.mixer={name: linear, map: elu}", "model.new.inner=true", "schedule.name=constant",
            "schedule.finalFraction=", "name=\"12\"")
        #expect(recipe.training.steps == 7)
        #expect(recipe.optimizer.betas == [0.5, 0.7])
        #expect(recipe.data == .bytes(DataRecipe.Bytes(path: "a: b #c", extensions: ["h"])))
        #expect(recipe.model["mixer"]?["name"] == RecipeNode(.text("linear")))
        #expect(recipe.model["mixer"]?["momentum"] == nil)
        #expect(recipe.model["new"]?["inner"] == RecipeNode(.boolean(true)))
        #expect(recipe.name == "12")
    }

    @Test(
        arguments: [
            ("training.stepz=7", "unknown key 'training.stepz' in --set training.stepz=7; did you mean 'steps'?"),
            ("trainng.steps=7", "unknown key 'trainng' in --set trainng.steps=7; did you mean 'training'?"),
            ("training.steps=x", "'training.steps' in --set training.steps=x: expected an integer, found the text 'x'"),
            ("training.steps=", nil),
            ("training.steps", "--set training.steps: expected KEY=VALUE, as in model.layers=2"),
            ("=3", "--set =3: expected KEY=VALUE with a key such as model.layers"),
            ("a..b=3", "--set a..b=3: expected KEY=VALUE with a key such as model.layers"),
            ("name.x=3", "'name.x' in --set name.x=3: 'name' is the text 'demo', expected a section of keys"),
            (
                "optimizer.betas.2=3",
                "'optimizer.betas.2' in --set optimizer.betas.2=3: expected a position from 0 to 1 in the list 'optimizer.betas'"
            ),
            ("optimizer.betas=[1", "--set optimizer.betas=[1: broken YAML: did not find expected ',' or ']'"),
        ] as [(String, String?)])
    func overridesGoWrong(override: String, text: String?) {
        if let text {
            #expect(message(Self.demo, [override]) == text)
        } else {
            #expect(throws: Never.self) { try demo(override) }
        }
    }

    @Test func differencesNameKeyPaths() throws {
        let other = try demo("training.steps=7", "model.mixer.momentum=0.5", "optimizer={name: sgd}")
        let paths = try demo().differences(from: other)
        #expect(paths.contains("training.steps") && paths.contains("model.mixer.momentum"))
        #expect(paths.contains("optimizer.name") && paths.contains("optimizer.betas"))
        #expect(!paths.contains("seed"))
    }

    @Test func filesThatCannotBeReadAreNamed() throws {
        try withTemporaryFolder { folder in
            func text(_ url: URL) -> String? {
                (#expect(throws: RecipeError.self) { try Recipe(contentsOf: url) })?.description
            }
            let file = folder.appendingPathComponent("x.yaml")
            #expect(text(file) == "\(file.path): no such file")
            #expect(text(folder) == "\(folder.path): it is a folder, expected a YAML file")
            try Data([0x6e, 0xff, 0xfe, 0x00]).write(to: file)
            #expect(text(file) == "\(file.path): it is not UTF-8 text, expected a YAML file")
            try Data().write(to: file)
            #expect(text(file) == "\(file.path): it is empty, expected a recipe")
            try Data(count: 2 << 20).write(to: file)
            #expect(text(file) == "\(file.path): it is larger than any recipe (1 MB)")
            try Data(Self.demo.replacing("name: demo\n", with: "").utf8).write(to: file)
            #expect(try Recipe(contentsOf: file).name == "x")
        }
    }

    @Test func aliasesOfAliasesEndInAnError() {
        var text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        for level in 1..<12 {
            let list = Array(repeating: "*a\(level - 1)", count: 10).joined(separator: ", ")
            text += "a\(level): &a\(level) [\(list)]\n"
        }
        #expect(message(text)?.contains("too many values") == true)
        #expect(message("model: " + String(repeating: "[", count: 900) + String(repeating: "]", count: 900)) != nil)
    }

    /// Whatever a file holds, reading it ends in a recipe or in one line of error.
    @Test(arguments: 0..<8)
    func mutatedTextNeverCrashes(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let pieces = [
            "\n", " ", "\t", ":", "- ", "[", "]", "{", "}", "'", "\"", "#", "&a ", "*a", "!!str ", "|\n", ">", "? ",
            "%",
            "---\n", "...", "\0", "\u{FEFF}", "é", "🙂", "\\", "<<", "~", "1e999", "0x", "\r", "\u{85}", "\"\\uD800\"",
            ",",
        ].map { Array($0.utf8) }
        for _ in 0..<250 {
            var bytes = Array(Self.demo.utf8)
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let position = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[position] = UInt8.random(in: 0...127, using: &random)
                case 1: bytes.insert(contentsOf: pieces.randomElement(using: &random) ?? [], at: position)
                case 2: bytes.removeSubrange(position..<min(bytes.count, position + 9))
                default: bytes.insert(contentsOf: bytes[position..<min(bytes.count, position + 30)], at: position)
                }
            }
            do {
                let recipe = try Recipe(yaml: String(decoding: bytes, as: UTF8.self), name: "x.yaml")
                #expect(try Recipe(yaml: recipe.yaml(), name: "y.yaml") == recipe)
            } catch let error as RecipeError {
                #expect(!error.description.isEmpty && isOneLine(error.description))
            } catch {
                Issue.record("\(error)")
            }
        }
    }

    /// The same for overrides.
    @Test(arguments: 0..<4)
    func mutatedOverridesNeverCrash(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let letters = Array("aelmods.=[]{}'\":,0123456789- \t\\#&*!|>%~é")
        for _ in 0..<250 {
            var text = Array(["model.mixer.name=x", "optimizer.betas=[0.1, 0.2]"].randomElement(using: &random) ?? "")
            for _ in 0..<Int.random(in: 1...5, using: &random) {
                text.insert(
                    letters.randomElement(using: &random) ?? "a", at: Int.random(in: 0...text.count, using: &random))
            }
            do {
                _ = try demo(String(text))
            } catch let error as RecipeError {
                #expect(isOneLine(error.description))
            }
        }
    }
}

func isOneLine(_ text: String) -> Bool { !text.contains { $0.isNewline } }

func withTemporaryFolder(_ body: (URL) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try body(folder)
}
