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
        let x = embedded ?? program.vector(count: model.encoder.modelDim)
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
    ///   norms after the sum, reversible or adaptive connections, training.
    public func compiledStep(_ state: LanguageModelState) -> CompiledStep? {
        let weight = head.weight.value
        guard !isTraining, weight.dtype == .float32, weight.device == .cpu, head.inputs == encoder.modelDim else {
            return nil
        }
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
    var modelDim: Int { blocks.first?.feedForward?.up.inputs ?? 0 }

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
    /// h = x + mixer(norm(x)), or x - γ̃ u with u = β̃ u - mixer(norm(x)); y = h + feedForward(norm(h))
    fileprivate func compileStep(
        _ x: StepProgram.Vector, _ state: any StreamingState, _ residual: ResidualConfiguration,
        _ velocity: inout StepProgram.Vector?, into program: StepProgram
    ) -> StepProgram.Vector? {
        guard placement == .pre, let mixer = mixer as? any StepCompiling, let mixerNorm, let feedForward,
            let feedForwardNorm, let normalized = program.append(mixerNorm, x),
            let mixed = mixer.compileStep(
                normalized, adding: residual.kind == .plain ? x : nil, state: state, into: program)
        else { return nil }
        var h = mixed
        if residual.kind == .constant {
            let u = program.vector(count: x.count)
            let momentum = residual.momentum ?? ResidualConfiguration.standardMomentum
            program.appendCombination(velocity == nil ? 0 : momentum, velocity ?? mixed, -1, mixed, to: u)
            velocity = u
            h = program.vector(count: x.count)
            program.appendCombination(1, x, -(residual.stepSize ?? ResidualConfiguration.standardStepSize), u, to: h)
        }
        guard let second = program.append(feedForwardNorm, h) else { return nil }
        return feedForward.compileStep(second, adding: h, into: program)
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
