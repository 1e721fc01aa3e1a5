import CTorch

/// The instruction set that this project's own kernels run with.
///
/// The machine's best, unless the environment variable `SUBQ_ISA` names another when the first kernel runs.
public enum KernelInstructions {
    /// What this machine has, slowest first: `reference` (plain loops), `baseline`, and on x86-64 `avx2` and `avx512`.
    public static var available: [String] {
        var names = [UnsafePointer<CChar>?](repeating: nil, count: 8)
        let count = ctorch_available_isas(&names, names.count)
        return names.prefix(count).compactMap { $0.map { String(cString: $0) } }
    }

    /// What runs in kernels of this project's own on the CPU, forward and backward, instead of as several of LibTorch's
    /// operations.
    public static let fusedKernels = [
        "causal linear, momentum, adaptive momentum and norm attention, feature map and norm included",
        "softmax over ranges of keys: exact, windows, blocks, sparse patterns, long-short, the Combiner's spans",
        "LSH attention, hashes and sorting included",
        "AFT: simple, local, conv",
        "gMLP's gate, dense or short",
        "summaries of spans and normalized mixtures of segments",
        "Mega's moving average and gates",
        "R-Transformer's local RNN",
        "linear, feed-forward and gated layers (float32, AVX-512 on AMD), norms with their residual, cross-entropy",
        "a language model's step of one token with linear or momentum attention",
    ]

    /// - Throws: ``TorchError`` if `SUBQ_ISA` names what this machine lacks.
    public static func active() throws -> String {
        var error = ctorch_error()
        let name = ctorch_isa(&error)
        if error.message != nil { throw error.taken(in: "SUBQ_ISA", []) }
        return name.map { String(cString: $0) } ?? ""
    }

    /// Runs `body` with another one, for all that this thread computes in it: for tests and comparisons.
    public static func with<Result>(_ name: String, _ body: () throws -> Result) throws -> Result {
        var error = ctorch_error()
        ctorch_force_isa(name, &error)
        if error.message != nil { throw error.taken(in: "SUBQ_ISA", []) }
        defer { ctorch_force_isa(nil, nil) }
        return try body()
    }
}
