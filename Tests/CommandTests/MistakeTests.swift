import Foundation
import Testing

/// Whatever a user gets wrong: one clear line on standard error, the right exit code, no trace, nothing left behind.
@Suite(.serialized) struct MistakeTests {
    @Test(arguments: commandLines + numbers) func onTheCommandLine(_ mistake: Mistake) throws { try check(mistake) }
    @Test(arguments: recipes + settings) func inARecipe(_ mistake: Mistake) throws { try check(mistake) }
    @Test(arguments: dataFiles) func inData(_ mistake: Mistake) throws { try check(mistake) }
    @Test(arguments: runs) func inARun(_ mistake: Mistake) throws { try check(mistake) }

    private func check(_ mistake: Mistake) throws {
        try Workspace.withCopy { folder in
            if let spoil = mistake.spoil {
                let result = try Command.run(script: "(\(spoil)) >/dev/null", in: folder)
                try #require(result.code == 0, "\(result.errors)")
            }
            let start = ContinuousClock.now
            let result = try Command.run(mistake.arguments, in: folder, input: mistake.input)
            #expect(ContinuousClock.now - start < .seconds(20))
            #expect(result.code == mistake.code.rawValue, "\(result.errors)")
            #expect(!result.wasSignaled)
            #expect(result.output == "")
            #expect(result.errorLines.count == 1 && result.errors.hasSuffix("\n"), "\(result.errors)")
            #expect(result.errors.hasPrefix("subq: "))
            #expect(result.errors.contains(mistake.says), "\(result.errors)")
            #expect(result.errors.utf8.count < 1200)
            for trace in ["Fatal error", "Error Domain", "Swift.", ".swift:", "at::", "Exception raised"] {
                #expect(!result.errors.contains(trace))
            }
            #expect(!FileManager.default.fileExists(atPath: folder.appendingPathComponent("new").path))
        }
    }

    static let commandLines = [
        Mistake("frobnicate", code: .usage, says: "unknown subcommand 'frobnicate'; expected one of list, train"),
        Mistake("evalute", code: .usage, says: "did you mean 'evaluate'?"),
        Mistake("data", "listop", code: .usage, says: "did you mean 'listops'?"),
        Mistake("bench", "atention", code: .usage, says: "did you mean 'attention'?"),
        Mistake("--frob", code: .usage, says: "--frob"),
        Mistake("list", "--jsn", code: .usage, says: "Did you mean '--json'?"),
        Mistake("list", "extra", code: .usage, says: "'extra'"),
        Mistake("train", code: .usage, says: "<recipe>"),
        Mistake("train", "text.yaml", "--out", code: .usage, says: "--out"),
        Mistake("train", "text.yaml", "copy.yaml", code: .usage, says: "'copy.yaml'"),
        Mistake("train", "text.yaml", "--out", "", code: .usage, says: "--out is empty"),
        Mistake("train", "text.yaml", "--device", "foo", code: .usage, says: "unknown device 'foo'"),
        Mistake("train", "text.yaml", "--device", "cuda:-1", code: .usage, says: "expected cpu, cuda, cuda:N or mps"),
        Mistake("evaluate", code: .usage, says: "<run-dir>"),
        Mistake("evaluate", "", code: .usage, says: "is empty"),
        Mistake("evaluate", "text", "--split", "tests", code: .usage, says: "train, validation or test"),
        Mistake("generate", "text", "--prompt", "", code: .usage, says: "prompt is empty"),
        Mistake("generate", "text", "--prompt", "-", code: .usage, says: "prompt is empty"),
        Mistake("conformance", code: .usage, says: "<paths>"),
        Mistake("conformance", "nowhere", code: .noInput, says: "nowhere: no such file"),
        Mistake("conformance", "empty", code: .noInput, says: "no .safetensors files", spoil: "mkdir empty"),
        Mistake("data", "listops", code: .usage, says: "--out"),
        Mistake("data", "listops", "--out", "text.txt", code: .cannotCreate, says: "text.txt: cannot be written"),
        Mistake("data", "listops", "--out", "text.txt/x", code: .cannotCreate, says: "cannot be written"),
        Mistake("bench", "attention", code: .usage, says: "--mechanism"),
        Mistake("bench", "attention", "--mechanism", "sofmax", code: .usage, says: "did you mean 'softmax'?"),
        Mistake("bench", "attention", "--mechanism", ",", code: .usage, says: "names none"),
        Mistake("bench", "attention", "--mechanism", "linformer", "--causal", code: .usage, says: "no causal form"),
        Mistake("bench", "attention", "--mechanism", "linear,ngram", code: .usage, says: "give --causal"),
        Mistake("bench", "lm", "--mechanism", "samformer", code: .usage, says: "no causal form"),
        Mistake("bench", "attention", "--mechanism", "gmlp", code: .usage, says: "measure it with 'bench layer'"),
        Mistake("bench", "layer", "--mechanism", "{name: linear, ngram: 3}", code: .usage, says: "'ngram'"),
        Mistake("bench", "layer", "--mechanism", "{name: aft, form: conv, kernel: 4}", code: .usage, says: "odd"),
        Mistake("bench", "layer", "--mechanism", "linear", "--plot", "p.svg", code: .usage, says: "two lengths"),
        Mistake(
            "bench", "layer", "--mechanism", "linear", "--plot", "p.svg", "--length", "64,64", code: .usage,
            says: "two lengths"),
        Mistake("bench", "layer", "--mechanism", "linear", "--length", "", code: .usage, says: "--length names none"),
        Mistake("bench", "generate", "--mechanism", "linear", "--batch", "2", code: .usage, says: "one sequence"),
        Mistake("bench", "generate", "--mechanism", "linear", "--roofline", code: .usage, says: "--roofline"),
        Mistake("bench", "measure", "{}", code: .usage, says: "describes no measurement"),
        Mistake("bench", "layer", "--mechanism", "linear", "--pass", "back", code: .usage, says: "forward-backward"),
    ]

    static let numbers = [
        Mistake("train", "text.yaml", "--threads", "0", code: .usage, says: "from 1 to 1024, not 0"),
        Mistake("train", "text.yaml", "--threads", "-1", code: .usage, says: "from 1 to 1024, not -1"),
        Mistake("train", "text.yaml", "--threads", "two", code: .usage, says: "'two'"),
        Mistake("train", "text.yaml", "--threads", "99999999999999999999", code: .usage, says: "--threads"),
        Mistake(
            "train", "text.yaml", "--seed", "-1", "--out", "new", code: .configuration, says: "at least 0, found -1"),
        Mistake("train", "text.yaml", "--seed", "1.5", code: .usage, says: "'1.5'"),
        Mistake("generate", "text", "--tokens", "-1", code: .usage, says: "--tokens must be 0 or above, not -1"),
        Mistake("generate", "text", "--tokens", "9223372036854775807", code: .usage, says: "learned positions for 32"),
        Mistake("generate", "text", "--tokens", "1e3", code: .usage, says: "'1e3'"),
        Mistake("generate", "text", "--top-p", "0", code: .usage, says: "--top-p must be above 0"),
        Mistake("generate", "text", "--top-p", "1.1", code: .usage, says: "at most 1, not 1.1"),
        Mistake(
            "generate", "text", "--temperature", "-1", code: .usage, says: "--temperature must be 0 or above, not -1"),
        Mistake("generate", "text", "--temperature", "nan", code: .usage, says: "not nan"),
        Mistake("generate", "text", "--seed", "-3", code: .usage, says: "--seed must be 0 or above, not -3"),
        Mistake("data", "listops", "--out", "new", "--train", "-1", code: .usage, says: "at least 1, not -1"),
        Mistake("data", "listops", "--out", "new", "--length-below", "3", code: .usage, says: "at least 502, not 3"),
        Mistake("bench", "attention", "--mechanism", "linear", "--batch", "0", code: .usage, says: "not 0"),
        Mistake("bench", "attention", "--mechanism", "linear", "--length", "1,x", code: .usage, says: "'1,x'"),
        Mistake("bench", "lm", "--mechanism", "linear", "--model-dim", "65", code: .usage, says: "not a multiple"),
        Mistake("bench", "lm", "--mechanism", "linear", "--layers", "-4", code: .usage, says: "not -4"),
        Mistake(
            "bench", "attention", "--mechanism", "linear", "--length", "1000000000", "--batch", "1000000",
            code: .system,
            says: "allocate memory"),
    ]

    static let recipes = [
        Mistake("train", "nowhere.yaml", code: .noInput, says: "nowhere.yaml: no such file"),
        Mistake("train", ".", code: .noInput, says: "it is a folder"),
        .recipe("", says: "r.yaml: it is empty"),
        .recipe(#"\x00\x01\xff\xfe"#, says: "not UTF-8 text"),
        .recipe("hello", says: "found the text"),
        .recipe(#"- a\n- b\n"#, says: "expected a section of keys, found a list of 2"),
        .recipe(#"task: [\n"#, says: "r.yaml:2:1: broken YAML"),
        .recipe(#"task: copy\ntask: copy\n"#, says: "'task' is there twice"),
        .recipe("a: &a [*a]", says: "r.yaml"),
        .recipe("task: copy", says: "missing key 'data'"),
        .recipe("{task: cop, data: {kind: copy}, model: {}}", says: "did you mean 'copy'?"),
        .recipe("{task: copy, data: {kind: bytes, path: x}, model: {}}", says: "expected copy for the task copy"),
        .recipe("{task: copy, data: {kind: copy}, model: {}}", says: "missing key 'model.mixer'"),
        .recipe("{task: copy, data: {kind: copy}, model: {mixer: linear}}", says: "'model.mixer'"),
        .recipe("{task: copy, data: {kind: copy, length: 1}, model: {}}", says: "'data.length'"),
    ]

    static let settings: [Mistake] = [
        .setting("foo", .usage, says: "--set foo: expected KEY=VALUE"),
        .setting("=3", .usage, says: "expected KEY=VALUE"),
        .setting("model.layer=2", says: "unknown key 'model.layer' in --set model.layer=2; did you mean 'layers'?"),
        .setting("a.b=3", says: "unknown key 'a'"),
        .setting("model=3", says: "expected a section of keys, found the integer 3"),
        .setting("model.layers=two", says: "expected an integer, found the text 'two'"),
        .setting("model.layers=0", says: "layers must be at least 1"),
        .setting("model.layers=1000000000000", says: "layers must be at most"),
        .setting("model.heads=3", says: "'model' in text.yaml:4: modelDim 16 is not a multiple of heads 3"),
        .setting("model.modelDim=9000000000000000000", says: "modelDim must be at most"),
        .setting("model.modelDim=1000000", says: "too many for this machine"),
        .setting("model.dropout=1", says: "dropout must be at least 0 and below 1"),
        .setting("model.normEpsilon=.inf", says: "expected a finite number"),
        .setting("model.norm=mid", says: "expected one of pre, post, found 'mid'"),
        .setting("model.position=sinusoid", says: "did you mean 'sinusoidal'?"),
        .setting("model.residual={kind: constnt}", says: "did you mean 'constant'?"),
        .setting("model.mixer.name=momentun", says: "did you mean 'momentum'?"),
        .setting("model.mixer.momentum=1.0", says: "momentum must be at least 0 and below 1, not 1.0"),
        .setting("model.mixer.stepSize=.nan", says: "expected a finite number"),
        .setting("model.mixer.featureMap=relu", says: "unknown key 'model.mixer.featureMap'"),
        Mistake(
            "train", "text.yaml", "--out", "new", "--set", "model.mixer={name: linear}", "--set",
            "model.position=rotary",
            code: .configuration, says: "mixer 'linear' takes no rotary positions"),
        .setting("training.steps=0", says: "expected at least 1"),
        .setting("training.steps=1e30", says: "expected an integer"),
        .setting("training.batchSize=1000000", .data, says: "needs at least 32000001"),
        .setting("training.evaluateEvry=3", says: "did you mean 'evaluateEvery'?"),
        .setting("optimizer.learningRate=-1", says: "expected more than 0.0, found -1.0"),
        .setting("optimizer.name=adm", says: "did you mean 'adam'?"),
        .setting("optimizer.sam={rho: 0}", says: "expected more than 0.0, found 0.0"),
        .setting("optimizer.sam={radius: 1}", says: "unknown key 'optimizer.sam.radius'"),
        .setting("optimizer.betas=[1, 2, 3]", says: "expected two numbers"),
        .setting("schedule.name=cosin", says: "did you mean 'cosine'?"),
        .setting("data.splits=[0.5, 0.5, 0.5]", says: "expected three shares"),
        .setting("data.splits=[1, 0, 0]", .data, says: "validation split"),
        .setting("data.path=", says: "missing key 'data.path'"),
        .setting("seed=99999999999999999999", says: "expected an integer"),
    ]

    static let dataFiles: [Mistake] = [
        .data("true", path: "nowhere", .noInput, says: "nowhere: no such file or folder"),
        .data("true", path: "/dev/null", .noInput, says: "not a regular file"),
        .data(": > d", says: "is empty"),
        .data("mkdir d", .noInput, says: "the folder holds no files"),
        .data("echo hi > d", says: "has 3 bytes, needs at least 65"),
        .data("gzip -c text.txt | head -c 100 > d.gz", path: "d.gz", says: "ends too early, after 100 bytes"),
        .data("echo no gzip > d.gz", path: "d.gz", says: "not a whole gzip file"),
        .data("mkdir -p d/e; gzip -c text.txt | head -c 60 > d/e/x.gz", says: "x.gz: not a whole gzip file"),
        Mistake(
            "train", "listops.yaml", "--out", "new", "--set", "data.path=d", code: .noInput,
            says: "basic_train.tsv: no such",
            spoil: "mkdir d"),
        .table(#"( ( ( [MAX 2 ) 9 ) ] )\t7\n"#, says: "basic_train.tsv:4: states the answer 7, correct is 9"),
        .table(#"( ( ( [MAX 2 ) 9 )\t9\n"#, says: "basic_train.tsv:4: ListOps expression, token 9"),
        .table(#"( ( ( [MAX 2 ) 9 ) ] )\n"#, says: "expected 2 columns"),
        .table(#"( ( ( [MAX 2 ) 9 ) ] )\tnine\n"#, says: "not a digit"),
        .table(#"\xff\x00\n"#, says: "basic_train.tsv:4"),
        .series("printf '1,2\\n3\\n' > d", says: "d:2: expected 2 columns, found 1"),
        .series("printf '1,2\\n3,x\\n' > d", says: "d:2: expected a finite number, found 'x'"),
        .series("printf '1,2\\n3,4\\n' > d", says: "windows of 4 + 2 rows: has 0 examples, needs at least 2"),
        .series("printf '1,2,3\\n' > d", says: "d: it has 3 channels, expected 2"),
        .series("true", .noInput, says: "d: no such file or folder"),
        .images("mkdir d", .noInput, says: "train-images-idx3-ubyte.gz: no such file"),
        .images("mkdir d; echo none > d/train-images-idx3-ubyte", says: "it is no IDX file of bytes in 3 dimensions"),
        Mistake(
            "train", "listops.yaml", "--out", "new", "--set", "data.length=4", "--set", "data.trainingExamples=1000000",
            "--set", "data.minimumLength=3", code: .data, says: "distinct examples; widen the lengths"),
    ]

    static let runs: [Mistake] = [
        Mistake("train", "text.yaml", "--out", "text", code: .cannotCreate, says: "already holds a run; continue it"),
        Mistake("train", "text.yaml", "--out", "text.txt", code: .cannotCreate, says: "it is a file"),
        Mistake("train", "text.yaml", "--out", "text.txt/x", code: .cannotCreate, says: "not a folder"),
        Mistake("train", "text.yaml", "--out", ".", code: .cannotCreate, says: "it holds other files"),
        Mistake("train", "text.yaml", "--out", "/proc/x", code: .cannotCreate, says: "cannot create '/proc/x'"),
        Mistake(
            "train", "text.yaml", "--resume", "--out", "text", "--set", "model.layers=2", code: .usage,
            says: "begun with other settings (model.layers)"),
        Mistake("train", "text.yaml", "--resume", "--out", ".", code: .noInput, says: "is not a run directory"),
        Mistake("evaluate", "nowhere", code: .noInput, says: "'nowhere' is not a run directory: no such folder"),
        Mistake("evaluate", ".", code: .noInput, says: "is not a run directory"),
        Mistake("evaluate", "text.txt", code: .noInput, says: "it is a file"),
        Mistake("generate", "listops", code: .usage, says: "not a language model of bytes"),
        Mistake("generate", "copy", code: .usage, says: "not a language model of bytes"),
        Mistake("generate", "text", "--tokens", "32", code: .usage, says: "learned positions for 32 tokens"),
        .run("echo : > recipe.yaml", .configuration, says: "recipe.yaml:1"),
        .run("rm recipe.yaml", .noInput, says: "it has no recipe.yaml"),
        .run("rm ../text.txt", .noInput, says: "text.txt: no such file"),
        .run("rm config.json", says: "config.json' is damaged: it is missing"),
        .run("echo { > config.json", read: "generate", says: "config.json' is damaged: it is no JSON"),
        .run("echo '{}' > config.json", says: "missing key 'kind'"),
        .run("sed -i.old 's/language-model/foo/' config.json", says: "expected one of language-model, classifier"),
        .run("sed -i.old 's/\"heads\" : 2/\"heads\" : 3/' config.json", says: "is not a multiple of heads 3"),
        .run("sed -i.old 's/256/99999999999999/' config.json", says: "too many for this machine"),
        .run("sed -i.old 's/\"modelDim\" : 16/\"modelDim\" : 32/' config.json", says: "do not fit"),
        .run("rm model.safetensors", read: "generate", says: "has not come to its first evaluation"),
        .run("rm model.safetensors; mkdir model.safetensors", says: "not a regular file"),
        .run(": > model.safetensors", says: "has 0 bytes"),
        .run("head -c 1000 model.safetensors > m; mv m model.safetensors", says: "truncated"),
        .run("head -c 9000 model.safetensors > m; mv m model.safetensors", read: "generate", says: "truncated"),
        .run("printf x | dd of=model.safetensors bs=1 seek=20000 conv=notrunc status=none", says: "checksum is wrong"),
        .run("printf x | dd of=model.safetensors bs=1 seek=12 conv=notrunc status=none", says: "model.safetensors"),
        .run("cp ../copy/model.safetensors .", says: "'embedding.token.weight' expected [256, 16], found [11, 16]"),
        .run("cp ../copy/config.json .", says: "do not fit"),
        .checkpoint(
            "for f in step-*/model.safetensors; do : > $f; done", says: "no whole checkpoint in 'text/checkpoint'"),
        .checkpoint("for f in step-*/manifest.json; do echo x > $f; done", says: "missing or no manifest"),
        .checkpoint("echo nonsense > ../metrics.jsonl", says: "metrics.jsonl' is damaged: line 1"),
    ]
}
