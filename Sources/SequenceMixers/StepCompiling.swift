import Torch
import TorchNN

/// A streaming mixer that can also write its ``StreamingMixer/step(_:state:)`` down as operations of a `StepProgram`, for one
/// sequence in float32 on the CPU.
public protocol StepCompiling: StreamingMixer {
    /// Appends one token: `x` is the mixer's input, the output is added to `addend` if there is one. The state is taken over as
    /// it stands.
    ///
    /// - Returns: the vector with the output; nil, and nothing is appended, if this configuration cannot be compiled.
    func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector?
}

/// A core whose step can be written down; see ``StepCompiling``.
public protocol StepCompilingCore: StreamingCore {
    /// Appends one token from q, k, v `[heads · headDim]` to y; false, and nothing is appended, if it cannot.
    func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: State,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool
}

extension Attention: StepCompiling where Core: StepCompilingCore {
    public func compileStep(
        _ x: StepProgram.Vector, adding addend: StepProgram.Vector?, state: any StreamingState,
        into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let state = state as? AttentionState<Core.State>, state.positions.count == 1, !usesReference,
            rotary == nil || state.positions == [program.position],
            query.outputs / heads <= StepProgram.largestHead
        else { return nil }
        let parts = [query, key, value].map { program.product($0, x) }
        if let rotary {
            for part in parts.prefix(2) { program.append(rotary, heads: heads, part) }
        }
        let mixed = program.vector(count: value.outputs)
        guard
            core.compileStep(
                parts[0], parts[1], parts[2], heads: heads, state: state.core, to: mixed, into: program)
        else { return nil }
        return program.product(output, mixed, adding: addend)
    }
}

extension SoftmaxCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: KeyValueCache,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard state.mask == nil, q.count == v.count else { return false }
        program.appendAttention(
            q, k, v, heads: heads, scale: scale ?? 1 / Double(q.count / heads).squareRoot(),
            keys: tokenRows(state.keys), values: tokenRows(state.values), to: y)
        return true
    }
}

/// `[1, heads, tokens, headDim]` → `[tokens, heads · headDim]`
func tokenRows(_ x: Tensor) -> Tensor { x.selected(0, 0).transposed(0, 1).flattened(1, 2).contiguous() }

extension StepProgram {
    /// Turns a vector of heads by its token's position.
    func append(_ rotary: RotaryEmbedding, heads: Int, _ x: Vector) {
        appendRotation(rotary.frequencies, heads: heads, neighbours: rotary.pairing == .interleaved, x, to: x)
    }

    /// y = activation(layer(x)) + addend
    public func append(
        _ layer: Linear, _ x: Vector, activation: Activation = .identity, adding addend: Vector? = nil, to y: Vector
    ) {
        appendLinear(
            x, weight: layer.weight.value.detached().contiguous(), bias: layer.bias?.value.detached(),
            activation: activation, adding: addend, to: y)
    }

    /// A new vector with the sum of two; the first one itself if there is no second.
    func sum(_ x: Vector, _ addend: Vector?) -> Vector {
        guard let addend else { return x }
        let y = vector(count: x.count)
        appendCombination(1, x, 1, addend, to: y)
        return y
    }

    /// A new vector with activation(layer(x)) + addend.
    func product(
        _ layer: Linear, _ x: Vector, activation: Activation = .identity, adding addend: Vector? = nil
    ) -> Vector {
        let y = vector(count: layer.outputs)
        append(layer, x, activation: activation, adding: addend, to: y)
        return y
    }

    /// A new vector with activation(layer(x)) for some of the layer's outputs.
    func product(
        _ layer: Linear, outputs: Range<Int>, _ x: Vector, activation: Activation = .identity
    ) -> Vector {
        let y = vector(count: outputs.count)
        appendLinear(
            x, weight: layer.weight.value.detached().sliced(0, outputs).contiguous(),
            bias: layer.bias?.value.detached().sliced(0, outputs), activation: activation, to: y)
        return y
    }

    /// y = norm(x); nil for a norm that programs do not have.
    public func append(_ norm: any Normalizing, _ x: Vector) -> Vector? {
        let y = vector(count: x.count)
        switch norm {
        case let norm as LayerNorm:
            appendNorm(
                .layer, x, weight: norm.weight.value.detached(), bias: norm.bias?.value.detached(),
                epsilon: norm.epsilon, to: y)
        case let norm as RMSNorm:
            appendNorm(.rootMeanSquare, x, weight: norm.weight.value.detached(), epsilon: norm.epsilon, to: y)
        case let norm as SimpleRMSNorm: appendNorm(.simpleRootMeanSquare, x, epsilon: norm.epsilon, to: y)
        case let norm as DeviationNorm:
            appendNorm(
                .deviation, x, weight: norm.weight.value.detached(), bias: norm.bias.value.detached(),
                epsilon: norm.epsilon, to: y)
        default: return nil
        }
        return y
    }
}

extension Activation {
    /// The same function in a step program.
    public var inStepProgram: StepProgram.Activation {
        switch self {
        case .identity: .identity
        case .relu: .relu
        case .gelu: .gelu
        case .geluTanh: .geluTanh
        case .silu: .silu
        case .tanh: .tanh
        case .sigmoid: .sigmoid
        case .elu: .elu
        case .softplus: .softplus
        }
    }
}
