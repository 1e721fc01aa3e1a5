import Torch
import TorchNN

/// Sharpness-aware minimization around another optimizer (Foret, Kleiner, Mobahi, Neyshabur 2021, arXiv 2010.01412): it
/// is given the gradient where the loss is highest in a ball around the weights, to first order.
///
///     g = ∇f(w),  e = ρ g / (|g| + 10⁻¹²)          |g| over all parameters together
///     w ← optimizer(w, ∇f(w + e))                   on the same batch
///
/// Adaptive (Kwon et al. 2021, arXiv 2102.11600): e = ρ w² g / (| |w| g | + 10⁻¹²).
///
/// Costs two forward and backward passes a step, and a copy of the weights. Both passes must be of one function: the
/// same batch and the same random choices. ``step(replaying:_:)`` sees to that; who needs the parts calls ``climb()``
/// with the gradient at w, computes it anew, and calls ``step()``.
public final class SAM: Optimizer {
    public let optimizer: any Optimizer
    /// ρ
    public let rho: Double
    public let isAdaptive: Bool
    private let parameters: [Parameter]
    /// The weights before the climb, of those parameters that took part.
    private var origin: [(parameter: Parameter, value: Tensor)] = []

    /// - Parameters:
    ///   - optimizer: of the same parameters.
    ///   - parameters: those that are moved by e.
    public init(_ optimizer: any Optimizer, _ parameters: [Parameter], rho: Double, isAdaptive: Bool = false) {
        torchPrecondition(rho >= 0 && rho.isFinite, in: "SAM", "expected a rho of at least 0, got \(rho)")
        self.optimizer = optimizer
        self.parameters = parameters
        self.rho = rho
        self.isAdaptive = isAdaptive
    }

    public var learningRate: Double {
        get { optimizer.learningRate }
        set { optimizer.learningRate = newValue }
    }

    /// Moves the weights by e along their present gradient, and drops it; returns |g|.
    ///
    /// A norm that is not finite is returned as it is, and nothing has been changed.
    @discardableResult
    public func climb() -> Double {
        torchPrecondition(origin.isEmpty, in: "SAM.climb", "the weights are away from their place: call step first")
        let moved = parameters.filter { $0.isTrainable && $0.grad != nil }
        return withNoGrad {
            let gradients = moved.compactMap(\.grad)
            guard !gradients.isEmpty else { return 0 }
            let norm = globalNorm(gradients).item()
            guard norm.isFinite else { return norm }
            let weighted = zip(moved, gradients).map { isAdaptive ? $0.value.detached().abs() * $1 : $1 }
            let length = isAdaptive ? globalNorm(weighted).item() : norm
            origin = moved.map { ($0, $0.value.detached().cloned()) }
            for ((parameter, value), direction) in zip(origin, weighted) {
                let e = isAdaptive ? value.abs() * direction : direction
                parameter.value.addInPlace(e, scale: rho / (length + 1e-12))
                parameter.grad = nil
            }
            return norm
        }
    }

    /// Puts the weights back to where they were before the climb. Does nothing where there was none.
    public func retreat() {
        for (parameter, value) in origin { parameter.value.copyInPlace(from: value) }
        origin = []
    }

    /// Puts the weights back, and lets the optimizer update them by the gradient that they have now. Without a climb
    /// before, it is the optimizer's step.
    public func step() {
        retreat()
        optimizer.step()
    }

    /// A whole step. `pass` drops the gradients, computes the loss and its gradients, and is called twice.
    ///
    /// - Parameter generators: what `pass` draws random numbers from, for dropout and the like; the second call gets
    ///   the numbers of the first.
    /// - Returns: what `pass` returned at w.
    @discardableResult
    public func step<Result>(replaying generators: [RandomGenerator] = [], _ pass: () throws -> Result) rethrows
        -> Result
    {
        defer { retreat() }
        let states = generators.map(\.state)
        let result = try pass()
        climb()
        for (generator, state) in zip(generators, states) { generator.state = state }
        _ = try pass()
        step()
        return result
    }

    public func zeroGradients() { optimizer.zeroGradients() }

    /// The optimizer's: SAM remembers nothing from step to step.
    public var state: [String: Tensor] { optimizer.state }

    public func load(state: [String: Tensor]) throws { try optimizer.load(state: state) }
}
