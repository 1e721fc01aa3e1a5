import CTorch

/// A function with a gradient of its own.
///
/// `forward` gets the inputs cut off from the graph, runs without recording, and returns the outputs and their pullback:
/// a closure from the outputs' gradients (nil: zero) to the inputs' (nil: none). It may keep inputs and intermediate
/// results, and should keep outputs only detached, which a plain capture of what `forward` computed is. The gradients are
/// not themselves differentiable: asking for that (`createGraph`) is an error. An error in the pullback ends the backward
/// pass and is reported as that one's.
///
/// ```swift
/// let y = withCustomGradient([x]) { inputs in
///     let y = inputs[0].exp()
///     return ([y], { gradients in [gradients[0].map { $0 * y }] })
/// }[0]
/// ```
public func withCustomGradient(
    _ inputs: [Tensor],
    _ forward: (_ inputs: [Tensor]) throws -> (outputs: [Tensor], pullback: ([Tensor?]) -> [Tensor?])
) rethrows -> [Tensor] {
    let (computed, pullback) = try withNoGrad { try forward(inputs.map { $0.detached() }) }
    guard isGradEnabled, inputs.contains(where: \.requiresGrad) else { return computed }
    // The outputs that join the graph are new handles: what the pullback captured stays outside, so that nothing owns itself.
    let outputs = computed.map { $0.detached() }
    let box = PullbackBox(pullback)
    let forC = ctorch_pullback(
        context: Unmanaged.passRetained(box).toOpaque(),
        backward: { PullbackBox.run($0, $1, $2, $3, $4, $5) },
        release: { context in context.map { Unmanaged<PullbackBox>.fromOpaque($0).release() } })
    run("custom gradient", inputs + outputs) { pointers, error in
        ctorch_attach_pullback(
            Array(pointers.prefix(inputs.count)), inputs.count, Array(pointers.suffix(outputs.count)), outputs.count,
            forC, error)
    }
    return outputs
}

/// Computes `body` again in the backward pass instead of keeping its intermediate results: memory for time.
///
/// `body` must be a function of its inputs and of parameters that it captures; `parameters` lists those captured ones that
/// should receive a gradient (frozen ones among them are passed over). Random choices inside must come from a generator
/// whose state `body` restores itself.
public func checkpointed(_ inputs: [Tensor], parameters: [Tensor] = [], _ body: @escaping ([Tensor]) -> [Tensor])
    -> [Tensor]
{
    let areWanted = inputs.map(\.requiresGrad)
    return withCustomGradient(inputs + parameters) { detached in
        let data = Array(detached.prefix(inputs.count))
        return (
            body(data),
            { outputGradients in
                withGrad {
                    let leaves = zip(data, areWanted).map { $0.requiringGrad($1) }
                    return presentGradients(of: body(leaves), outputGradients, leaves + parameters)
                }
            }
        )
    }
}

/// The gradients that there are: nil for inputs that need none, and for all when no output that was used depends on any.
private func presentGradients(of outputs: [Tensor], _ weights: [Tensor?], _ inputs: [Tensor]) -> [Tensor?] {
    let used = zip(outputs, weights).compactMap { output, weight in
        output.requiresGrad ? weight.map { (output, $0) } : nil
    }
    let wanted = inputs.indices.filter { inputs[$0].requiresGrad }
    var results = [Tensor?](repeating: nil, count: inputs.count)
    if used.isEmpty || wanted.isEmpty { return results }
    let found = gradients(of: used.map(\.0), weightedBy: used.map(\.1), withRespectTo: wanted.map { inputs[$0] })
    for (index, gradient) in zip(wanted, found) { results[index] = gradient }
    return results
}

/// Keeps the closure alive while the graph may still call it.
private final class PullbackBox {
    let pullback: ([Tensor?]) -> [Tensor?]

    init(_ pullback: @escaping ([Tensor?]) -> [Tensor?]) { self.pullback = pullback }

    static func run(
        _ context: UnsafeMutableRawPointer?, _ gradients: UnsafePointer<ctorch_tensor?>?, _ gradientCount: Int,
        _ results: UnsafeMutablePointer<ctorch_tensor?>?, _ resultCount: Int,
        _ failure: UnsafeMutablePointer<ctorch_error>?
    ) {
        guard let context, let results else { return }
        let box = Unmanaged<PullbackBox>.fromOpaque(context).takeUnretainedValue()
        let given = (0..<gradientCount).map { index in
            (gradients?[index]).map { Tensor(owning: ctorch_tensor_retain($0)) }
        }
        // The pass may run on a thread of LibTorch's, which no scope of Swift's reaches: the error goes back through it.
        do {
            let found = try withTorchErrors {
                let found = withNoGrad { box.pullback(given) }
                torchPrecondition(
                    found.count == resultCount, in: "custom gradient",
                    "the pullback returned \(found.count) gradients for \(resultCount) inputs")
                return found
            }
            for (index, tensor) in found.enumerated() {
                results[index] = tensor.flatMap { ctorch_tensor_retain($0.handle.pointer) }
            }
        } catch {
            let kind = (error as? TorchError)?.kind ?? .internal
            ctorch_error_set(failure, kind.rawValue, "\(error)")
        }
    }
}
