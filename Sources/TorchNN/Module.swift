import Torch

/// A part of a model: it holds parameters, buffers and other modules in its stored properties.
///
/// Properties are found by reflection and named by their path, as `blocks.0.mixer.query.weight`, in the order of their
/// declaration, those of the superclass first. Arrays, dictionaries, optionals, tuples, enums and structs are followed;
/// objects that are not modules are not. Reflection walks the whole tree at each call: keep the result of
/// ``parameters()`` where it is needed at every step.
///
/// A module is not `Sendable`, as its tensors are not.
open class Module {
    /// Whether layers such as ``Dropout`` behave as in training; true at first.
    public private(set) final var isTraining = true

    public init() {}

    // MARK: - Mode

    /// Switches the whole tree to training, or with false to evaluation.
    public final func train(_ mode: Bool = true) {
        for module in ModuleTree(self).modules { module.module.isTraining = mode }
    }

    /// Switches the whole tree to evaluation.
    public final func evaluate() { train(false) }

    // MARK: - Parts

    /// Every module of the tree with its path, this one first under an empty name; a shared one once.
    public final func namedModules() -> [(name: String, module: Module)] {
        unique(ModuleTree(self).modules, by: { $0.module })
    }

    /// Every parameter of the tree with its path; a shared one once, under its first path.
    public final func namedParameters() -> [(name: String, parameter: Parameter)] {
        unique(ModuleTree(self).parameters, by: { $0.parameter })
    }

    /// Every buffer of the tree with its path; a shared one once, under its first path.
    public final func namedBuffers() -> [(name: String, buffer: Buffer)] {
        unique(ModuleTree(self).buffers, by: { $0.buffer })
    }

    /// Every parameter of the tree, a shared one once; see ``namedParameters()``.
    public final func parameters() -> [Parameter] { namedParameters().map(\.parameter) }

    /// The number of weights, not of tensors.
    public final func parameterCount(trainableOnly: Bool = false) -> Int {
        parameters().reduce(0) { $0 + (trainableOnly && !$1.isTrainable ? 0 : $1.value.count) }
    }

    // MARK: - Changes

    /// Stops training of every parameter in the tree; their gradients are dropped.
    public final func freeze() { setTrainable(false) }

    /// Lets every parameter in the tree be trained again.
    public final func unfreeze() { setTrainable(true) }

    /// Drops every parameter's gradient.
    public final func zeroGradients() {
        for parameter in parameters() { parameter.grad = nil }
    }

    /// Converts parameters and floating-point buffers; whole numbers stay as they are. Gradients are dropped.
    public final func to(_ dtype: DType) {
        torchPrecondition(dtype.isFloatingPoint, in: "Module.to", "expected a floating-point type, got \(dtype)")
        convert { $0.dtype.isFloatingPoint ? $0.to(dtype) : $0 }
    }

    /// Moves parameters and buffers. Gradients are dropped.
    public final func to(_ device: Device) {
        convert { $0.to(device) }
    }

    private func setTrainable(_ value: Bool) {
        for parameter in parameters() { parameter.isTrainable = value }
    }

    private func convert(_ body: (Tensor) -> Tensor) {
        for (_, parameter) in namedParameters() { parameter.replace(with: body(parameter.value.detached())) }
        for (_, buffer) in namedBuffers() { buffer.value = body(buffer.value) }
    }
}

private func unique<Entry>(_ entries: [Entry], by identity: (Entry) -> AnyObject) -> [Entry] {
    var seen: Set<ObjectIdentifier> = []
    return entries.filter { seen.insert(ObjectIdentifier(identity($0))).inserted }
}
