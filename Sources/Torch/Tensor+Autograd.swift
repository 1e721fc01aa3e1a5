import CTorch

extension Tensor {
    /// Whether operations on this tensor are recorded for ``backward(gradient:keepGraph:)``.
    public var requiresGrad: Bool { withExtendedLifetime(handle) { ctorch_requires_grad(handle.pointer) } }

    /// The same memory as a new leaf of the graph, whose gradient will be kept.
    public func requiringGrad(_ value: Bool = true) -> Tensor {
        let leaf = detached()
        run("requires_grad", [leaf]) { ctorch_set_requires_grad($0[0], value, $1) }
        return leaf
    }

    /// The same memory, cut off from the graph.
    public func detached() -> Tensor { call("detach", self, ctorch_detach) }

    /// The gradient that ``backward(gradient:keepGraph:)`` has summed up in this leaf; nil before the first.
    public var grad: Tensor? {
        get { withExtendedLifetime(handle) { ctorch_grad(handle.pointer).map(Tensor.init(owning:)) } }
        nonmutating set {
            var error = ctorch_error()
            withExtendedLifetime((handle, newValue)) {
                ctorch_set_grad(handle.pointer, newValue?.handle.pointer, &error)
            }
            if error.message != nil { fail(error.taken(in: "grad", [self])) }
        }
    }

    /// Adds d(self · gradient)/d(leaf) to every leaf's ``grad``. Without a gradient, the tensor must be a single number.
    public func backward(gradient: Tensor? = nil, keepGraph: Bool = false) {
        run("backward", [self] + (gradient.map { [$0] } ?? [])) {
            ctorch_backward($0[0], $0.count > 1 ? $0[1] : nil, keepGraph, $1)
        }
    }
}

/// d(Σ outputs · gradients)/d(inputs), without touching any ``Tensor/grad``; nil for an input that was not used.
///
/// `createGraph` records the computation of the gradients, so that they can be differentiated again.
public func gradients(
    of outputs: [Tensor], weightedBy gradients: [Tensor]? = nil, withRespectTo inputs: [Tensor],
    keepGraph: Bool = false, createGraph: Bool = false
) -> [Tensor?] {
    guard (gradients?.count ?? outputs.count) == outputs.count else {
        fail(
            TorchError(
                .invalidArgument, in: "gradients", "\(gradients?.count ?? 0) weights for \(outputs.count) outputs"))
        return inputs.map { _ in nil }
    }
    var results = [ctorch_tensor?](repeating: nil, count: inputs.count)
    run("gradients", outputs + inputs + (gradients ?? [])) { pointers, error in
        let given =
            gradients == nil
            ? [ctorch_tensor?](repeating: nil, count: outputs.count) : Array(pointers.suffix(outputs.count))
        ctorch_gradients(
            Array(pointers.prefix(outputs.count)), given, outputs.count,
            Array(pointers[outputs.count..<outputs.count + inputs.count]), inputs.count, keepGraph || createGraph,
            createGraph,
            &results, error)
    }
    return results.map { $0.map(Tensor.init(owning:)) }
}

/// Whether operations are being recorded on this thread.
public var isGradEnabled: Bool { ctorch_grad_enabled() }

/// Runs `body` without recording operations. Synchronous, because LibTorch keeps the mode by thread.
public func withNoGrad<Result>(_ body: () throws -> Result) rethrows -> Result { try withGradMode(false, body) }

/// Runs `body` recording operations, also inside ``withNoGrad(_:)``.
public func withGrad<Result>(_ body: () throws -> Result) rethrows -> Result { try withGradMode(true, body) }

private func withGradMode<Result>(_ enabled: Bool, _ body: () throws -> Result) rethrows -> Result {
    let before = ctorch_grad_enabled()
    ctorch_set_grad_enabled(enabled)
    defer { ctorch_set_grad_enabled(before) }
    return try body()
}
