import CTorch

/// One token through a model, as a list of operations on small vectors, made once and run for every token.
///
/// Running it allocates nothing and wakes the threads once, so that a token costs little more than reading the weights. Vectors
/// and recurrent states lie in the program; ``copy()`` has its own. float32 on the CPU, one sequence, no gradients.
///
/// ```swift
/// let program = StepProgram()
/// let x = program.vector(count: 256), y = program.vector(count: 256)
/// program.appendLinear(x, weight: w, bias: b, to: y)
/// let result = program.run(input, from: x, to: y, count: 256)
/// ```
public final class StepProgram {
    /// A vector of the program.
    public struct Vector: Sendable {
        fileprivate let place: Int64
        public let count: Int
    }

    /// The functions that ``appendLinear(_:weight:bias:activation:adding:to:)`` can apply.
    public enum Activation: Int32, Sendable, CaseIterable {
        case identity, relu, gelu, geluTanh, silu, tanh, sigmoid, elu, softplus
    }

    /// The norms of ``appendNorm(_:_:weight:bias:epsilon:to:)``: with mean and variance, by the root mean square, and by
    /// the root mean square without weights, whose ε is added to the root.
    public enum Norm: Int32, Sendable, CaseIterable {
        case layer, rootMeanSquare, simpleRootMeanSquare
    }

    private let program: ctorch_step_program

    public init() { program = ctorch_step_program_new() }
    private init(owning program: ctorch_step_program) { self.program = program }
    deinit { ctorch_step_program_free(program) }

    /// A program with the same operations and weights, and vectors and states of its own, as they stand.
    public func copy() -> StepProgram { StepProgram(owning: ctorch_step_program_copy(program)) }

    /// A new vector of zeros.
    public func vector(count: Int) -> Vector { vector(count: count, nil) }

    /// A new vector, or state, with the numbers of a tensor.
    public func vector(_ initial: Tensor) -> Vector { vector(count: initial.count, initial) }

    private func vector(count: Int, _ initial: Tensor?) -> Vector {
        var error = ctorch_error()
        let place = withExtendedLifetime(initial) {
            ctorch_step_slot(program, Int64(count), initial?.handle.pointer, &error)
        }
        if error.message != nil { fail(error.taken(in: "step vector", initial.map { [$0] } ?? [])) }
        return Vector(place: place, count: count)
    }

    /// y = activation(W x + b) + `addend`, for W `[rows, columns]`.
    public func appendLinear(
        _ x: Vector, weight: Tensor, bias: Tensor?, activation: Activation = .identity, adding addend: Vector? = nil,
        to y: Vector
    ) {
        torchPrecondition(
            weight.shape == [y.count, x.count] && (addend?.count ?? y.count) == y.count, in: "StepProgram.appendLinear",
            "expected a weight [\(y.count), \(x.count)], got \(weight.shape)")
        var error = ctorch_error()
        withExtendedLifetime((weight, bias)) {
            ctorch_step_linear(
                program, x.place, weight.handle.pointer, bias?.handle.pointer, activation.rawValue,
                addend?.place ?? -1, y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step linear", [weight])) }
    }

    /// y = norm(x) · weight + bias
    public func appendNorm(
        _ norm: Norm, _ x: Vector, weight: Tensor? = nil, bias: Tensor? = nil, epsilon: Double, to y: Vector
    ) {
        checkCounts([x, y], in: "StepProgram.appendNorm")
        var error = ctorch_error()
        withExtendedLifetime((weight, bias)) {
            ctorch_step_norm(
                program, norm.rawValue, x.place, weight?.handle.pointer, bias?.handle.pointer, Int64(x.count), epsilon,
                y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step norm", weight.map { [$0] } ?? [])) }
    }

    /// y = a x + b z
    public func appendCombination(_ a: Double, _ x: Vector, _ b: Double, _ z: Vector, to y: Vector) {
        checkCounts([x, z, y], in: "StepProgram.appendCombination")
        ctorch_step_combine(program, Int64(x.count), a, x.place, b, z.place, y.place)
    }

    /// y = activation(x) · z
    public func appendGate(_ activation: Activation, _ x: Vector, _ z: Vector, to y: Vector) {
        checkCounts([x, z, y], in: "StepProgram.appendGate")
        ctorch_step_gate(program, Int64(x.count), activation.rawValue, x.place, z.place, y.place)
    }

    /// A token of causal linear attention, as ``causalLinearAttention(_:_:_:paddingMask:_:initial:)`` with heads of width
    /// q.count / heads, divided by the sum of the weights. s, p and z are the state, which it changes.
    public func appendCausalLinear(
        _ q: Vector, _ k: Vector, _ v: Vector, heads: Int, map: ElementwiseMap, momentum: Double = 0,
        stepSize: Double = 1, epsilon: Double, state: (s: Vector, p: Vector?, z: Vector), to y: Vector
    ) {
        checkCounts([q, k, v, y, state.z], in: "StepProgram.appendCausalLinear")
        let headDim = q.count / max(heads, 1)
        torchPrecondition(
            headDim * heads == q.count && headDim <= Self.largestHead && state.s.count == q.count * headDim
                && (state.p?.count ?? state.s.count) == state.s.count, in: "StepProgram.appendCausalLinear",
            "expected heads of at most \(Self.largestHead) channels and states to match")
        ctorch_step_causal_linear(
            program, Int64(heads), Int64(headDim), map.rawValue, momentum, stepSize, epsilon, q.place, k.place, v.place,
            state.s.place, state.p?.place ?? -1, state.z.place, y.place)
    }

    /// The widest head that ``appendCausalLinear(_:_:_:heads:map:momentum:stepSize:epsilon:state:to:)`` takes.
    public static let largestHead = 1024

    /// Sets `x` to the numbers of `input`, runs all operations, and returns the numbers of `y` as `[1, y.count]`.
    public func run(_ input: Tensor, from x: Vector, to y: Vector) -> Tensor {
        torchPrecondition(
            input.count == x.count, in: "StepProgram.run", "expected \(x.count) numbers, got \(input.shape)")
        let result = Tensor.uninitialized([1, y.count])
        Torch.run("step", [input.contiguous(), result]) { pointers, error in
            ctorch_step_run(program, pointers[0], x.place, y.place, pointers[1], error)
        }
        return result
    }

    private func checkCounts(_ vectors: [Vector], in operation: String) {
        let counts = vectors.map(\.count)
        torchPrecondition(Set(counts).count == 1, in: operation, "expected vectors of one length, got \(counts)")
    }
}
