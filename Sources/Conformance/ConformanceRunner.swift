import Foundation
import SequenceMixers
import Torch

/// Compares the project's mechanisms with numbers from their authors' code.
///
/// A golden file names a system, a variant and settings, and holds inputs, parameters, outputs and gradients in float64.
/// Each is compared in float64 and float32, on the efficient form and on the reference form.
public enum ConformanceRunner {
    /// Allowed deviation relative to a tensor's largest magnitude, or to ``floor`` where that is larger.
    public static let tolerances: [(dtype: DType, tolerance: Double)] = [(.float64, 1e-9), (.float32, 1e-4)]

    /// Tensors below this are compared as if they were of this size: some gradients vanish, and a file then holds a trace of
    /// rounding.
    public static let floor = 0.01

    /// Compares one file; whatever is wrong with it is in the report.
    public static func check(_ url: URL, named name: String? = nil) -> ConformanceReport {
        var comparison = Comparison()
        var system = "?"
        var variant = "?"
        do {
            let file = try GoldenFile(url)
            (system, variant) = (file.system, file.variant)
            let entry = try MixerCatalogue.entry(named: system)
            for (dtype, tolerance) in tolerances {
                for usesReference in [false, true] {
                    comparison.begin(dtype, tolerance, usesReference ? "reference form" : "efficient form")
                    try withTorchErrors { try compare(file, entry, dtype, usesReference, &comparison) }
                }
            }
        } catch {
            comparison.failures.append("\(error)")
        }
        return ConformanceReport(
            file: name ?? url.path, system: system, variant: variant, checks: comparison.checks,
            worst: comparison.worst,
            failures: comparison.failures)
    }

    private static func compare(
        _ file: GoldenFile, _ entry: CatalogueEntry, _ dtype: DType, _ usesReference: Bool,
        _ comparison: inout Comparison
    ) throws {
        let golden = try file.golden(dtype)
        let result = try evaluate(golden, entry, usesReference)
        try noneLeft(golden.settings.unread, "setting")
        for (name, found) in result.outputs.sorted(by: { $0.key < $1.key }) {
            comparison.compare(name, found, try golden.tensor(name))
        }
        let gradients = golden.tensors(prefixed: "grad.")
        let largest = gradients.values.map { $0.abs().maximum().item() }.max() ?? 0
        for (name, expected) in gradients.sorted(by: { $0.key < $1.key }) {
            guard let found = result.gradients[name] else {
                throw ConfigurationError("no input or parameter '\(name)' has a gradient")
            }
            // Softmax takes no notice of a bias of all keys: its gradient is 0, and the file's a trace of rounding.
            let isTrace = expected.abs().maximum().item() <= 1e-12 * largest
            comparison.compare("grad.\(name)", found, expected, scale: isTrace ? largest : 0)
        }
        let states = golden.tensors(prefixed: "final_state.")
        for (name, expected) in states.sorted(by: { $0.key < $1.key }) where !usesReference {
            guard let found = try result.finalState()[name] else {
                throw ConfigurationError("the mechanism keeps no state '\(name)'")
            }
            comparison.compare("final_state.\(name)", found, expected)
        }
        try noneLeft(golden.unreadTensors, "tensor")
    }

    private static func evaluate(_ golden: GoldenCase, _ entry: CatalogueEntry, _ usesReference: Bool) throws
        -> GoldenResult
    {
        if let evaluation = try ModelSubjects.evaluation(golden) {
            return try ModuleEvaluation.evaluate(evaluation, golden, usesReference)
        }
        switch try entry.golden(golden) {
        case .evaluation(let evaluation):
            return try ModuleEvaluation.evaluate(evaluation, golden, usesReference)
        case .core(let core, let parameterName):
            switch try golden.settings.string("kind", or: "core", expecting: ["core", "layer", "model"]) {
            case "core": return try GoldenCore.evaluate(core, golden, usesReference, parameterName)
            case "layer": return try GoldenLayer.evaluate(core, golden, usesReference)
            default:
                return try GoldenEncoder.evaluate(golden, usesReference) {
                    guard case .core(let core, _) = try entry.golden(golden) else {
                        throw ConfigurationError("\(golden.system) has no core to build an encoder from")
                    }
                    return core
                }
            }
        }
    }

    private static func noneLeft(_ names: [String], _ what: String) throws {
        guard let first = names.first else { return }
        let more = names.count > 1 ? " (and \(names.count - 1) more)" : ""
        throw ConfigurationError("unknown \(what) '\(first)'\(more)")
    }
}

/// What one evaluation gave.
struct GoldenResult {
    /// By name; `out` is the one with gradients.
    var outputs: [String: Tensor]
    /// d(Σ out · cotangent) by input or `param.NAME`.
    var gradients: [String: Tensor]
    /// The state after streaming the whole sequence, computed only when asked for.
    var finalState: () throws -> [String: Tensor]
}

/// Counts agreements and collects deviations.
private struct Comparison {
    var checks = 0
    var worst: [String: Double] = [:]
    var failures: [String] = []
    private var dtype = DType.float64
    private var tolerance = 0.0
    private var form = ""

    mutating func begin(_ dtype: DType, _ tolerance: Double, _ form: String) {
        (self.dtype, self.tolerance, self.form) = (dtype, tolerance, form)
    }

    /// - Parameter scale: of the tensor's kind, where that says more than its own largest magnitude.
    mutating func compare(_ name: String, _ found: Tensor, _ expected: Tensor, scale: Double = 0) {
        checks += 1
        guard found.shape == expected.shape else {
            failures.append("\(name) (\(dtype), \(form)): shape \(found.shape), expected \(expected.shape)")
            return
        }
        guard expected.count > 0 else { return }
        let size = max(expected.abs().maximum().item(), scale, ConformanceRunner.floor)
        let deviation = (found.detached().to(.float64) - expected.to(.float64)).abs().maximum().item() / size
        worst["\(dtype)"] = max(worst["\(dtype)"] ?? 0, deviation)
        if !(deviation <= tolerance) {
            failures.append(
                "\(name) (\(dtype), \(form)): off by \(String(format: "%.2e", deviation)) of the largest magnitude, allowed \(tolerance)"
            )
        }
    }
}
