import SequenceMixers
import Testing
import Torch
import TorchNN

/// What the program of every mechanism that has one promises: it gives what `step` gives.
@Suite struct StepProgramProperties {
    /// Streaming mechanisms, or settings of them, that have no program: none so far.
    static let without: Set<String> = []

    private static func hasProgram(_ mixer: MixerCase) -> Bool {
        !without.contains { mixer.testDescription.hasPrefix($0) }
    }

    struct Setting {
        var heads: Int
        var headDim: Int
        /// Tokens before the program: read at once, and step by step.
        var prompt: Int
        var steps = 0
    }

    /// Heads of whole and of broken vectors; prompts that end inside of windows and chunks, and after rings have wrapped.
    static let settings = [
        Setting(heads: 3, headDim: 12, prompt: 0), Setting(heads: 1, headDim: 18, prompt: 5),
        Setting(heads: 2, headDim: 16, prompt: 64), Setting(heads: 2, headDim: 8, prompt: 120, steps: 11),
    ]

    @Test(arguments: StreamingProperties.cases, settings.indices) func areSteps(_ mixer: MixerCase, _ index: Int) throws
    {
        let setting = Self.settings[index]
        guard setting.headDim.isMultiple(of: mixer.headDimMultiple) else { return }
        let layer = try #require(
            mixer.layer(heads: setting.heads, headDim: setting.headDim, seed: 3, dtype: .float32)
                as? any StreamingMixer)
        let modelDim = setting.heads * setting.headDim
        let generator = RandomGenerator(seed: 8)
        func normal(_ count: Int) -> Tensor {
            Tensor.randomNormal([1, count, modelDim], using: generator) * mixer.inputScale
        }
        try withNoGrad {
            var state = layer.anyInitialState(batch: 1)
            if setting.prompt > 0 { _ = layer.prefill(normal(setting.prompt), paddingMask: nil, anyState: &state) }
            for _ in 0..<setting.steps { _ = layer.step(normal(1).squeezed(1), anyState: &state) }
            let first = setting.prompt + setting.steps
            let program = StepProgram(position: first)
            let (input, addend) = (program.vector(count: modelDim), program.vector(.ones([modelDim])))
            let output = (layer as? any StepCompiling)?.compileStep(input, adding: addend, state: state, into: program)
            guard Self.hasProgram(mixer) else {
                #expect(output == nil)
                return
            }
            let y = try #require(output)
            let tokens = normal(50)
            let expected = (0..<50).map { layer.step(tokens.selected(1, $0), anyState: &state) + 1 }
            for isa in KernelInstructions.available {
                try KernelInstructions.with(isa) {
                    let own = program.copy()
                    func step(_ program: StepProgram, _ index: Int, at place: Int) -> [Float] {
                        program.set(input, to: tokens.selected(1, index))
                        program.run(position: first + place)
                        return program.numbers(of: y)
                    }
                    for place in 0..<50 {
                        // Another that goes astray leaves this one alone.
                        if place % 9 == 4 {
                            let other = own.copy()
                            for further in 0..<3 { _ = step(other, 49 - place, at: place + further) }
                        }
                        let found = Tensor(step(own, place, at: place), shape: [1, modelDim])
                        #expect(found.deviation(from: expected[place]) < 3e-5, "\(isa), token \(place)")
                    }
                }
            }
        }
    }

    /// A program made of a padded prompt goes on from its last real token, or there is none.
    @Test(arguments: StreamingProperties.cases) func goOnAfterPaddedPrompts(_ mixer: MixerCase) throws {
        let anyLayer = try mixer.layer(heads: 2, headDim: 8, seed: 3, dtype: .float32)
        guard let layer = anyLayer as? any StepCompiling else { return }
        let generator = RandomGenerator(seed: 8)
        func normal(_ shape: [Int]) -> Tensor { .randomNormal(shape, using: generator) * mixer.inputScale }
        withNoGrad {
            for padding in [[2], [5]] {
                var state = layer.anyInitialState(batch: 1)
                let mask = Tensor((0..<6).map { !padding.contains($0) }, shape: [1, 6])
                _ = layer.prefill(normal([1, 6, 16]), paddingMask: mask, anyState: &state)
                let first = padding == [5] ? 5 : 6
                let program = StepProgram(position: first)
                let input = program.vector(count: 16)
                guard let y = layer.compileStep(input, adding: nil, state: state, into: program) else { continue }
                for place in first..<first + 9 {
                    let token = normal([1, 16])
                    program.set(input, to: token)
                    program.run(position: place)
                    let found = Tensor(program.numbers(of: y), shape: [1, 16])
                    #expect(found.deviation(from: layer.step(token, anyState: &state)) < 3e-5, "\(place)")
                }
            }
        }
    }
}
