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
/// program.set(x, to: input)
/// program.run()
/// let result = program.numbers(of: y)
/// ```
public final class StepProgram {
    /// A vector of the program.
    public struct Vector: Sendable {
        let place: Int64
        public let count: Int
    }

    /// The functions that ``appendLinear(_:weight:bias:activation:adding:heads:to:)`` can apply.
    public enum Activation: Int32, Sendable, CaseIterable {
        case identity, relu, gelu, geluTanh, silu, tanh, sigmoid, elu, softplus, eluPlusOne
    }

    /// The norms of ``appendNorm(_:_:weight:bias:epsilon:to:)``: with mean and variance, by the root mean square, by the
    /// root mean square without weights, whose ε is added to the root, and with mean and unbiased deviation, likewise.
    public enum Norm: Int32, Sendable, CaseIterable {
        case layer, rootMeanSquare, simpleRootMeanSquare, deviation
    }

    let program: ctorch_step_program
    /// Where the first token stands that it will be run for.
    public let position: Int

    public init(position: Int = 0) {
        program = ctorch_step_program_new()
        self.position = position
    }
    private init(owning program: ctorch_step_program, position: Int) {
        self.program = program
        self.position = position
    }
    deinit { ctorch_step_program_free(program) }

    /// A program with the same operations and weights, and vectors and states of its own, as they stand.
    public func copy() -> StepProgram {
        StepProgram(owning: ctorch_step_program_copy(program), position: position)
    }

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

    /// y = activation(W x + b) + `addend`, for W `[rows, columns]`; of each head of x alike, with several of them.
    public func appendLinear(
        _ x: Vector, weight: Tensor, bias: Tensor? = nil, activation: Activation = .identity,
        adding addend: Vector? = nil, heads: Int = 1, to y: Vector
    ) {
        torchPrecondition(
            heads > 0 && weight.shape.map { $0 * heads } == [y.count, x.count]
                && (addend?.count ?? y.count) == y.count, in: "StepProgram.appendLinear",
            "expected a weight for \(heads) heads from \(x.count) to \(y.count) numbers, got \(weight.shape)")
        var error = ctorch_error()
        withExtendedLifetime((weight, bias)) {
            ctorch_step_linear(
                program, Int64(heads), x.place, weight.handle.pointer, bias?.handle.pointer, activation.rawValue,
                addend?.place ?? -1, y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step linear", [weight])) }
    }

    /// y = norm(x) · weight + bias. Where only products read y, each computes it on the way, and y itself is not set.
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

    /// y = x with the pairs of each head's channels turned by the position times each of the frequencies, float64
    /// `[headDim / 2]`: channels c and c + headDim / 2 are a pair, or with `neighbours` 2 c and 2 c + 1. Positions begin anew
    /// after each `period`, if there is one.
    public func appendRotation(
        _ frequencies: Tensor, heads: Int, neighbours: Bool, period: Int? = nil, _ x: Vector, to y: Vector
    ) {
        checkCounts([x, y], in: "StepProgram.appendRotation")
        torchPrecondition(
            heads * frequencies.count * 2 == x.count && frequencies.dtype == .float64, in: "StepProgram.appendRotation",
            "expected float64 frequencies for \(x.count) channels of \(heads) heads, got \(frequencies.shape)")
        var error = ctorch_error()
        withExtendedLifetime(frequencies) {
            ctorch_step_rotate(
                program, frequencies.handle.pointer, Int64(heads), neighbours, Int64(period ?? 0), x.place, y.place,
                &error)
        }
        if error.message != nil { fail(error.taken(in: "step rotation", [frequencies])) }
    }

    /// What ``appendLookup(_:of:adding:to:)`` goes by.
    public enum Index: Sendable {
        case token, position
    }

    /// y = `addend` + the row of a table `[rows, y.count]` that the token, or its position, chooses.
    public func appendLookup(_ table: Tensor, of index: Index, adding addend: Vector? = nil, to y: Vector) {
        torchPrecondition(
            table.rank == 2 && table.size(1) == y.count && (addend?.count ?? y.count) == y.count,
            in: "StepProgram.appendLookup", "expected a table [rows, \(y.count)], got \(table.shape)")
        var error = ctorch_error()
        withExtendedLifetime(table) {
            ctorch_step_lookup(program, table.handle.pointer, index == .position, addend?.place ?? -1, y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step lookup", [table])) }
    }

    /// y = x + sin, cos, sin, cos, … of the position times each of the frequencies, float64 `[⌈x.count / 2⌉]`.
    public func appendWaves(_ frequencies: Tensor, adding x: Vector, to y: Vector) {
        checkCounts([x, y], in: "StepProgram.appendWaves")
        torchPrecondition(
            frequencies.shape == [(x.count + 1) / 2] && frequencies.dtype == .float64, in: "StepProgram.appendWaves",
            "expected float64 frequencies [\((x.count + 1) / 2)], got \(frequencies.dtype) \(frequencies.shape)")
        var error = ctorch_error()
        withExtendedLifetime(frequencies) {
            ctorch_step_waves(program, frequencies.handle.pointer, Int64(x.count), x.place, y.place, &error)
        }
        if error.message != nil { fail(error.taken(in: "step waves", [frequencies])) }
    }

    /// Sets a vector to the numbers of a tensor.
    public func set(_ x: Vector, to numbers: Tensor) {
        torchPrecondition(
            numbers.count == x.count, in: "StepProgram.set", "expected \(x.count) numbers, got \(numbers.shape)")
        Torch.run("step input", [numbers.contiguous()]) { pointers, error in
            ctorch_step_set(program, x.place, pointers[0], error)
        }
    }

    /// Does all operations in turn, for a token at a position.
    public func run(token: Int = 0, position: Int = 0) {
        var error = ctorch_error()
        ctorch_step_run(program, Int64(token), Int64(position), &error)
        if error.message != nil { fail(error.taken(in: "step", [])) }
    }

    /// What a vector holds.
    public func numbers(of y: Vector) -> [Float] {
        [Float](unsafeUninitializedCapacity: y.count) { buffer, count in
            ctorch_step_get(program, y.place, Int64(y.count), buffer.baseAddress)
            count = y.count
        }
    }

    func checkCounts(_ vectors: [Vector], in operation: String) {
        let counts = vectors.map(\.count)
        torchPrecondition(Set(counts).count == 1, in: operation, "expected vectors of one length, got \(counts)")
    }
}
