import SequenceMixers
import Torch
import TorchNN

/// A language model's step for one sequence as a program: see ``LanguageModel/compiledStep(_:)``. A value: copies go on alone.
public struct CompiledStep {
    private let embedding: TokenEmbedding
    private var program: StepProgram
    /// Where the embedded token goes, if it is not the program that embeds it.
    private let input: StepProgram.Vector?
    private let output: StepProgram.Vector
    /// Tokens read so far.
    public private(set) var position: Int

    fileprivate init?(_ model: LanguageModel, _ state: LanguageModelState) {
        embedding = model.embedding
        position = state.position
        program = StepProgram(position: state.position)
        let embedded = embedding.compileStep(into: program)
        let x = embedded ?? program.vector(count: model.head.inputs)
        input = embedded == nil ? x : nil
        guard let y = model.encoder.compileStep(x, states: state.blocks, into: program) else { return nil }
        output = program.vector(count: model.vocabulary)
        program.append(model.head, y, to: output)
    }

    /// The logits after one more token, `vocabulary` of them.
    public mutating func callAsFunction(_ token: Int) -> [Float] {
        if !isKnownUniquelyReferenced(&program) { program = program.copy() }
        if let input { program.set(input, to: embedding(Tensor([token], shape: [1, 1]), offset: position)) }
        program.run(token: token, position: position)
        position += 1
        return program.numbers(of: output)
    }
}

extension LanguageModel {
    /// The step that goes on from `state`, without allocations: a token then costs little more than reading the weights.
    ///
    /// Equal to ``step(_:state:)`` up to rounding. It holds the weights as they are; a training step that puts others in their
    /// place is not seen.
    /// - Returns: nil for what has no program: a batch, a mixer that does not compile, other numbers than float32 on the CPU,
    ///   reversible or adaptive connections, training.
    public func compiledStep(_ state: LanguageModelState) -> CompiledStep? {
        let weight = head.weight.value
        guard !isTraining, weight.dtype == .float32, weight.device == .cpu else { return nil }
        return CompiledStep(self, state)
    }
}

extension TokenEmbedding {
    /// The vector of a token with its position; nil, and nothing is appended, for positions that programs do not have.
    fileprivate func compileStep(into program: StepProgram) -> StepProgram.Vector? {
        guard axial == nil, sinusoidal == nil || !concatenates else { return nil }
        let x = program.vector(count: token.dim)
        program.appendLookup(token.weight.value.detached().contiguous(), of: .token, to: x)
        guard learned != nil || sinusoidal != nil else { return x }
        let y = program.vector(count: token.dim)
        if let learned {
            program.appendLookup(learned.weight.value.detached().contiguous(), of: .position, adding: x, to: y)
        } else if let sinusoidal {
            program.appendWaves(sinusoidal.frequencies, adding: x, to: y)
        }
        return y
    }
}

extension SequenceEncoder {
    func compileStep(_ x: StepProgram.Vector, states: [any StreamingState], into program: StepProgram)
        -> StepProgram.Vector?
    {
        guard !blocks.isEmpty, states.count == blocks.count, [.plain, .constant].contains(residual.kind) else {
            return nil
        }
        var y = x
        var velocity: StepProgram.Vector?
        for (block, state) in zip(blocks, states) {
            guard let next = block.compileStep(y, state, residual, &velocity, into: program) else { return nil }
            y = next
        }
        return norm.map { program.append($0, y) } ?? y
    }
}

extension TransformerBlock {
    /// The block's equations; see ``TransformerBlock``.
    fileprivate func compileStep(
        _ x: StepProgram.Vector, _ state: any StreamingState, _ residual: ResidualConfiguration,
        _ velocity: inout StepProgram.Vector?, into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let mixer = mixer as? any StepCompiling,
            let h = compileMixer(mixer, x, state, residual, &velocity, into: program)
        else { return nil }
        guard let feedForward, let feedForwardNorm else { return h }
        switch placement {
        case .pre:
            return program.append(feedForwardNorm, h).map { feedForward.compileStep($0, adding: h, into: program) }
        case .post: return program.append(feedForwardNorm, feedForward.compileStep(h, adding: h, into: program))
        }
    }

    /// h: what a mixer gives that is a whole block, or the mixer's output and its input joined, with the norm at its place.
    private func compileMixer(
        _ mixer: any StepCompiling, _ x: StepProgram.Vector, _ state: any StreamingState,
        _ residual: ResidualConfiguration, _ velocity: inout StepProgram.Vector?, into program: StepProgram
    ) -> StepProgram.Vector? {
        guard let mixerNorm else { return mixer.compileStep(x, adding: nil, state: state, into: program) }
        let addend = residual.kind == .plain ? x : nil
        guard let input = placement == .pre ? program.append(mixerNorm, x) : x,
            let mixed = mixer.compileStep(input, adding: addend, state: state, into: program)
        else { return nil }
        let h = addend == nil ? compileJoin(x, mixed, residual, &velocity, into: program) : mixed
        return placement == .pre ? h : program.append(mixerNorm, h)
    }

    /// x - γ̃ u with u = β̃ u - mixed
    private func compileJoin(
        _ x: StepProgram.Vector, _ mixed: StepProgram.Vector, _ residual: ResidualConfiguration,
        _ velocity: inout StepProgram.Vector?, into program: StepProgram
    ) -> StepProgram.Vector {
        let (u, h) = (program.vector(count: x.count), program.vector(count: x.count))
        let momentum = residual.momentum ?? ResidualConfiguration.standardMomentum
        program.appendCombination(velocity == nil ? 0 : momentum, velocity ?? mixed, -1, mixed, to: u)
        velocity = u
        program.appendCombination(1, x, -(residual.stepSize ?? ResidualConfiguration.standardStepSize), u, to: h)
        return h
    }
}

extension FeedForward {
    fileprivate func compileStep(_ x: StepProgram.Vector, adding addend: StepProgram.Vector, into program: StepProgram)
        -> StepProgram.Vector
    {
        let hidden = program.vector(count: up.outputs)
        let function = activation.inStepProgram
        if let gate {
            let opened = program.vector(count: up.outputs)
            program.append(gate, x, to: opened)
            program.append(up, x, to: hidden)
            program.appendGate(function, opened, hidden, to: hidden)
        } else {
            program.append(up, x, activation: function, to: hidden)
        }
        let y = program.vector(count: down.outputs)
        program.append(down, hidden, adding: addend, to: y)
        return y
    }
}
