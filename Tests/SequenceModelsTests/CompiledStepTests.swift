import Foundation
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
            Case(mixer: "softmax"),
            Case(mixer: "softmax", change: { $0.position = .rotary }, note: "rotary"),
            Case(mixer: "ngram"),
            Case(mixer: "cosformer"),
            Case(mixer: "transnormer"),
            Case(mixer: "sparse"),
            Case(mixer: "sparse", change: { $0.position = .rotary }, note: "rotary"),
            Case(mixer: "combiner"),
            Case(mixer: "transformer-ls"),
            Case(mixer: "linear", change: { $0.gatedFeedForward = true }, note: "gated"),
            Case(
                mixer: "momentum", change: { $0.residual = ResidualConfiguration(.constant) }, note: "momentum residual"
            ),
            Case(
                mixer: "momentum",
                change: {
                    $0.residual = ResidualConfiguration(.constant)
                    $0.norm = .post
                }, note: "momentum residual, norms after the sums"),
            Case(mixer: "linear", change: { $0.norm = .post }, note: "norms after the sums"),
            Case(mixer: "linear", change: { $0.feedForwardDim = 0 }, note: "no feed-forward layers"),
            Case(mixer: "linear", change: { $0.normalization = .rmsNorm }, note: "rms"),
            Case(mixer: "linear", change: { $0.position = .sinusoidal }, note: "sinusoidal"),
            Case(mixer: "linear", change: { $0.position = .learned }, note: "learned"),
            Case(mixer: "linear", change: { $0.position = .sinusoidalConcatenated }, note: "concatenated"),
            Case(mixer: "linear", change: { $0.position = .axial }, note: "axial"),
            Case(mixer: "linear", change: { $0.finalNorm = false }, note: "no final norm"),
        ]
        + Activation.allCases.map { activation in
            Case(mixer: "linear", change: { $0.activation = activation }, note: activation.rawValue)
        }

    /// Mixers that look at the tokens before in more than one way.
    static let looking = ["transnormer", "sparse", "combiner", "transformer-ls"]

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

    @Test(arguments: cases, [[], [3, 1, 4, 1, 5]]) func isTheModelsStep(_ setting: Case, after prompt: [Int]) throws {
        let model = try model(setting)
        try withNoGrad {
            var state = try model.initialState()
            if !prompt.isEmpty { _ = model.prefill(Tensor(prompt, shape: [1, prompt.count]), state: &state) }
            for isa in KernelInstructions.available {
                var (expected, compiled) = (state, try #require(model.compiledStep(state)))
                try KernelInstructions.with(isa) {
                    for token in [9, 2, 6, 5, 3, 5] {
                        let logits = model.step(Tensor([token]), state: &expected)
                        let found = Tensor(compiled(token), shape: logits.shape)
                        #expect(found.deviation(from: logits) < 1e-5, "\(isa)")
                        #expect(compiled.position == expected.position)
                    }
                }
            }
        }
    }

    @Test(arguments: ["linear", "momentum", "softmax"] + Self.looking) func givesTheSameBitsOnAnyThreads(
        _ mixer: String
    ) throws {
        // Wide enough that layers are cut into pieces; so often that workers meet in many ways.
        let runs = resultsOnThreads { () -> [[Float]] in
            guard let model = try? model(Case(mixer: mixer), modelDim: 192) else { return [] }
            return (0..<10).flatMap { _ in
                var step = (try? model.initialState()).flatMap(model.compiledStep)
                return (0..<40).map { step?($0 % 11) ?? [] }
            }
        }
        #expect(runs[0].count == 400 && runs[0].allSatisfy { $0.count == 11 })
        #expect(runs.count == 3 && runs[1] == runs[0] && runs[2] == runs[0])
    }

    @Test(arguments: ["momentum", "softmax"] + Self.looking) func copiesGoOnAlone(_ mixer: String) throws {
        let model = try model(Case(mixer: mixer))
        try withNoGrad {
            var first = try #require(model.compiledStep(try model.initialState()))
            _ = first(1)
            var second = first
            let forked = second(7)
            _ = second(8)
            #expect(first(7) == forked)
        }
    }

    @Test func whatHasNoProgramIsNil() throws {
        let adaptive = try model(
            Case(mixer: "linear", change: { $0.residual = ResidualConfiguration(.adaptive) }))
        #expect(adaptive.compiledStep(try adaptive.initialState()) == nil)
        let linear = try model(Self.cases[0])
        #expect(linear.compiledStep(try linear.initialState(batch: 2)) == nil)
        linear.train()
        #expect(linear.compiledStep(try linear.initialState()) == nil)
    }
}
