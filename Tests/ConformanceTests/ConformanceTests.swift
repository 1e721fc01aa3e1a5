import Conformance
import Foundation
import SequenceMixers
import Testing
import Torch

/// The golden files that the tests carry.
enum Golden {
    static let folder = Bundle.module.bundleURL.appending(path: "Golden")
    static let files = (try? GoldenFiles.find(folder.path)) ?? []

    static func url(_ name: String) -> URL { folder.appending(path: "\(name).safetensors") }
}

@Suite struct ConformanceTests {
    @Test func everySystemHasFiles() throws {
        let reports = Golden.files.map { ConformanceRunner.check($0) }
        let systems = Dictionary(grouping: reports, by: \.system).mapValues(\.count)
        let expected = [
            "softmax": 7,
            "linear": 13,
            "momentum": 11,
            "aft": 10,
            "mega": 9,
            "gmlp": 6,
            "sparse-mlp": 4,
            "samformer": 4,
            "combiner": 10,
            "transnormer": 12,
            "linformer": 10,
            "revisiting-linformer": 5,
            "r-transformer": 6,
            "fourier-transformer": 6,
            "reformer": 10,
            "sparse": 7,
            "ngram": 5,
            "transformer-ls": 8,
        ]
        #expect(systems == expected)
    }

    @Test(arguments: Golden.files.map(\.path)) func passes(_ path: String) throws {
        let url = URL(fileURLWithPath: path)
        let report = ConformanceRunner.check(url, named: url.lastPathComponent)
        #expect(report.passed, "\(report.text)")
        // out, what else the file holds of the way there, and every gradient, twice in each of two precisions.
        let file = try SafetensorsFile(url)
        let ways = ["grad.", "grad_aux.", "grad_first.", "aux.", "moe_", "final."]
        let compared = file.names.count { name in
            ["out", "dct", "buckets", "losses", "final_state"].contains(name) || ways.contains { name.hasPrefix($0) }
        }
        let states = file.names.count { $0.hasPrefix("final_state.") }
        #expect(report.checks == 4 * compared + 2 * states)
        #expect(report.text.hasPrefix("ok      \(url.lastPathComponent) (\(report.system)/\(report.variant)): "))
        #expect((report.worst["float64"] ?? 1) <= 1e-9 && (report.worst["float32"] ?? 1) <= 1e-4)
    }

    @Test func reportsSurviveJSON() throws {
        let report = ConformanceRunner.check(Golden.url("softmax/full"))
        let again = try JSONDecoder().decode(ConformanceReport.self, from: JSONEncoder().encode(report))
        #expect(again.text == report.text)
    }
}

/// A changed copy of a golden file.
struct Mutation {
    var metadata: [String: String]
    var config: [String: Any]
    var tensors: [String: Tensor]

    init(_ name: String) throws {
        let file = try SafetensorsFile(Golden.url(name))
        metadata = file.metadata
        let text = Data(try #require(metadata["config"]).utf8)
        config = try #require(JSONSerialization.jsonObject(with: text) as? [String: Any])
        tensors = try file.tensors()
    }

    /// What the comparison says of the changed file.
    func failures() throws -> [String] {
        var metadata = metadata
        let text = try JSONSerialization.data(withJSONObject: config)
        if metadata["config"] != nil { metadata["config"] = String(decoding: text, as: UTF8.self) }
        let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).safetensors")
        defer { try? FileManager.default.removeItem(at: url) }
        try Safetensors.write(tensors, metadata: metadata, to: url)
        let report = ConformanceRunner.check(url)
        #expect(report.passed == report.failures.isEmpty)
        return report.failures
    }
}

/// Files that say what nobody understands, or that are wrong, fail with the name of it.
@Suite struct ConformanceRefusalTests {
    private func expect(
        _ name: String, _ text: String, at location: SourceLocation = #_sourceLocation,
        _ change: (inout Mutation) throws -> Void
    ) throws {
        var mutation = try Mutation(name)
        try change(&mutation)
        let failures = try mutation.failures()
        #expect(failures.contains { $0.contains(text) }, "\(failures)", sourceLocation: location)
        #expect(failures.allSatisfy { !$0.contains("\n") }, sourceLocation: location)
    }

    @Test func unchangedCopiesPass() throws {
        for name in ["softmax/layer-causal", "linear/encoder-causal"] {
            #expect(try Mutation(name).failures() == [])
        }
    }

    @Test func unknownNames() throws {
        try expect("softmax/full", "unknown mixer 'softmox'; did you mean 'softmax'?") {
            $0.metadata["system"] = "softmox"
        }
        try expect("softmax/full", "unknown variant 'fuller' of softmax; known: full, causal") {
            $0.metadata["variant"] = "fuller"
        }
        try expect("softmax/full", "the metadata has no 'variant'") { $0.metadata["variant"] = nil }
        try expect("softmax/full", "the metadata has no 'config'") { $0.metadata["config"] = nil }
        try expect("softmax/full", "unknown setting 'windw'") { $0.config["windw"] = 3 }
        try expect("softmax/full", "unknown setting 'a' (and 1 more)") {
            $0.config["a"] = [1]
            $0.config["b"] = "x"
        }
        try expect("softmax/full", "setting 'kind' is 'kernel'; known: core, layer, model") {
            $0.config["kind"] = "kernel"
        }
        try expect("softmax/full", "unknown tensor 'bias'") { $0.tensors["bias"] = .zeros([3]) }
        try expect("softmax/full", "no input or parameter 'w' has a gradient") { $0.tensors["grad.w"] = .zeros([3]) }
        try expect("linear/causal", "the mechanism keeps no state 'y'") { $0.tensors["final_state.y"] = .zeros([3]) }
        try expect("linear/causal", "unknown feature_map 'elu'") { $0.config["feature_map"] = "elu" }
        try expect("momentum/bidirectional", "unknown weights 'last'") { $0.config["weights"] = "last" }
        try expect("momentum/bidirectional", "unknown weight_length 'half'") { $0.config["weight_length"] = "half" }
        try expect("momentum/lra-encoder-constant", "unknown residual 'fixed'") { $0.config["residual"] = "fixed" }
        try expect("linear/encoder-causal", "unknown norm 'sandwich'") { $0.config["norm"] = "sandwich" }
        try expect("linear/encoder-causal", "unknown activation 'swish'") { $0.config["activation"] = "swish" }
        try expect("linear/encoder-causal", "unexpected 1: 'blocks.0.mixer.gate.weight'") {
            $0.tensors["param.layer0.mixer.gate.weight"] = .zeros([3])
        }
    }

    @Test func wrongSettings() throws {
        for (name, key, value, size) in [
            ("softmax/full", "heads", 3, 2), ("softmax/full", "head_dim", 7, 8), ("softmax/full", "length", 4, 13),
            ("softmax/full", "key_length", 4, 13), ("softmax/full", "value_dim", 4, 8),
            ("softmax/layer-causal", "model_dim", 13, 12), ("softmax/layer-causal", "head_dim", 5, 4),
            ("linear/encoder-causal", "length", 12, 11), ("linear/encoder-causal", "model_dim", 6, 12),
            ("linear/encoder-causal", "value_dim", 6, 4), ("linear/encoder-causal", "key_length", 6, 11),
        ] {
            try expect(name, "setting '\(key)' is \(value), but the tensors say \(size)") { $0.config[key] = value }
        }
        try expect("linear/encoder-causal", "modelDim 12 is not a multiple of heads 5") { $0.config["heads"] = 5 }
        try expect("softmax/layer-causal", "model_dim 12 is not a multiple of heads 0") {
            $0.config["heads"] = 0
            $0.config["head_dim"] = nil
        }
        try expect("linear/encoder-causal", "missing 16: 'blocks.2.") { $0.config["layers"] = 3 }
        try expect("linear/encoder-causal", "'blocks.0.feedForward.up.weight' expected [21, 12], found [20, 12]") {
            $0.config["ffn_dim"] = 21
        }
        try expect("softmax/full", "setting 'causal' should be true or false") { $0.config["causal"] = "no" }
        try expect("softmax/full", "setting 'heads' should be a whole number") { $0.config["heads"] = 1.5 }
        try expect("softmax/full", "setting 'scale' should be a number") { $0.config["scale"] = "1" }
        try expect("softmax/full", "the settings have no key 'causal'") { $0.config["causal"] = nil }
        try expect("softmax/full", "setting 'dropout' is '0.1'; known: 0.0") { $0.config["dropout"] = 0.1 }
        try expect("softmax/full", "setting 'padding' is true, but the file has no padding_mask") {
            $0.config["padding"] = true
        }
        try expect("softmax/full-padding", "setting 'padding' is false, but the file has a padding_mask") {
            $0.config["padding"] = false
        }
        try expect("linear/smoothed-rff-causal", "12 features of 'smoothed-rff' do not fit omega of shape [5, 6]") {
            $0.config["features"] = 12
        }
        try expect("linear/favor-causal", "17 features of 'favor' do not fit omega of shape [8, 8]") {
            $0.config["features"] = 17
        }
        try expect("linear/causal", "unknown setting 'softmax_temp'") { $0.config["softmax_temp"] = 1 }
        try expect("linear/causal", "unknown tensor 'omega'") { $0.tensors["omega"] = .zeros([8, 4]) }
        try expect("momentum/causal-adaptive", "unknown setting 'momentum'") { $0.config["momentum"] = 0.5 }
        try expect("momentum/causal-heavy-ball", "momentum must be at least 0 and below 1, not 1.5") {
            $0.config["momentum"] = 1.5
        }
        try expect("momentum/lra-encoder-constant", "residual: delta 0.1 belongs to kind adaptive, not constant") {
            $0.config["residual_delta"] = 0.1
        }
        try expect("softmax/causal", "causal attention needs as many keys as queries") {
            let q = try #require($0.tensors["q"])
            $0.tensors["q"] = q.sliced(2, 0..<4)
            $0.config["length"] = 4
        }
    }

    @Test func wrongNumbers() throws {
        for name in ["softmax/full", "linear/causal", "momentum/lra-encoder-constant"] {
            for tensor in ["out", "grad.\(name.contains("lra") ? "param.norm.bias" : "v")"] {
                try expect(name, "\(tensor) (float64, efficient form): off by ") {
                    let values = try #require($0.tensors[tensor])
                    let disturbed = values.cloned()
                    let scale = values.abs().maximum().item()
                    disturbed.addInPlace(.full(like: values, 1e-6 * scale))
                    $0.tensors[tensor] = disturbed
                }
            }
        }
        try expect("softmax/full", "out (float64, efficient form): off by nan") {
            let out = try #require($0.tensors["out"])
            let broken = out.cloned()
            broken.selected(0, 0).fillInPlace(Double.nan)
            $0.tensors["out"] = broken
        }
        try expect("linear/causal", "final_state.s (float64, efficient form): off by") {
            $0.tensors["final_state.s"] = try #require($0.tensors["final_state.s"]) * 1.001
        }
        try expect("softmax/full", "out (float64, efficient form): shape [2, 2, 13, 8], expected [2, 2, 12, 8]") {
            $0.tensors["out"] = try #require($0.tensors["out"]).sliced(2, 0..<12)
        }
    }

    @Test func missingTensors() throws {
        for name in ["q", "v", "out", "cotangent"] {
            try expect("softmax/full", "the file has no tensor '\(name)'") { $0.tensors[name] = nil }
        }
        try expect("linear/favor-causal", "the file has no tensor 'omega'") { $0.tensors["omega"] = nil }
        try expect("linear/encoder-causal", "the file has no tensor 'x'") { $0.tensors["x"] = nil }
        try expect("linear/encoder-causal", "missing 1: 'blocks.1.mixer.key.bias'") {
            $0.tensors["param.layer1.k_proj.bias"] = nil
            $0.tensors["grad.param.layer1.k_proj.bias"] = nil
        }
    }

    /// Settings that say in other words what the file shows, or what is always so, are understood.
    @Test func meaningfulSettings() throws {
        func passes(_ name: String, _ settings: [String: Any], at location: SourceLocation = #_sourceLocation) throws {
            var mutation = try Mutation(name)
            mutation.config.merge(settings) { $1 }
            #expect(try mutation.failures() == [], sourceLocation: location)
        }
        try passes("softmax/full", ["batch": 2])
        try passes("softmax/layer-causal", ["bias": true, "key_length": 9, "value_dim": 4, "scale": 0.5])
        try passes("linear/favor-causal", ["orthogonal": true, "dropout": 0.0])
        try passes("linear/smoothed-rff-causal", ["orthogonal": true, "dropout": 0])
        try passes("linear/encoder-causal", ["head_dim": 4, "residual": "plain", "bias": true])
        try passes("momentum/bidirectional", ["key_length": 18, "dropout": 0.0, "weight_length": "padded"])
        try passes("momentum/lra-encoder-constant", ["eps": 1e-6])
    }

    @Test func brokenFiles() throws {
        let whole = try Data(contentsOf: Golden.url("softmax/full"))
        for length in [0, 7, 100, whole.count / 2, whole.count - 1] {
            let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).safetensors")
            defer { try? FileManager.default.removeItem(at: url) }
            try whole.prefix(length).write(to: url)
            let report = ConformanceRunner.check(url, named: "cut")
            #expect(!report.passed && report.checks == 0, "\(length) bytes")
            #expect(report.text.hasPrefix("FAILED  cut (?/?)\n"), "\(report.text)")
        }
        #expect(!ConformanceRunner.check(URL(fileURLWithPath: "/nowhere.safetensors")).passed)
    }

    @Test func settingsThatAreNoObject() throws {
        for config in ["", "[1]", "{", "3"] {
            let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).safetensors")
            defer { try? FileManager.default.removeItem(at: url) }
            try Safetensors.write(
                ["out": .zeros([1])], metadata: ["system": "softmax", "variant": "full", "config": config], to: url)
            let failures = ConformanceRunner.check(url).failures
            #expect(failures.count == 1 && failures[0].hasPrefix("the metadata's 'config' is not a JSON object"))
        }
    }

    @Test func foldersWithoutFiles() throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        var error = #expect(throws: ConformanceError.self) { try GoldenFiles.find(folder.path) }
        #expect(error?.description == "\(folder.path): no .safetensors files in this folder")
        error = #expect(throws: ConformanceError.self) { try GoldenFiles.find("\(folder.path)/x") }
        #expect(error?.description == "\(folder.path)/x: no such file or folder")
    }
}
