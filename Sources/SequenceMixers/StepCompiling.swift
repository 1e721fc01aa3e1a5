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
        guard let state = state as? AttentionState<Core.State>, state.positions.count == 1, rotary == nil,
            !usesReference,
            query.outputs / heads <= StepProgram.largestHead
        else { return nil }
        let parts = [query, key, value].map { projection in
            let part = program.vector(count: projection.outputs)
            program.append(projection, x, to: part)
            return part
        }
        let mixed = program.vector(count: value.outputs)
        guard
            core.compileStep(
                parts[0], parts[1], parts[2], heads: heads, state: state.core, to: mixed, into: program)
        else { return nil }
        let y = program.vector(count: output.outputs)
        program.append(output, mixed, adding: addend, to: y)
        return y
    }
}

extension LinearCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: LinearState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard let map = featureMap.kind.elementwise else { return false }
        let carried = state.carried
        program.appendCausalLinear(
            q, k, v, heads: heads, map: map, epsilon: epsilon,
            state: (program.vector(carried.s), nil, program.vector(carried.z)), to: y)
        return true
    }
}

extension MomentumCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: MomentumState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard case .heavyBall(let linear) = state else { return false }
        let carried = linear.carried
        let momenta = carried.p ?? .zeros(like: carried.s)
        program.appendCausalLinear(
            q, k, v, heads: heads, map: .eluPlusOne, momentum: momentum, stepSize: stepSize, epsilon: epsilon,
            state: (program.vector(carried.s), program.vector(momenta), program.vector(carried.z)), to: y)
        return true
    }
}

extension StepProgram {
    /// y = activation(layer(x)) + addend
    public func append(
        _ layer: Linear, _ x: Vector, activation: Activation = .identity, adding addend: Vector? = nil, to y: Vector
    ) {
        appendLinear(
            x, weight: layer.weight.value.detached().contiguous(), bias: layer.bias?.value.detached(),
            activation: activation, adding: addend, to: y)
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
