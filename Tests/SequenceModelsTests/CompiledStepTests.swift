import SequenceMixers
import Testing
import Torch
import TorchNN

@testable import SequenceModels

@Suite struct CompiledStepTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var mixer: String
        var change: @Sendable (inout ModelConfiguration) -> Void = { _ in }
        var note = ""
        var testDescription: String { "\(mixer) \(note)" }
    }

    static let cases =
        [
            Case(mixer: "linear"),
            Case(mixer: "momentum"),
            Case(mixer: "linear", change: { $0.gatedFeedForward = true }, note: "gated"),
            Case(
                mixer: "momentum", change: { $0.residual = ResidualConfiguration(.constant) }, note: "momentum residual"
            ),
            Case(mixer: "linear", change: { $0.normalization = .rmsNorm }, note: "rms"),
            Case(mixer: "linear", change: { $0.position = .sinusoidal }, note: "sinusoidal"),
            Case(mixer: "linear", change: { $0.finalNorm = false }, note: "no final norm"),
        ]
        + Activation.allCases.map { activation in
            Case(mixer: "linear", change: { $0.activation = activation }, note: activation.rawValue)
        }

    private func model(_ setting: Case, modelDim: Int = 36, heads: Int = 3) throws -> LanguageModel {
        var configuration = ModelConfiguration(mixer: try MixerConfiguration(setting.mixer))
        configuration.layers = 2
        configuration.modelDim = modelDim
        configuration.heads = heads
        setting.change(&configuration)
        let model = try LanguageModel(
            configuration, vocabulary: 11, maximumLength: 40, using: RandomGenerator(seed: 5))
        model.evaluate()
        return model
    }

    @Test(arguments: cases) func isTheModelsStep(_ setting: Case) throws {
        let model = try model(setting)
        try withNoGrad {
            var state = try model.initialState()
            _ = model.prefill(Tensor([3, 1, 4, 1, 5], shape: [1, 5]), state: &state)
            for isa in KernelInstructions.available {
                var (expected, compiled) = (state, try #require(model.compiledStep(state)))
                try KernelInstructions.with(isa) {
                    for token in [9, 2, 6, 5, 3, 5] {
                        let logits = model.step(Tensor([token]), state: &expected)
                        let found = compiled(Tensor([token]))
                        #expect(found.deviation(from: logits) < 1e-5, "\(isa)")
                        #expect(compiled.position == expected.position)
                    }
                }
            }
        }
    }

    @Test func copiesGoOnAlone() throws {
        let model = try model(Self.cases[1])
        try withNoGrad {
            var first = try #require(model.compiledStep(try model.initialState()))
            _ = first(Tensor([1]))
            var second = first
            let forked = second(Tensor([7]))
            _ = second(Tensor([8]))
            #expect(first(Tensor([7])).deviation(from: forked) == 0)
        }
    }

    @Test func whatHasNoProgramIsNil() throws {
        for setting in [
            Case(mixer: "softmax"), Case(mixer: "linear", change: { $0.norm = .post }),
            Case(mixer: "linear", change: { $0.residual = ResidualConfiguration(.adaptive) }),
        ] {
            let model = try model(setting)
            #expect(model.compiledStep(try model.initialState()) == nil, "\(setting)")
        }
        let linear = try model(Self.cases[0])
        #expect(linear.compiledStep(try linear.initialState(batch: 2)) == nil)
        linear.train()
        #expect(linear.compiledStep(try linear.initialState()) == nil)
    }
}
